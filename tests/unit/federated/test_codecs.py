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


def once(
    codec: str,
    folder: Path,
    base: dict[str, np.ndarray],
    update: dict[str, np.ndarray],
    residual: Path | None = None,
    key: bytes = bytes(32),
) -> None:
    """`encoded`, `left` and `decoded` in the folder."""
    at = files(folder, base=base, update=update)
    signature = weights.signature_of(base)
    codecs.encode(codec, signature, at["base"], at["update"], residual, folder / "encoded", folder / "left", share=SHARE, key=key)
    codecs.decode(codec, signature, at["base"], folder / "encoded", folder / "decoded", share=SHARE)


def neighbours(codec: str, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two numbers that a flat difference may arrive as, in the plainest numpy: the same where it can be said exactly."""
    match codec:
        case "fp16":
            near = d.astype(np.float16)
            low = np.where(near.astype(np.float32) > d, np.nextafter(near, np.float16(-np.inf)), near)
            exact = low.astype(np.float32) == d
            return low.astype(np.float32), np.where(exact, low, np.nextafter(low, np.float16(np.inf))).astype(np.float32)
        case "bf16":
            whole = d.copy().view(np.uint32) & np.uint32(0xFFFF0000)
            inner = whole.view(np.float32)
            outer = np.where(inner == d, inner, (whole + np.uint32(0x10000)).view(np.float32))
            return np.minimum(inner, outer), np.maximum(inner, outer)
        case "int8":
            low, high = np.zeros_like(d), np.zeros_like(d)
            for start in range(0, len(d), 4096):
                part = d[start : start + 4096]
                scale = np.float32(np.abs(part).max() / np.float32(127))
                if scale:
                    low[start : start + 4096] = np.floor(part / scale) * scale
                    high[start : start + 4096] = np.ceil(part / scale) * scale
            return low, high
        case _:
            made = np.zeros_like(d)
            for start in range(0, len(d), 65536):
                part = d[start : start + 65536]
                number = int(np.ceil(len(part) * 0.05))
                order = sorted(range(len(part)), key=lambda i: (-abs(part[i]), i))[:number]
                made[start : start + 65536][order] = part[order]
            return made, made


@pytest.mark.parametrize("codec", CODECS)
def test_what_arrives_is_one_of_the_two_nearest(codec: str, tmp_path: Path) -> None:
    base, update = models(1), models(2)
    once(codec, tmp_path, base, update)
    arrived, left = weights.load(tmp_path / "decoded"), weights.load(tmp_path / "left")
    assert arrived.keys() == base.keys()
    for name in ("count", "wide", "empty"):
        assert np.array_equal(arrived[name], update[name]), "what is no float32 travels as it is"
    assert left.keys() == {"w", "small", "zero", "one"}
    for name in left:
        d = (update[name] - base[name]).reshape(-1)
        low, high = neighbours(codec, d)
        said = d - left[name].reshape(-1)
        assert (np.minimum(abs(said - low), abs(said - high)) <= 1e-6).all(), name
        assert np.allclose(arrived[name].reshape(-1), base[name].reshape(-1) + said, rtol=0, atol=1e-6), name
        if name == "w" and codec != "topk":
            up = np.mean(abs(said - high) < abs(said - low))
            assert 0.4 < up < 0.6, "both are drawn"


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8"])
def test_rounding_adds_nothing_on_the_mean(codec: str, tmp_path: Path) -> None:
    """Over many keys each number arrives as it is on the mean: to the nearest, half of them would be off by a quarter of a step or more."""
    dice, draws = np.random.default_rng(4), 600
    base, d = np.zeros(3000, np.float32), dice.normal(0, 1e-2, 3000).astype(np.float32)
    d[:3] = 0, d.max(), -d.max()
    low, high = neighbours(codec, d)
    total = np.zeros(3000)
    for _ in range(draws):
        once(codec, tmp_path, {"w": base}, {"w": d}, key=dice.bytes(32))
        total += weights.load(tmp_path / "decoded")["w"]
    steps = np.where(high > low, high - low, 1.0)
    off = abs(total / draws - d) / steps
    assert off.max() < 5.5 * 0.5 / draws**0.5, "of 3,000 means of coins that are at most fair, the farthest"
    assert abs(np.mean((total / draws - d) / steps)) < 0.002


@pytest.mark.parametrize("codec", CODECS)
def test_a_descent_by_what_arrives_ends_where_it_should(codec: str, tmp_path: Path) -> None:
    """Each round goes half of the way to where it should end, from where it arrived."""
    dice = np.random.default_rng(5)
    base, goal, residual = {"w": np.zeros(5000, np.float32)}, dice.normal(0, 1, 5000).astype(np.float32), None
    for number in range(60 if codec != "topk" else 400):
        share = np.float32(0.5 if codec != "topk" else 0.05)
        once(codec, tmp_path, base, {"w": base["w"] + share * (goal - base["w"])}, residual, number.to_bytes(32, "big"))
        residual = (tmp_path / "left").rename(tmp_path / "residual")
        base = weights.load(tmp_path / "decoded")
    assert np.abs(base["w"] - goal).max() < 1e-4


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


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8"])
def test_who_does_not_know_the_key_does_not_know_the_bytes(codec: str, tmp_path: Path) -> None:
    made = []
    for key in (b"a" * 32, b"b" * 32, b"a" * 32):
        once(codec, tmp_path, models(1), models(2), key=key)
        made.append((tmp_path / "encoded").read_bytes())
    assert made[0] == made[2] and made[0] != made[1]


def test_places_out_of_a_block_are_refused(tmp_path: Path) -> None:
    signature = (TensorSignature(name="w", shape=(100,), dtype="F32"),)
    at = files(
        tmp_path,
        base={"w": np.zeros(100, np.float32)},
        bad={"codec/place/w": np.array([1, 2, 3, 4, 200], np.uint16), "codec/value/w": np.ones(5, np.float32)},
    )
    with pytest.raises(Problem, match=r"weights|malformed|safetensors"):
        codecs.decode("topk", signature, at["base"], at["bad"], tmp_path / "out", share=SHARE)
