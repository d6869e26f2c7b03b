"""`python -m tests.bench.screening [SEEDS]`: how often honest hospitals that differ are flagged, and how often a bad one is.

The digits and the splits of `tests.bench.digits`, and an even one: 10 hospitals, 30 rounds of FedAvg. In each round every hospital is
judged as it is; then one of them is made bad in each way in turn, for this judgement only, so that every attack meets the same training.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medmesh.contracts.screening import Flag, Screening
from medmesh.federated.screening import fingerprint, judge, products
from medmesh.learning import weights
from tests.bench import digits
from tests.federated_rounds import Federation, Hospital, Model

BAD = "h3"
EARLY = 10
"""Rounds in which training still goes somewhere: a direction means less afterwards."""


def started(kind: str, seed: int, folder: Path) -> Federation:
    """A federation of the digits, before its first round."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    dice = np.random.default_rng(seed)
    shapes = {"w1": (64, digits.HIDDEN), "b1": (digits.HIDDEN,), "w2": (digits.HIDDEN, 10), "b2": (10,)}
    spreads = {"w1": 0.15, "b1": 0.0, "w2": 0.2, "b2": 0.0}
    initial = {n: (dice.normal(size=shape) * spreads[n]).astype(np.float32) for n, shape in shapes.items()}
    parts = np.array_split(dice.permutation(len(y)), digits.HOSPITALS) if kind == "even" else digits.split(kind, seed)
    hospitals = {f"h{n}": Hospital(x[part] / 16, y[part], seed=seed * 100_000 + n) for n, part in enumerate(parts) if len(part)}
    weights.save(initial, folder / "initial")
    return Federation(digits.plan_for("fedavg", {}, initial), digits.gradient, hospitals, folder / "initial", folder)


def attacks(base: Model, mine: Model, other: Model, before: Model | None, dice: np.random.Generator) -> dict[str, tuple[Model, Flag]]:
    """What the bad hospital sends instead of `mine`, and how it should be flagged."""

    def times(factor: float) -> Model:
        return {n: (base[n] + factor * (mine[n] - base[n])).astype(np.float32) for n in base}

    def noisy(model: Model, share: float) -> Model:
        length = np.sqrt(sum(float(((mine[n] - base[n]) ** 2).sum()) for n in base) / sum(a.size for a in base.values()))
        return {n: (a + share * length * dice.normal(size=a.shape)).astype(np.float32) for n, a in model.items()}

    made = {
        "sign turned": (times(-1), Flag.OPPOSED),
        "turned, x 10": (times(-10), Flag.LONG),
        "x 10": (times(10), Flag.LONG),
        "free rider": (dict(base), Flag.UNCHANGED),
        "free rider, noise": (noisy(base, 0.01), Flag.SHORT),
        "copy": (dict(other), Flag.COPIED),
        "copy, 1 % noise": (noisy(other, 0.01), Flag.COPIED),
    }
    return made | ({"replay": (before, Flag.REPLAYED)} if before is not None else {})


def run(kind: str, seed: int, rules: Screening, told: Callable[[int, str, bool], None]) -> None:
    """`told(round, what, flagged)` for each honest hospital and each attack of each round."""
    dice = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        running, seen = started(kind, seed, folder), dict[str, str]()
        for number in range(1, digits.ROUNDS + 1):
            origin, before = running.model, running.updates.get(BAD)
            running.round()
            names = sorted(running.updates)
            found = found_in(rules, origin, running.updates, seen)
            for party in names:
                told(number, "honest", bool(found[party]))
            models = [weights.load(path) for path in (origin, running.updates[BAD], running.updates["h0"])]
            for what, (model, wanted) in attacks(*models, weights.load(before) if before else None, dice).items():
                weights.save(model, folder / "bad")
                told(number, what, wanted in found_in(rules, origin, {**running.updates, BAD: folder / "bad"}, seen)[BAD])
            seen |= {fingerprint(path): party for party, path in running.updates.items()}


def found_in(rules: Screening, origin: Path, updates: dict[str, Path], seen: dict[str, str]) -> dict[str, tuple[Flag, ...]]:
    """As the coordinator does it; the bad one comes last."""
    names = sorted(updates)
    marks = {name: fingerprint(updates[name]) for name in names}
    gram = products(origin, [updates[name] for name in names])
    arrivals = sorted(names, key=lambda name: (name == BAD, name))
    replayed = {name for name in names if marks[name] in seen}
    return {n: f.flags for n, f in judge(rules, names, gram, arrivals=arrivals, marks=marks, replayed=replayed).items()}


def main(seeds: int = 5) -> None:
    """Print both tables as one."""
    kinds, rows = ("even", "practical", "dirichlet", "pathological"), dict[tuple[str, str], Counter[bool]]()
    for kind in kinds:
        for seed in range(seeds):

            def told(number: int, what: str, flagged: bool, kind: str = kind) -> None:
                when = what if what == "honest" else f"{what}, rounds 1-{EARLY}" if number <= EARLY else f"{what}, later"
                rows.setdefault((when, kind), Counter())[flagged] += 1

            run(kind, seed, Screening(), told)
    print(f"flagged, of {seeds} seeds x {digits.ROUNDS} rounds\n\n| | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
    for when in dict.fromkeys(when for when, _ in rows):
        cells = [rows[when, kind] for kind in kinds]
        print(f"| {when} | " + " | ".join(f"{c[True]} of {c.total()}" for c in cells) + " |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
