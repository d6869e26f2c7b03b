"""Every algorithm against a plain numpy reference that holds all models in memory: equal to 1e-6 after several rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.federated_rounds import Federation, Hospital, Model
from tests.unit.federated.test_plan import plan

from medmesh.contracts.plan import TensorSignature
from medmesh.errors import Problem
from medmesh.federated import streams
from medmesh.federated.aggregation import ALGORITHMS, Algorithm, Piece, Start, aggregate, named, register
from medmesh.learning import weights
from medmesh.learning.adapter import Schedule, batches

SIZE, RATE, STEPS, BATCH, ROUNDS = 7, 0.1, 4, 5, 4
NAMES = ("a", "b", "c", "d", "e", "f", "g")
SIGNATURE = (TensorSignature(name="b", shape=(1,), dtype="F32"), TensorSignature(name="w", shape=(SIZE,), dtype="F32"))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "CHUNK_ELEMENTS", 3)  # several pieces, the last one cut


def gradient(model: Model, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Of the mean squared error of a linear model."""
    error = x @ model["w"] + model["b"] - y
    return {"w": x.T @ error / len(y), "b": np.array([error.mean()])}


def hospitals() -> dict[str, Hospital]:
    """Unlike each other in size and in truth."""
    dice = np.random.default_rng(7)
    made = {}
    for place, name in enumerate(NAMES):
        x = dice.normal(size=(10 + 3 * place, SIZE))
        made[name] = Hospital(x, x @ dice.normal(size=SIZE) + place, seed=place)
    return made


def federation(folder: Path, algorithm: str, parameters: dict[str, str] | None = None, **changed: Any) -> Federation:
    wanted = plan(
        algorithm=algorithm,
        parameters=parameters or {},
        signature=SIGNATURE,
        local_steps=STEPS,
        batch_size=BATCH,
        learning_rate=str(RATE),
        participants=NAMES,
        **changed,
    )
    initial = folder / "initial"
    weights.save({"w": np.linspace(-1, 1, SIZE, dtype=np.float32), "b": np.zeros(1, np.float32)}, initial)
    return Federation(wanted, gradient, hospitals(), initial, folder)


# --- the reference: one vector [b, w...] for each model --------------------------------------------------------------


def flat(model: Path | Model) -> np.ndarray:
    arrays = weights.load(model) if isinstance(model, Path) else model
    return np.concatenate([arrays["b"], arrays["w"]]).astype(np.float64)


def descend(hospital: Hospital, start: np.ndarray, number: int, steps: int = STEPS, pull: float = 0, to: Any = 0, shift: Any = 0) -> Any:
    """Gradient descent as a hospital does it."""
    w = start.copy()
    for chosen in batches(len(hospital.y), Schedule(steps, BATCH, RATE, hospital.seed + 1000 * number)):
        g = gradient({"b": w[:1], "w": w[1:]}, hospital.x[chosen], hospital.y[chosen])
        w = w - RATE * (flat(g) + pull * (w - to) + shift)
    return w


START = np.concatenate([[0.0], np.linspace(-1, 1, SIZE)])
SAMPLES = np.array([len(h.y) for h in hospitals().values()])
P = SAMPLES / SAMPLES.sum()


def trained(start: np.ndarray, number: int, **how: Any) -> np.ndarray:
    return np.stack([descend(h, start, number, **how) for h in hospitals().values()])


def reference(name: str) -> np.ndarray:
    """The global model after `ROUNDS` rounds of the means and the server's optimisers."""
    w, m, v = START, np.zeros_like(START), np.zeros_like(START)
    for number in range(1, ROUNDS + 1):
        how = {"pull": 0.5, "to": w} if name == "fedprox" else {}
        d = P @ trained(w, number, **how) - w
        match name:
            case "fedavg" | "fedprox" | "ditto" | "finetune":
                w = w + d
            case "fedavgm":
                m = 0.9 * m + d
                w = w + m
            case _:
                beta1 = 0 if name == "fedadagrad" else 0.9
                m = beta1 * m + (1 - beta1) * d
                v = {
                    "fedadagrad": v + d**2,
                    "fedadam": 0.99 * v + 0.01 * d**2,
                    "fedyogi": v - 0.01 * d**2 * np.sign(v - d**2),
                }[name]
                w = w + 0.1 * m / (np.sqrt(v) + 1e-3)
    return w


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "ditto", "finetune", "fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_means_and_optimisers_of_the_server(private: Path, name: str) -> None:
    made = federation(private, name, {"mu": "0.5"} if name == "fedprox" else {})
    for _ in range(ROUNDS):
        made.round()
    np.testing.assert_allclose(flat(made.model), reference(name), rtol=0, atol=1e-6)


def test_scaffold_with_a_hospital_that_misses_rounds(private: Path) -> None:
    made = federation(private, "scaffold")
    x, c, own = START, np.zeros_like(START), {name: np.zeros_like(START) for name in NAMES}
    for number in range(1, ROUNDS + 1):
        absent = ("c", "f") if number == 2 else ("a",) if number == 3 else ()
        made.round(absent)
        present = [name for name in NAMES if name not in absent]
        everybody = hospitals()
        y = {k: descend(everybody[k], x, number, shift=c - own[k]) for k in present}
        new = {k: own[k] - c + (x - y[k]) / (STEPS * RATE) for k in present}
        changes = np.mean([new[k] - own[k] for k in present], axis=0)
        x = x + np.mean([y[k] - x for k in present], axis=0)
        c, own = c + len(present) / len(NAMES) * changes, own | new
    np.testing.assert_allclose(flat(made.model), x, rtol=0, atol=1e-6)
    assert made.outcome
    assert made.outcome.state
    state = weights.load(made.outcome.state)
    np.testing.assert_allclose(flat({n: state[f"scaffold.c/{n}"] for n in ("b", "w")}), c, rtol=0, atol=1e-5)
    np.testing.assert_allclose(c, np.mean(list(own.values()), axis=0), rtol=0, atol=1e-9, err_msg="c stays the mean of all c_k")


def test_scaffold_goes_back_only_with_both_sides_anew(private: Path) -> None:
    """c is to be the mean of all c_k. A c of an earlier round beside c_k that begin at 0 stays wrong by it, however long it trains on."""

    def off(joint: bool) -> float:
        folder = private / f"joint-{joint}"
        folder.mkdir()
        made = federation(folder, "scaffold")
        made.round()
        assert made.outcome
        model, state = made.model, made.outcome.state
        made.round()
        made.model, made.outcome = model, replace(made.outcome, state=None if joint else state)
        for hospital in made.hospitals.values():
            hospital.kept = None
        for _ in range(ROUNDS):
            made.round()
        assert made.outcome.state
        c = weights.load(made.outcome.state)
        own = [weights.load(hospital.kept) for hospital in made.hospitals.values() if hospital.kept]
        return max(float(np.abs(c[name] - np.mean([one[name] for one in own], axis=0)).max()) for name in c)

    assert off(joint=True) < 1e-5
    assert off(joint=False) > 0.1, "what a roll-back of one side alone would leave"
    assert ALGORITHMS["scaffold"].JOINT


def test_fednova_weighs_changes_by_their_steps(private: Path) -> None:
    made = federation(private, "fednova", {"epochs": "1.5"})
    w, taken = START, np.ceil(1.5 * SAMPLES / BATCH)
    for number in range(1, ROUNDS + 1):
        made.round()
        y = np.stack([descend(h, w, number, steps=int(t)) for h, t in zip(hospitals().values(), taken, strict=True)])
        d = (w - y) / (RATE * taken[:, None])
        w = w - (P @ taken) * RATE * (P @ d)
    assert len(set(taken)) > 3
    np.testing.assert_allclose(flat(made.model), w, rtol=0, atol=1e-6)


def test_dittos_own_models_are_held_to_the_global_one_and_stay(private: Path) -> None:
    made = federation(private, "ditto", {"lambda": "0.3"})
    w, own = START, dict.fromkeys(NAMES, START)
    for number in range(1, ROUNDS + 1):
        made.round()
        own = {k: descend(h, own[k], number, pull=0.3, to=w) for k, h in hospitals().items()}
        w = P @ trained(w, number)
    for name in NAMES:
        np.testing.assert_allclose(flat(made.personal(name)), own[name], rtol=0, atol=1e-6)
        assert set(weights.load(made.updates[name])) == {"b", "w"}


def test_fedbn_keeps_its_tensors_in_each_hospital(private: Path) -> None:
    made = federation(private, "fedbn", local=("b",))
    w, own = START[1:], dict.fromkeys(NAMES, START[:1])
    for number in range(1, ROUNDS + 1):
        made.round()
        y = {k: descend(h, np.concatenate([own[k], w]), number) for k, h in hospitals().items()}
        own = {k: v[:1] for k, v in y.items()}
        w = P @ np.stack([v[1:] for v in y.values()])
    assert set(weights.load(made.updates["a"])) == {"w"}
    np.testing.assert_allclose(flat(made.model), np.concatenate([START[:1], w]), rtol=0, atol=1e-6)
    for name in NAMES:
        np.testing.assert_allclose(flat(made.personal(name)), np.concatenate([own[name], w]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["fedamp", "heurfedamp"])
def test_attentive_messages_with_a_hospital_that_misses_a_round(private: Path, name: str) -> None:
    made = federation(private, name, {"sigma": "2", "alpha": "3"} if name == "fedamp" else {"sigma": "5"})
    prox = 0.1 if name == "fedamp" else 0.01
    models, u = np.tile(START, (len(NAMES), 1)), dict.fromkeys(NAMES, START)
    for number in range(1, ROUNDS + 1):
        absent = ("c",) if number == 3 else ()
        made.round(absent)
        for place, (k, h) in enumerate(hospitals().items()):
            if k not in absent:
                models[place] = descend(h, u[k], number, pull=0 if number == 1 else prox, to=u[k])
        u = dict(zip(NAMES, attention(name, models) @ models, strict=True))
    assert made.outcome
    for name_, path in made.outcome.personal.items():
        np.testing.assert_allclose(flat(path), u[name_], rtol=0, atol=1e-6)
    np.testing.assert_allclose(flat(made.personal("c")), models[2], rtol=0, atol=1e-6)
    np.testing.assert_allclose(flat(made.model), P @ models, rtol=0, atol=1e-6)


def attention(name: str, models: np.ndarray) -> np.ndarray:
    """xi by the paper's formulas, one pair at a time."""
    n = len(models)
    xi = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                distance = ((models[i] - models[j]) ** 2).sum()
                cosine = models[i] @ models[j] / np.linalg.norm(models[i]) / np.linalg.norm(models[j])
                xi[i, j] = 3 / 2 * np.exp(-distance / 2) if name == "fedamp" else np.exp(5 * cosine)
        if name == "fedamp":
            xi[i] *= min(1, 0.9 / max(xi[i].sum(), 1e-300))
        else:
            xi[i] *= (1 - 1 / n) / xi[i].sum()
        xi[i, i] = 1 - xi[i].sum()
    return xi


# --- robust rules ---------------------------------------------------------------------------------------------------


def files(folder: Path, rows: np.ndarray) -> tuple[Path, list[tuple[str, Path, int]]]:
    base = folder / "base"
    weights.save({"b": np.zeros(1, np.float32), "w": np.zeros(SIZE, np.float32)}, base)
    made = []
    for place, row in enumerate(rows):
        path = folder / f"update-{place}"
        weights.save({"b": row[:1].astype(np.float32), "w": row[1:].astype(np.float32)}, path)
        made.append((f"p{place}", path, 10 + place))
    return base, made


def krum_scores(rows: np.ndarray, f: int) -> np.ndarray:
    n = len(rows)
    d = [sorted(((rows[i] - rows[j]) ** 2).sum() for j in range(n) if j != i)[: n - f - 2] for i in range(n)]
    return np.array([sum(line) for line in d])


def robust_reference(name: str, rows: np.ndarray, f: int) -> np.ndarray:
    n = len(rows)
    match name:
        case "median":
            return np.array([np.median(column) for column in rows.T])
        case "trimmed-mean":
            return np.array([np.mean(sorted(column)[2 : n - 2]) for column in rows.T])
        case "krum":
            return rows[krum_scores(rows, f).argmin()]
        case "multi-krum":
            return rows[np.argsort(krum_scores(rows, f))[: n - f]].mean(axis=0)
        case "bulyan":
            left, chosen = list(rows), []
            while len(chosen) < n - 2 * f:
                m = len(left)
                near = [sorted(((a - b) ** 2).sum() for b in left if b is not a)[: max(1, m - f - 2)] for a in left]
                chosen.append(left.pop(int(np.argmin([sum(line) for line in near]))))
            columns = np.array(chosen).T
            return np.array([np.mean(sorted(c, key=lambda x, c=c: abs(x - np.median(c)))[: n - 4 * f]) for c in columns])
        case "norm-clipping":
            lengths = np.linalg.norm(rows, axis=1)
            scale = np.minimum(1, np.median(lengths) / lengths)
            shares = np.arange(10, 10 + n) / np.arange(10, 10 + n).sum()
            return (shares * scale) @ rows
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "krum", "multi-krum", "bulyan", "norm-clipping"])
def test_robust_rules_are_as_published_and_one_hostile_hospital_moves_them_little(private: Path, name: str) -> None:
    rows = np.random.default_rng(3).normal(size=(11, SIZE + 1)).astype(np.float32).astype(np.float64)
    rows[4] = 1e6
    base, updates = files(private, rows)
    outcome = aggregate(named(name)(), Start(base), updates, private)
    np.testing.assert_allclose(flat(outcome.model), robust_reference(name, rows, 1), rtol=1e-6, atol=1e-6)
    assert np.abs(flat(outcome.model)).max() < 5
    assert ("p4" in outcome.flagged) == (name not in ("median", "trimmed-mean"))
    plain = aggregate("fedavg", base, updates, private)
    assert np.abs(flat(plain.model)).max() > 1e4, "the mean is carried away"


def test_too_few_answers_for_the_proof_are_refused(private: Path) -> None:
    base, updates = files(private, np.ones((4, SIZE + 1)))
    with pytest.raises(Problem) as caught:
        aggregate(named("krum")(), Start(base), updates, private)
    assert "5 answers" in caught.value.document()["title"]


def test_bfloat16_is_averaged_too_and_rounded_to_the_nearest(private: Path) -> None:
    torch, save = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch").save_file
    dice = torch.Generator().manual_seed(1)
    parts = [torch.randn(17, generator=dice).to(torch.bfloat16) for _ in range(3)]
    for place, part in enumerate(parts):
        save({"w": part}, private / f"{place}")
    outcome = aggregate("fedavg", private / "0", [(f"p{n}", private / f"{n}", 1) for n in range(3)], private)
    from safetensors.torch import load_file

    exact = (sum(part.double() for part in parts) / 3).float().to(torch.bfloat16)
    assert torch.equal(load_file(outcome.model)["w"], exact)


# --- an algorithm of one's own ---------------------------------------------------------------------------------------


def test_an_algorithm_of_ones_own_registers_under_its_name(private: Path) -> None:
    @register
    class Midpoint(Algorithm):
        """The middle between the smallest and the largest value."""

        NAME = "midpoint"

        def combine(self, piece: Piece) -> np.ndarray:
            stack = piece.stack()
            middle: np.ndarray = (stack.min(axis=0) + stack.max(axis=0)) / 2
            return middle

    try:
        rows = np.random.default_rng(3).normal(size=(4, SIZE + 1)).astype(np.float32)
        base, updates = files(private, rows)
        found = flat(aggregate("midpoint", base, updates, private).model)
        np.testing.assert_allclose(found, (rows.min(axis=0) + rows.max(axis=0)) / 2, atol=1e-6)
    finally:
        del ALGORITHMS["midpoint"]


def test_a_state_that_was_left_gives_the_same_bytes_again(private: Path) -> None:
    for name in ("fedadam", "scaffold", "fedamp"):
        folder = private / name
        folder.mkdir()
        made = federation(folder, name)
        made.round()
        before = made.outcome
        made.round()
        sent = [(k, path, len(made.hospitals[k].y)) for k, path in made.updates.items()]
        assert before
        assert made.outcome
        again = folder / "again"
        again.mkdir()
        repeated = aggregate(named(name)(), Start(before.model, state=before.state, members=len(NAMES)), sent[::-1], again)
        assert repeated.model.read_bytes() == made.outcome.model.read_bytes()
        assert repeated.state
        assert made.outcome.state
        assert repeated.state.read_bytes() == made.outcome.state.read_bytes()
