"""`python -m tests.bench.digits [SEEDS]`: personal and global models on scikit-learn's digits, with our algorithms and plain numpy
hospitals: 10 hospitals, a 64-32-10 network, 30 rounds of about 2 epochs, mean over hospitals of the accuracy on their own held-out 40 %.

The splits are those of personalised federated learning (Huang et al. 2021 for pathological and practical; Hsu et al. 2019, arXiv
1909.06335, for Dirichlet). The round with the best accuracy is picked on the held-out samples, as that literature does, and for every
algorithm alike: figures compare algorithms and are no estimate of what a hospital would see.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from medmesh.contracts.data import ImageSchema
from medmesh.contracts.plan import Plan
from medmesh.learning import weights
from tests.federated_rounds import Federation, Hospital, Model

HOSPITALS, HIDDEN, ROUNDS, BATCH, STEPS = 10, 32, 30, 16, 14
ALGORITHMS: dict[str, tuple[str, dict[str, str]]] = {
    "local only": ("ditto", {"lambda": "0"}),
    "FedAvg": ("fedavg", {}),
    "FedProx": ("fedprox", {"mu": "0.1"}),
    "SCAFFOLD": ("scaffold", {}),
    "FedAvgM": ("fedavgm", {"beta": "0.5"}),
    "FedAdam": ("fedadam", {"rate": "0.03"}),
    "FedYogi": ("fedyogi", {"rate": "0.03"}),
    "FedNova": ("fednova", {"epochs": "2"}),
    "median": ("median", {}),
    "FedAvg + fine-tuning": ("finetune", {"steps": "7"}),
    "Ditto": ("ditto", {"lambda": "0.1"}),
    "FedAMP": ("fedamp", {"alpha": "10", "sigma": "10", "prox": "0.1"}),
    "HeurFedAMP": ("heurfedamp", {"sigma": "25", "prox": "0.01"}),
}
PERSONAL = ("local only", "FedAvg + fine-tuning", "Ditto", "FedAMP", "HeurFedAMP")


def split(kind: str, seed: int) -> list[np.ndarray]:
    """Indices of each hospital's samples. `pathological`: two classes each, shared by two; `practical`: 40 % of each of its group's two
    classes and 2.5 % of every other; `dirichlet`: the classes of each drawn with concentration 0.3."""
    from sklearn.datasets import load_digits

    labels, dice = load_digits().target, np.random.default_rng(seed)
    order = dice.permutation(len(labels))
    classes = [order[labels[order] == digit] for digit in range(10)]
    parts: list[list[np.ndarray]] = [[] for _ in range(HOSPITALS)]
    for digit, members in enumerate(classes):
        if kind == "dirichlet":
            cuts = np.cumsum(dice.dirichlet(np.full(HOSPITALS, 0.3)))[:-1]
            shares = np.split(members, (cuts * len(members)).astype(int))
        elif kind == "practical":
            sizes = [int(len(members) * (0.4 if hospital // 2 == digit // 2 else 0.025)) for hospital in range(HOSPITALS)]
            shares = np.split(members, np.cumsum(sizes))[:HOSPITALS]
        else:
            pair = [hospital for hospital in range(HOSPITALS) if hospital // 2 == digit // 2]
            shares = [members[pair.index(h) :: 2] if h in pair else members[:0] for h in range(HOSPITALS)]
        for hospital, share in enumerate(shares):
            parts[hospital].append(share)
    return [dice.permutation(np.concatenate(part)) for part in parts]


def forward(model: Model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.maximum(x @ model["w1"] + model["b1"], 0)
    return hidden, hidden @ model["w2"] + model["b2"]


def gradient(model: Model, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Of the mean cross-entropy."""
    hidden, logits = forward(model, x)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    back = (p @ model["w2"].T) * (hidden > 0)
    return {"w1": x.T @ back, "b1": back.sum(axis=0), "w2": hidden.T @ p, "b2": p.sum(axis=0)}


def plan_for(algorithm: str, parameters: dict[str, str], initial: Model) -> Plan:
    names = tuple(f"h{n}" for n in range(HOSPITALS))
    day = datetime(2026, 1, 1, tzinfo=UTC)
    return Plan(
        name="digits",
        purpose="a table of algorithms",
        initiator="person:li@platform",
        package="0" * 64,
        initial="0" * 64,
        framework="numpy",
        data=ImageSchema(modality="OT", image_size=8, classes=tuple("0123456789")),
        signature=weights.signature_of(initial),
        algorithm=algorithm,
        parameters=parameters,
        rounds=ROUNDS,
        local_steps=STEPS,
        batch_size=BATCH,
        learning_rate="0.1",
        seed=1,
        participants=names,
        min_participants=HOSPITALS,
        accept_by=day,
        start_at=day,
        round_deadline_seconds=60,
    )


def best(name: str, kind: str, seed: int, rounds: int = ROUNDS) -> float:
    """The accuracy of one algorithm in its best round."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = x / 16
    dice = np.random.default_rng(seed)
    shapes = {"w1": (64, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, 10), "b2": (10,)}
    spreads = {"w1": 0.15, "b1": 0.0, "w2": 0.2, "b2": 0.0}
    initial = {n: (dice.normal(size=shape) * spreads[n]).astype(np.float32) for n, shape in shapes.items()}
    parts = split(kind, seed)
    held_out = [part[int(0.6 * len(part)) :] for part in parts]
    hospitals = {
        f"h{n}": Hospital(x[part[: int(0.6 * len(part))]], y[part[: int(0.6 * len(part))]], seed=seed * 100_000 + n)
        for n, part in enumerate(parts)
    }

    def accuracy(paths: Iterable[Path]) -> float:
        found = []
        for path, part in zip(paths, held_out, strict=True):
            if len(part):
                found.append(float((forward(weights.load(path), x[part])[1].argmax(axis=1) == y[part]).mean()))
        return statistics.mean(found)

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "initial"
        weights.save(initial, place)
        running = Federation(plan_for(*ALGORITHMS[name], initial), gradient, hospitals, place, Path(folder))
        top = 0.0
        for _ in range(rounds):
            running.round()
            top = max(top, accuracy(running.personal(h) if name in PERSONAL else running.model for h in hospitals))
        return top


def main(seeds: int = 5) -> None:
    """Print the table."""
    kinds = ("pathological", "practical", "dirichlet")
    print("| algorithm | " + " | ".join(kinds) + " |\n|---|---|---|---|")
    began = time.monotonic()
    for name in ALGORITHMS:
        cells = []
        for kind in kinds:
            found = [best(name, kind, seed) for seed in range(seeds)]
            spread = f" ± {statistics.stdev(found):.3f}" if seeds > 1 else ""
            cells.append(f"{statistics.mean(found):.3f}{spread}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{seeds} seeds, {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
