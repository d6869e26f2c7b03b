"""What a federation's view tells: how its models did, where its time went, and how long it will take. Values from values."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from medmesh.contracts.federation import AnswerView, FederationView, RoundView
from medmesh.contracts.plan import Plan
from medmesh.federated.plan import after_training

ENDED = ("completed", "failed", "cancelled")
GLOBAL, PERSONAL = "federated", "personal"
"""Names of the federation's model, and of the one that each hospital made for itself."""


PARTIAL = (
    "nothing was counted of some class there: the mean is over the others, and a model that always answers one of them may have 1",
    "该处某一类别没有可计数的留出样本：数值仅为其余类别的平均，总是回答其中一类的模型也可能得 1",
)
"""What the mark at a number says (English, Chinese): balanced accuracy over fewer classes than the plan has."""


class Cell(NamedTuple):
    """Balanced accuracy of `model` at `hospital` (all together when empty) with a 95 % interval over `samples`. `missing` classes had none
    there: the number is of the others alone, and no measure of a model that has to tell them apart."""

    model: str
    hospital: str
    value: float
    low: float
    high: float
    samples: int
    missing: int = 0


class Gain(NamedTuple):
    """What its own model is better by at `hospital` than the federation's, in balanced accuracy, with a 95 % interval."""

    hospital: str
    federated: float
    personal: float
    difference: float
    low: float
    high: float
    missing: int = 0


class Point(NamedTuple):
    """How the model did that training round `round` made (0: the first weights), at the hospitals of `samples` together."""

    round: int
    value: float
    low: float
    high: float
    samples: int


class Split(NamedTuple):
    """Where the seconds of a round went: the longest of any hospital for each kind of work, and the platform's. They overlap where
    hospitals differ, so that `rest` (waiting, messages, the database) is never less than nothing."""

    fetch: float
    evaluate: float
    train: float
    store: float
    send: float
    aggregate: float
    rest: float


def last_round(plan: Plan) -> int:
    """The number of the last round: training alone and the evaluation at the end are rounds of their own."""
    return plan.rounds + len(after_training(plan))


def _cell(model: str, hospital: str, tables: Iterable[object], steps: Sequence[Sequence[int]]) -> Cell:
    from medmesh.learning.metrics import add, balanced_accuracy, interval, missing  # numpy: not before there is something to count

    given = list(tables)
    counts = add(given)  # type: ignore[arg-type]
    low, high = interval(given, steps=steps)  # type: ignore[arg-type]
    return Cell(model, hospital, balanced_accuracy(counts), low, high, int(counts.sum()), missing(counts))


def cross_site(view: FederationView) -> list[Cell]:
    """Every model at every hospital and over all of them: `federated` is the global model, `personal` each hospital's own, the others were
    trained alone by the hospital of their name. Intervals (`medmesh.learning.metrics.interval`) come from counts and take samples as
    independent: a bootstrap by patient needs the samples, which do not leave the hospital."""
    found = []
    for model in sorted({e.name for e in view.evaluation}, key=lambda name: (name != GLOBAL, name)):
        tables = {e.hospital: e.counts for e in view.evaluation if e.name == model}
        found += [_cell(model, hospital, [table], [_steps(view, hospital)]) for hospital, table in sorted(tables.items()) if hospital]
        found.append(_cell(model, "", tables.values(), [_steps(view, hospital) for hospital in tables]))
    return found


def gains(view: FederationView) -> list[Gain]:
    """Personal against global, hospital by hospital (all together, with an empty name, where only sums are known), where the algorithm made
    personal models and somebody was counted. Both were counted on the same samples; the interval takes the two as independent, because
    which samples they have in common is not told: it is rather too wide."""
    from medmesh.learning.metrics import balanced_accuracy, difference, missing

    tables = {(e.name, e.hospital): e.counts for e in view.evaluation}
    found = []
    for hospital in sorted(hospital for name, hospital in tables if name == PERSONAL):
        theirs, ours = tables[PERSONAL, hospital], tables.get((GLOBAL, hospital), ())
        if not all(any(map(any, table)) for table in (ours, theirs)):
            continue
        low, high = difference(theirs, ours, steps=[_steps(view, hospital)])
        a, b = balanced_accuracy(ours), balanced_accuracy(theirs)
        found.append(Gain(hospital, a, b, b - a, low, high, missing(ours)))
    return found


def _steps(view: FederationView, hospital: str) -> list[int]:
    """To which multiple the counts of a hospital were rounded, by the plan or by its own policy when it accepted; without a name of each
    hospital in the sum that the last evaluation opened."""
    if hospital:
        return _rounded(view, [hospital])
    sums = [one for one in view.rounds if one.kind == "evaluate" and one.sum is not None]
    return _summed(view, sums[-1]) if sums else [view.plan.small_cell]


def _rounded(view: FederationView, hospitals: Iterable[str]) -> list[int]:
    own = {one.hospital: one.small_cell for one in view.participants}
    return [max(view.plan.small_cell, own.get(hospital, 0)) for hospital in hospitals]


def _summed(view: FederationView, one: RoundView) -> list[int]:
    """Of each hospital in the sum of a round; who they are is known by who answered."""
    many = one.sum.samples if one.kind == "evaluate" and one.sum is not None else len(counted(one))
    found = _rounded(view, (answer.hospital for answer in counted(one)))
    return (found + [view.plan.small_cell] * many)[:many]


def counted(one: RoundView) -> tuple[AnswerView, ...]:
    """Answers that are part of a round's model."""
    return tuple(answer for answer in one.answers if not answer.late and not answer.excluded)


def trained(view: FederationView) -> list[RoundView]:
    """The committed training rounds, in order."""
    return sorted((r for r in view.rounds if r.kind == "train" and r.state == "committed" and not r.undone), key=lambda one: one.round)


def undone(view: FederationView) -> list[int]:
    """The training rounds that were committed and rolled back, in order."""
    return sorted(one.round for one in view.rounds if one.undone)


def began_with(view: FederationView, one: RoundView) -> int:
    """The training round whose model a round began with, 0 for the first weights: not the one before it after a roll-back, an early stop or
    a sum that stayed closed."""
    made = [r.round for r in view.rounds if r.kind == "train" and r.model is not None and r.model == one.base and r.round < one.round]
    return max(made) if made else 0 if one.base.sha256 == view.plan.initial else one.round - 1


def curve(view: FederationView) -> list[Point]:
    """How the global model did while it trained: the round after it brought the counts. The final model's are those of `cross_site`."""
    found, before = [], 0
    for one in trained(view):
        last, before = before, one.round
        told = {answer.hospital: answer.counts for answer in counted(one) if answer.counts is not None}
        tables, steps = list(told.values()), [[step] for step in _rounded(view, told)]
        if one.sum is not None and one.sum.counts is not None:
            tables, steps = [one.sum.counts], [_summed(view, one)]
        if tables:
            cell = _cell(GLOBAL, "", tables, steps)
            found.append(Point(last, cell.value, cell.low, cell.high, cell.samples))
    return found


def kept_round(view: FederationView) -> int | None:
    """The training round whose model is the federation's: not the last where training ended early. None before there is one."""
    if view.model is None:
        return None
    made = [one.round for one in trained(view) if one.model == view.model]
    return max(made) if made else 0 if trained(view) and trained(view)[0].base == view.model else None


def split(one: RoundView) -> Split | None:
    """Where a closed round's time went; None where hospitals said nothing of theirs."""
    given = [answer.milliseconds for answer in counted(one) if answer.milliseconds]
    if one.closed is None or not given:
        return None
    longest = {work: max(said.get(work, 0) for said in given) / 1000 for work in ("fetch", "evaluate", "train", "store", "send")}
    aggregate = (one.aggregate_milliseconds or 0) / 1000
    rest = max(0.0, (one.closed - one.opened).total_seconds() - sum(longest.values()) - aggregate)
    return Split(**longest, aggregate=aggregate, rest=rest)


def remaining(view: FederationView, now: datetime | None = None) -> float | None:
    """Seconds left until the last round is over, from the median round so far; None where nothing can be said. A federation that may stop
    early takes no longer than this. Training alone takes the steps of all rounds at once."""
    done = [one for one in trained(view) if one.closed is not None]
    if not done or view.state in ENDED:
        return None
    usual = statistics.median((one.closed - one.opened).total_seconds() for one in done if one.closed)
    training = statistics.median(found.train if (found := split(one)) else usual for one in done)
    length = {"train": usual, "baseline": usual + (view.plan.rounds - 1) * training, "evaluate": usual}
    newest = max((one.round for one in view.rounds if one.state == "committed"), default=0)
    kinds = ["train"] * view.plan.rounds + [str(kind) for kind in after_training(view.plan)]
    left = sum(length[kind] for kind in kinds[newest:])
    running = view.rounds[-1] if view.rounds and view.rounds[-1].state == "open" else None
    if running is not None:
        left -= min(length[running.kind], max(0.0, ((now or datetime.now(UTC)) - running.opened).total_seconds()))
    return max(0.0, left)
