"""Which updates look wrong: figures against plain numpy, each kind of attack, and hospitals of the digits that merely differ."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file
from tests.bench.screening import run
from tests.unit.federated.test_plan import plan

from medmesh.contracts.plan import plan_hash
from medmesh.contracts.screening import Flag, Screening
from medmesh.federated import screening
from medmesh.federated.plan import explain
from medmesh.learning import weights

SHAPES = {"a": (300, 70), "b": (70,), "half": (50,), "double": (9,)}
DTYPES = {"half": np.float16, "double": np.float64}


def updates(folder: Path, count: int = 5) -> tuple[Path, list[Path], np.ndarray]:
    """(base, updates, float64 [count, numbers] of what each changes)."""
    dice, changes = np.random.default_rng(3), []
    base = {n: dice.normal(size=shape).astype(DTYPES.get(n, np.float32)) for n, shape in SHAPES.items()}
    weights.save({**base, "steps": np.array([3])}, folder / "base")
    for at in range(count):
        made = {n: (a + 0.1 * dice.normal(size=a.shape)).astype(a.dtype) for n, a in base.items()}
        changes.append(np.concatenate([(made[n].astype(np.float64) - base[n]).ravel() for n in sorted(SHAPES)]))
        weights.save({**made, "steps": np.array([4 + at])}, folder / f"u{at}")
    return folder / "base", [folder / f"u{at}" for at in range(count)], np.stack(changes)


def test_the_inner_products_are_those_of_plain_numpy_however_small_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, given, changes = updates(tmp_path)
    wanted = changes @ changes.T
    np.testing.assert_allclose(screening.products(base, given), wanted, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(screening, "LEAST_ELEMENTS", 7)
    monkeypatch.setattr(screening, "ELEMENTS", 7)
    np.testing.assert_allclose(screening.products(base, given), wanted, rtol=1e-5, atol=1e-5)
    without = screening.products(base, given, {"a"})
    np.testing.assert_allclose(without, changes[:, 300 * 70 :] @ changes[:, 300 * 70 :].T, rtol=1e-5, atol=1e-5)


def test_figures_are_over_the_median_and_to_the_others_mean_direction(tmp_path: Path) -> None:
    base, given, changes = updates(tmp_path)
    names = [path.name for path in given]
    found = screening.judge(Screening(), names, screening.products(base, given), arrivals=names, marks={name: name for name in names})
    lengths = np.linalg.norm(changes, axis=1)
    for at, name in enumerate(names):
        others = np.delete(changes / lengths[:, None], at, axis=0).mean(axis=0)
        assert found[name].ratio == pytest.approx(lengths[at] / np.median(lengths), rel=1e-4)
        assert found[name].cosine == pytest.approx(changes[at] @ others / (lengths[at] * np.linalg.norm(others)), abs=1e-4)
        assert found[name].flags == ()


def test_numbers_too_large_for_a_square_are_long_and_nothing_else_is_hurt(tmp_path: Path) -> None:
    base, given, _ = updates(tmp_path)
    weights.save(
        {n: np.full_like(a, 3e4) if a.dtype != np.float32 else np.full_like(a, 1e30) for n, a in weights.load(base).items()}, given[0]
    )
    names = [path.name for path in given]
    found = screening.judge(Screening(), names, screening.products(base, given), arrivals=names, marks={n: n for n in names})
    assert {name: one.flags for name, one in found.items()} == {"u0": (Flag.LONG,), "u1": (), "u2": (), "u3": (), "u4": ()}


def test_of_copies_the_first_to_come_is_not_flagged(tmp_path: Path) -> None:
    base, given, _ = updates(tmp_path)
    names = ["u0", "u1", "sybil1", "sybil2", "u2"]
    gram = screening.products(base, [given[0], given[1], given[0], given[0], given[2]])
    found = screening.judge(Screening(), names, gram, arrivals=["u1", "u0", "u2", "sybil2", "sybil1"], marks={n: n for n in names})
    assert {name for name, one in found.items() if one.flags == (Flag.COPIED,)} == {"sybil1", "sybil2"}
    assert not found["u0"].flags


def test_a_fingerprint_is_of_tensors_and_not_of_their_file(tmp_path: Path) -> None:
    one = {"a": np.arange(40_000, dtype=np.float32), "b": np.ones(3, np.float32)}
    save_file(one, tmp_path / "one")
    save_file(one, tmp_path / "two", metadata={"by": "another"})
    save_file({**one, "a": one["a"] + 1}, tmp_path / "three")
    a, b, c = (screening.fingerprint(tmp_path / name) for name in ("one", "two", "three"))
    assert a == b != c


@pytest.mark.parametrize("kind", ["practical", "pathological"])
def test_on_the_digits_attacks_are_flagged_and_hospitals_that_differ_are_not(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rounds of what `python -m tests.bench.screening` tells the whole table of."""
    monkeypatch.setattr("tests.bench.digits.ROUNDS", 4)
    seen: dict[str, Counter[bool]] = {}
    run(kind, 0, Screening(), lambda _, what, flagged: seen.setdefault(what, Counter()).update([flagged]))
    assert seen.pop("honest") == {False: 40}
    turned = seen.pop("sign turned")  # between hospitals with two digits each the others point nowhere
    assert turned[True] >= 3 or kind == "pathological"
    assert {what: count[False] for what, count in seen.items()} == dict.fromkeys(seen, 0)


def test_a_plan_says_what_becomes_of_such_updates_and_looks_at_none_where_nobody_may() -> None:
    without, screened = plan(), plan(screening={"action": "exclude"})
    assert plan_hash(without) != plan_hash(screened)
    secret = plan(secure={"threshold": 3}, min_participants=3)
    assert any("No single update is seen" in line for line in explain(secret))
    with pytest.raises(ValidationError, match=r"plan\.screening_secure"):
        plan(secure={"threshold": 3}, min_participants=3, screening={})
    for changed in ({"longer": "0.5"}, {"opposed": "nan"}, {"alike": "much"}):
        with pytest.raises(ValidationError, match=next(iter(changed))):
            plan(screening=changed)
    private = {"unit": "hospital", "epsilon": "8", "delta": "0.00001", "clip": "1", "noise": "1"}
    with pytest.raises(ValidationError, match=r"plan\.screening_privacy"):
        plan(screening={}, privacy=private)
    for language, action in (("en", "does not count in its round"), ("zh", "不计入本轮聚合")):
        assert any(action in line for line in explain(screened, language))
        assert not any(action in line for line in explain(without, language))
