"""Codecs against plain numpy: what a codec says, what it keeps back, and that nothing is lost for good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medmesh.contracts.plan import TensorSignature
from medmesh.errors import Problem
from medmesh.federated import codecs
from medmesh.learning import weights

SHARE = "0.05"
CODECS = ("fp16", "bf16", "int8", "topk")


def models(seed: int, size: int = 300_001) -> dict[str, np.ndarray]:
    """More than one piece, an odd length, a scalar, an empty one, integers and doubles that travel as they are."""
    dice = np.random.default_rng(seed)
    return {
        "w": dice.normal(0, 1, size).astype(np.float32),
        "small": dice.normal(0, 1e-3, (3, 5)).astype(np.float32),
        "zero": np.zeros(5000, np.float32),
        "one": np.float32(dice.normal()).reshape(()),
        "empty": np.zeros((0, 4), np.float32),
        "count": dice.integers(0, 9, 7),
        "wide": dice.normal(0, 1, 11),
    }


def files(folder: Path, **named: dict[str, np.ndarray]) -> dict[str, Path]:
    for name, tensors in named.items():
        weights.save(tensors, folder / name)
    return {name: folder / name for name in named}


def once(codec: str, folder: Path, base: dict[str, np.ndarray], update: dict[str, np.ndarray], residual: Path | None = None) -> None:
    """`encoded`, `left` and `decoded` in the folder."""
    at = files(folder, base=base, update=update)
    signature = weights.signature_of(base)
    codecs.encode(codec, signature, at["base"], at["update"], residual, folder / "encoded", folder / "left", share=SHARE)
    codecs.decode(codec, signature, at["base"], folder / "encoded", folder / "decoded", share=SHARE)


def oracle(codec: str, d: np.ndarray) -> np.ndarray:
    """What arrives of a flat difference, in the plainest numpy."""
    match codec:
        case "fp16":
            return d.astype(np.float16).astype(np.float32)
        case "bf16":
            import torch

            return torch.from_numpy(d.copy()).to(torch.bfloat16).to(torch.float32).numpy()
        case "int8":
            made = np.zeros_like(d)
            for start in range(0, len(d), 4096):
                part = d[start : start + 4096]
                scale = np.float32(np.abs(part).max() / np.float32(127))
                if scale:
                    made[start : start + 4096] = np.rint(part / scale) * scale
            return made
        case _:
            made = np.zeros_like(d)
            for start in range(0, len(d), 65536):
                part = d[start : start + 65536]
                number = int(np.ceil(len(part) * 0.05))
                order = sorted(range(len(part)), key=lambda i: (-abs(part[i]), i))[:number]
                made[start : start + 65536][order] = part[order]
            return made


@pytest.mark.parametrize("codec", CODECS)
def test_what_arrives_is_what_plain_numpy_says(codec: str, tmp_path: Path) -> None:
    base, update = models(1), models(2)
    once(codec, tmp_path, base, update)
    arrived, left = weights.load(tmp_path / "decoded"), weights.load(tmp_path / "left")
    assert arrived.keys() == base.keys()
    for name in ("count", "wide", "empty"):
        assert np.array_equal(arrived[name], update[name]), "what is no float32 travels as it is"
    assert left.keys() == {"w", "small", "zero", "one"}
    for name in left:
        d = (update[name] - base[name]).reshape(-1)
        said = oracle(codec, d)
        assert np.allclose(arrived[name].reshape(-1), base[name].reshape(-1) + said, rtol=0, atol=1e-6), name
        assert np.allclose(left[name].reshape(-1), d - said, rtol=0, atol=1e-6), name


@pytest.mark.parametrize(("codec", "ratio"), [("fp16", 0.5), ("bf16", 0.5), ("int8", 0.251), ("topk", 0.076)])
def test_it_takes_as_many_bytes_as_said(codec: str, ratio: float, tmp_path: Path) -> None:
    base, update = {"w": models(1)["w"]}, {"w": models(2)["w"]}
    once(codec, tmp_path, base, update)
    signature = weights.signature_of(base)
    weights.check(tmp_path / "encoded", codecs.wire(signature, codec, SHARE))
    size = (tmp_path / "encoded").stat().st_size
    assert 0 <= size - codecs.wire_bytes(codecs.wire(signature, codec, SHARE)) < 1000
    assert size <= ratio * base["w"].nbytes + 1000


@pytest.mark.parametrize("codec", CODECS)
def test_what_was_kept_back_comes_with_the_next(codec: str, tmp_path: Path) -> None:
    """Ten rounds of the same step: what arrived in all is within one round's error of what was meant."""
    dice = np.random.default_rng(3)
    base, step = {"w": dice.normal(0, 1, 9000).astype(np.float32)}, dice.normal(0, 1e-2, 9000).astype(np.float32)
    start, residual = base["w"].copy(), None
    for _ in range(10):
        once(codec, tmp_path, base, {"w": base["w"] + step}, residual)
        residual = (tmp_path / "left").rename(tmp_path / "residual")
        base = weights.load(tmp_path / "decoded")
    wanted, found = 10 * step, base["w"] - start
    left = weights.load(tmp_path / "residual")["w"]
    assert np.allclose(found + left, wanted, atol=1e-5)
    once(codec, tmp_path / ".", {"w": start}, {"w": start + step})
    alone = weights.load(tmp_path / "decoded")["w"] - start
    assert np.linalg.norm(found - wanted) < 10 * np.linalg.norm(alone - step) or codec in ("fp16", "bf16")


def test_the_same_twice_is_the_same_bytes(tmp_path: Path) -> None:
    for codec in CODECS:
        seen = set()
        for _ in range(2):
            once(codec, tmp_path, models(1), models(2))
            seen.add((tmp_path / "encoded").read_bytes())
        assert len(seen) == 1


def test_places_out_of_a_block_are_refused(tmp_path: Path) -> None:
    signature = (TensorSignature(name="w", shape=(100,), dtype="F32"),)
    at = files(
        tmp_path,
        base={"w": np.zeros(100, np.float32)},
        bad={"codec/place/w": np.array([1, 2, 3, 4, 200], np.uint16), "codec/value/w": np.ones(5, np.float32)},
    )
    with pytest.raises(Problem, match=r"weights|malformed|safetensors"):
        codecs.decode("topk", signature, at["base"], at["bad"], tmp_path / "out", share=SHARE)
