"""The vectors of a secure sum by themselves: every number a model may have, nothing that might wrap, and the bytes they are known by."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from tests.unit.federated.test_plan import plan
from tests.unit.federated.test_secure import BITS, code

from medmesh.contracts.federation import RoundKind
from medmesh.contracts.plan import TensorSignature
from medmesh.errors import Problem
from medmesh.federated.secure import counts, vectors
from medmesh.federated.streams import Reader, Writer
from medmesh.learning import weights
from medmesh.security.keyring.file import FileKeys
from medmesh.store.objects.directory import DirectoryBlobs
from medmesh.store.objects.encrypted import EncryptedStore, Window
from medmesh.store.objects.envelope import Wrapping
from medmesh.store.objects.port import CHUNK, Digest


@pytest.mark.parametrize("ring", [32, 64])
def test_a_number_that_might_wrap_in_the_sum_is_refused_in_each_ring(private: Path, ring: int) -> None:
    most = (2 ** (ring - 1) - 1) // 3
    settings: dict[str, Any] = {"bits": 8, "parties": 3, "ring": ring}
    for beside, samples, weight in (([most + 1], 1, 0.0), ([-most - 1], 1, 0.0), ([], most + 1, 0.0), ([], 1, (most + 1) / 2**8)):
        weights.save({"w": np.array([weight])}, private / "m")
        with pytest.raises(Problem) as refused:
            vectors.encode(private / "m", samples, private / "v", beside=beside, **settings)
        assert code(refused) == "secure.range" and not (private / "v").exists()
    weights.save({"w": np.array([-most * (1 - 2**-20) / 2**8])}, private / "m")
    vectors.encode(private / "m", 1, private / "v", beside=[most, -most], **settings)
    with vectors.Sum([private / "v"] * 3) as total:
        assert total.last(2) == [3 * most, -3 * most]
        assert vectors.decode(total, private / "m", private / "mean", bits=8, beside=2) == 3
    np.testing.assert_allclose(weights.load(private / "mean")["w"], weights.load(private / "m")["w"], rtol=1e-6)


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e9, -1e9])
def test_what_is_out_of_range_is_refused_by_name_and_leaves_nothing(private: Path, value: float) -> None:
    weights.save({"fine": np.zeros(3, np.float32), "odd": np.array([0, value], np.float32)}, private / "m")
    with pytest.raises(Problem) as refused:
        vectors.encode(private / "m", 1000, private / "v", bits=BITS, parties=3)
    assert code(refused) == "secure.range"
    assert refused.value.params["tensor"] == "odd"
    assert not (private / "v").exists()


def test_the_largest_that_is_let_through_never_wraps(private: Path) -> None:
    limit = (2**63 - 1) // 3 / 2**BITS
    weights.save({"w": np.array([np.nextafter(limit * (1 - 2**-51), 0), -limit * (1 - 2**-51)])}, private / "m")
    vectors.encode(private / "m", 1, private / "v", bits=BITS, parties=3)
    with vectors.Sum([private / "v"] * 3) as total:
        assert vectors.decode(total, private / "m", private / "mean", bits=BITS) == 3
    np.testing.assert_allclose(weights.load(private / "mean")["w"], weights.load(private / "m")["w"], rtol=1e-12)


def test_counts_alone_make_a_vector_and_are_read_as_they_were_told(private: Path) -> None:
    wanted = plan(evaluate_every=1, secure={"threshold": 3}, min_participants=3)
    tables = [[[5, 0], [10, 25]], [[0, 5], [5, 30]]]
    for place in range(3):
        told = counts.numbers([[[cell * place for cell in line] for line in table] for table in tables], bits=BITS)
        vectors.encode(None, 1, private / f"v{place}", bits=BITS, parties=3, beside=told)
        weights.check(private / f"v{place}", vectors.signature((), counts.width(wanted, RoundKind.EVALUATE, 9, 2)))
    with vectors.Sum([private / f"v{place}" for place in range(3)]) as total:
        found = counts.summed(wanted, RoundKind.EVALUATE, total.last(8), 3)
        with pytest.raises(Problem) as longer:
            total.last(9)
    assert found.tables == tuple([[3 * cell for cell in line] for line in table] for table in tables)
    assert code(longer) == "weights.signature"


def test_a_loss_is_weighted_by_samples_and_what_cannot_be_counted_is_refused(private: Path) -> None:
    wanted = plan(evaluate_every=2, secure={"threshold": 3}, min_participants=3)
    assert [counts.width(wanted, RoundKind.TRAIN, number, 0) for number in (1, 2, 3)] == [5, 0, 5]
    given = [counts.numbers([[[1, 2], [3, 4]]], loss=loss, samples=samples, bits=24) for loss, samples in ((0.5, 10), (0.25, 30))]
    found = counts.summed(wanted, RoundKind.TRAIN, [a + b for a, b in zip(*given, strict=True)], 40)
    assert (found.tables, found.loss) == (([[2, 4], [6, 8]],), (0.5 * 10 + 0.25 * 30) / 40)
    with pytest.raises(Problem) as endless:
        counts.numbers([], loss=np.inf, bits=24)
    with pytest.raises(Problem) as large:
        vectors.encode(None, 1, private / "v", bits=BITS, parties=3, beside=[2**62])
    with pytest.raises(Problem) as below:
        counts.summed(wanted, RoundKind.EVALUATE, [1, -1, 0, 0], 3)
    assert (code(endless), code(large), code(below)) == ("secure.range", "secure.range", "secure.sum")
    own = wanted.model_copy(update={"algorithm": "ditto"})
    assert counts.width(own, RoundKind.EVALUATE, 9, 1) == 8, "a table more for the hospitals' own models"


def test_every_float_that_a_model_may_have_is_in_the_sum(tmp_path: Path) -> None:
    """Of 16 bits of either kind, too: what is not summed would silently stay as it was."""
    kinds: tuple[Literal["F64", "F32", "F16", "BF16"], ...] = ("F64", "F32", "F16", "BF16")
    named = {dtype: TensorSignature(name=dtype, shape=(3,), dtype=dtype) for dtype in kinds}
    paths = [tmp_path / f"{n}" for n in range(3)]
    for place, path in enumerate(paths):
        with Writer(path, named) as out:
            for dtype in kinds:
                out.put(dtype, 0, np.array([1.0, -2.0, 0.5]) * (place + 1))
    sent = [path.with_suffix(".vector") for path in paths]
    for path, vector, samples in zip(paths, sent, (10, 20, 30), strict=True):
        vectors.encode(path, samples, vector, bits=BITS, parties=3)
        weights.check(vector, vectors.signature(named.values()))
    with vectors.Sum(sent) as total:
        assert vectors.decode(total, paths[0], tmp_path / "mean", bits=BITS) == 60
    with Reader(tmp_path / "mean") as mean:
        for dtype in kinds:
            exact = np.array([1.0, -2.0, 0.5]) * (1 * 10 + 2 * 20 + 3 * 30) / 60
            np.testing.assert_allclose(mean.read(dtype, 0, 3), exact, rtol=2**-7)


def test_a_large_vector_is_known_by_its_marks(private: Path) -> None:
    weights.save({"w": np.ones(3 * CHUNK // 16, np.float32)}, private / "m")
    digest = Digest()
    ref = vectors.encode(private / "m", 5, private / "v", bits=BITS, parties=3, digest=digest)
    pieces = list(vectors.masked((private / "m").read_bytes(), 5, bits=BITS, parties=3))
    assert b"".join(pieces) == (private / "v").read_bytes(), "the same of bytes that are here"
    store = EncryptedStore(DirectoryBlobs(private / "objects"), Wrapping(FileKeys(private / "kek").ensure("objects"), "objects"))
    sealed = store.put_file_now(private / "m", hashlib.sha256((private / "m").read_bytes()).hexdigest())
    pieces = list(vectors.masked(Window(store, sealed), 5, bits=BITS, parties=3))
    assert b"".join(pieces) == (private / "v").read_bytes(), "and of those that lie sealed"
    data = (private / "v").read_bytes()
    assert (ref.sha256, ref.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert digest.marks == [hashlib.sha256(data[:CHUNK]).hexdigest()]


def test_of_a_header_that_is_longer_than_any_no_more_is_read_than_may_be() -> None:
    asked: list[int] = []

    class Says:
        """That its header is longer than it is itself."""

        size = 1 << 50

        def at(self, start: int, size: int) -> bytes:
            asked.append(size)
            return (1 << 49).to_bytes(8, "little") + bytes(64)

        def close(self) -> None:
            return None

    with pytest.raises(Problem) as malformed:
        Reader(Says())
    assert code(malformed) == "weights.malformed" and max(asked) <= 8 + weights.MAX_HEADER
