"""FedAvg against a plain numpy reference, chunk by chunk and bit by bit."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from medmesh.errors import Problem
from medmesh.federated import streams
from medmesh.federated.aggregation import ALGORITHMS, Start, aggregate
from medmesh.learning import weights


def _party(folder: Path, name: str, seed: int, elements: int = 10_000) -> Path:
    generator = np.random.default_rng(seed)
    arrays = {
        "layer.weight": generator.normal(size=(elements // 100, 100)).astype(np.float32),
        "layer.bias": generator.normal(size=3).astype(np.float32),
        "half": generator.normal(size=7).astype(np.float16),
        "scalar": np.float32(generator.normal()).reshape(()),
        "steps": np.array([seed], dtype=np.int64),
    }
    path = folder / name
    weights.save(arrays, path)
    return path


def test_the_mean_is_weighted_by_samples_and_equal_to_the_reference(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "CHUNK_ELEMENTS", 333)  # several chunks, the last one cut
    base = _party(private, "base", 99)
    parties = [(name, _party(private, name, seed), samples) for name, seed, samples in (("a", 1, 10), ("b", 2, 300), ("c", 3, 5))]
    (private / "again").mkdir()
    out = aggregate("fedavg", base, parties, private).model
    again = aggregate("fedavg", base, parties[::-1], private / "again").model
    assert out.read_bytes() == again.read_bytes(), "the order of arrival does not matter"
    result, loaded = weights.load(out), [weights.load(path) for _, path, _ in parties]
    for name in ("layer.weight", "layer.bias", "half", "scalar"):
        exact = sum(arrays[name].astype(np.float64) * n for arrays, (_, _, n) in zip(loaded, parties, strict=True)) / 315
        np.testing.assert_array_equal(result[name], exact.astype(result[name].dtype))
    np.testing.assert_array_equal(result["steps"], [99])
    weights.check(out, weights.signature_of(result))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_memory_does_not_grow_with_the_number_of_parties(private: Path, algorithm: str) -> None:
    """Of each algorithm: more than one piece of a tensor, and a float64 of it for everybody, would show."""
    kind, peaks = ALGORITHMS[algorithm], []
    base = _party(private, "base", 0, elements=600_000)
    shared = weights.load(base)
    floats = {name: array for name, array in shared.items() if array.dtype.kind == "f"}
    extra = {f"{prefix}/{name}": np.zeros_like(array) for prefix in kind.UPLOADS for name, array in floats.items()}
    weights.save({**shared, **extra, **{name: np.ones(1) for name in kind.NUMBERS}}, private / "update")
    for count in (8, 40):
        parties = [(f"p{n:02d}", private / "update", 1) for n in range(count)]
        tracemalloc.start()
        aggregate(algorithm, Start(base, members=count), parties, private)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.5
    assert peaks[1] < 48 * 2**20


def test_an_overflow_is_refused_by_name(private: Path) -> None:
    weights.save({"w": np.full(3, np.inf, np.float32)}, private / "bad")
    with pytest.raises(Problem) as caught:
        aggregate("fedavg", private / "bad", [("a", private / "bad", 1)], private)
    assert caught.value.code == "weights.not_finite"
