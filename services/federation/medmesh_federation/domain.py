"""The rules of a federation as one pure function: from what is known to the one thing to do next.

Federation: inviting -> ready -> queued -> running <-> paused, running -> completed | failed | cancelled; queued -> ready without its
approval.
Participant: invited -> accepted | declined; accepted <-> dropped; dropped -> excluded;
accepted | dropped -> quarantined -> dropped; all of these -> withdrawn.
Round: open -> committed | void | skipped (a secure sum that stayed closed: its number is spent).
Rounds 1..R train; with a baseline R+1 trains everybody alone; the last evaluates all
models. Where training ends early, the rounds up to R are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from fractions import Fraction

from medmesh.contracts.federation import CandidateModel, RoundKind, SecurePhase
from medmesh.contracts.plan import EarlyStopping, Plan
from medmesh.federated.plan import after_training
from medmesh.federated.privacy.budget import affordable


class State(StrEnum):
    """Of a federation."""

    INVITING = "inviting"
    READY = "ready"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


BEFORE = (State.INVITING, State.READY, State.QUEUED)
"""It has not started."""
OPEN_STATES = (*BEFORE, State.RUNNING, State.PAUSED)


@dataclass(frozen=True, slots=True)
class Round:
    """The newest round. `answered` gave what was asked; `failed` said that they cannot."""

    number: int
    attempt: int
    kind: RoundKind
    state: str
    assigned: frozenset[str]
    answered: frozenset[str]
    failed: frozenset[str]
    deadline: datetime
    phase: SecurePhase | None = None
    """Of a secure sum: what is collected now, of whom, and who gave it."""
    parties: frozenset[str] = frozenset()
    spoken: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()
    """Who signed the list of all whose masks are in its vector: where nobody's is missing, nobody is asked for another."""
    models: tuple[CandidateModel, ...] = ()
    """What is evaluated."""
    lost: frozenset[str] = frozenset()
    """Whose answer is gone and asked for again; they are waited for like who has not answered."""
    late: frozenset[str] = frozenset()
    """Whose update of an earlier round counts in this one."""

    @property
    def here(self) -> frozenset[str]:
        """Whose updates it would be made of now."""
        return self.answered | self.late


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything a decision needs. `participants` maps hospital to its state, `online` holds a lease now."""

    state: State
    plan: Plan
    approved: bool
    participants: Mapping[str, str]
    online: frozenset[str]
    round: Round | None
    voids: int
    waiting_since: datetime | None
    stored: bool
    """No round is open, and every committed model is in the kept store."""
    now: datetime
    lapsed: bool = False
    """It was approved, and the approval's time is over."""
    blocked: bool = False
    """By a quota: too many others run."""
    scores: Mapping[int, Fraction] = field(default_factory=dict)
    """Training round to how its model did, as far as it was evaluated; 0 for the first weights. Only where the plan can stop early."""
    begun: int = 0
    """Attempts at training rounds that the privacy ledger has; like the two below looked up where no round is open."""
    trained: int = 0
    """Training rounds that were committed; only where a plan's privacy or secure sums may end it early."""
    skipped: int = 0
    """Rounds whose secure sum stayed closed."""
    busy: frozenset[str] = frozenset()
    """At work on an earlier round, with an update that would count in the next: where rounds do not wait for the slow."""

    def those(self, state: str) -> frozenset[str]:
        """Hospitals in a state."""
        return frozenset(hospital for hospital, now in self.participants.items() if now == state)


@dataclass(frozen=True, slots=True)
class Move:
    """A change of state without a round."""

    to: State
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Open:
    """Open a round for `assigned`; `rejoined` come back with it."""

    number: int
    attempt: int
    kind: RoundKind
    assigned: frozenset[str]
    rejoined: frozenset[str]


@dataclass(frozen=True, slots=True)
class Drop:
    """These lost their lease or failed: the others go on."""

    hospitals: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Close:
    """Everybody answered who will: aggregate and commit."""


@dataclass(frozen=True, slots=True)
class Advance:
    """A phase of a secure sum is complete: those who gave what it asked go on to the next."""

    to: SecurePhase
    parties: frozenset[str]


@dataclass(frozen=True, slots=True)
class Void:
    """Too few answers before the deadline: the round is tried again under a new attempt."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A secure sum stays closed. Who signed a list of survivors opens no other sum of that round: it goes on with the next number."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Too few hospitals are there to open a round, or to close the open one: wait, and fail when that takes too long."""


@dataclass(frozen=True, slots=True)
class Lapse:
    """The approval's time is over before the start: another is needed."""


Step = Move | Lapse | Open | Drop | Advance | Close | Void | Skip | Wait
OVER = ("committed", "skipped")
"""Of a round: the next has another number."""
PHASES = tuple(SecurePhase)


def kind_of(plan: Plan, number: int) -> RoundKind | None:
    """What a round does; None after the last."""
    if number <= plan.rounds:
        return RoundKind.TRAIN
    after = after_training(plan)
    return after[number - plan.rounds - 1] if number - plan.rounds <= len(after) else None


Counts = Sequence[Sequence[int]]


def score(metric: str, tables: Iterable[Counts]) -> Fraction:
    """A metric over all hospitals together: exact, so that it is decided the same way again."""
    together = [[sum(cell) for cell in zip(*lines, strict=True)] for lines in zip(*tables, strict=True)]
    lines = [(line[true], sum(line)) for true, line in enumerate(together) if sum(line)]
    if not lines:
        return Fraction(0)
    if metric == "accuracy":
        return Fraction(sum(right for right, _ in lines), sum(of for _, of in lines))
    return sum((Fraction(right, of) for right, of in lines), Fraction(0)) / len(lines)


def best(stop: EarlyStopping, scores: Mapping[int, Fraction]) -> int | None:
    """The round with the best model: a later one only counts as better when it is so by more than `min_delta`."""
    found: int | None = None
    for number in sorted(scores):
        if found is None or scores[number] > scores[found] + Fraction(stop.min_delta):
            found = number
    return found


def stopped(plan: Plan, scores: Mapping[int, Fraction]) -> bool:
    """Whether training is over before its last round."""
    if plan.stop is None or (since := best(plan.stop, scores)) is None:
        return False
    return sum(number > since for number in scores) >= plan.stop.patience


def next_step(s: Situation, *, quorum_grace: float, max_voids: int) -> Step | None:
    """What to do now; None to wait for something to happen."""
    match s.state:
        case State.INVITING | State.READY | State.QUEUED if s.lapsed:
            return Lapse()
        case State.INVITING:
            return _inviting(s)
        case State.READY | State.QUEUED if len(s.those("accepted")) < s.plan.min_participants:
            return Move(State.FAILED, "federation.quorum")  # some withdrew before it began
        case State.READY:
            return Move(State.QUEUED) if s.approved else None
        case State.QUEUED:
            ready = s.now >= s.plan.start_at and len(s.online & s.those("accepted")) >= s.plan.min_participants
            return Move(State.RUNNING) if ready and not s.blocked else None
        case State.RUNNING:
            return _running(s, quorum_grace, max_voids)
        case _:
            return None


def _inviting(s: Situation) -> Step | None:
    if s.those("invited") and s.now < s.plan.accept_by:
        return None
    if len(s.those("accepted")) >= s.plan.min_participants:
        return Move(State.READY)
    return Move(State.FAILED, "federation.quorum")


def absent(participants: Mapping[str, str], online: frozenset[str]) -> frozenset[str]:
    """Who takes part, and is not there."""
    return frozenset(one for one, state in participants.items() if state in ("accepted", "dropped") and one not in online)


def fails_at(
    since: datetime, deadline: datetime | None, quorum_grace: float, plan: Plan, participants: Mapping[str, str], online: frozenset[str]
) -> datetime | None:
    """When it fails if nobody comes back, waiting since then: not before the open round's deadline. None where those who are there are
    enough with those in quarantine, about whom people decide."""
    taking_part = frozenset(one for one, state in participants.items() if state in ("accepted", "dropped", "quarantined"))
    if len(taking_part - absent(participants, online)) >= plan.min_participants:
        return None
    return max(since + timedelta(seconds=quorum_grace), deadline or since)


def _running(s: Situation, quorum_grace: float, max_voids: int) -> Step | None:
    current = s.round
    last = current is not None and current.state in OVER and kind_of(s.plan, current.number + 1) is None
    if not last and len(s.those("accepted") | s.those("dropped") | s.those("quarantined")) < s.plan.min_participants:
        return Move(State.FAILED, "federation.quorum_lost")  # too many left for good
    if current is None or current.state in (*OVER, "void"):
        return _open_next(s, quorum_grace, max_voids)
    if current.phase is None:
        step, given, of, needed = _plain(s, current), current.here, current.assigned, s.plan.min_participants
    else:
        assert s.plan.secure is not None
        needed = s.plan.secure.threshold
        step, given, of = _secure(s, current, current.phase, needed), current.spoken, current.parties
    # The quorum is lost where who gave an answer and who still may are too few. The round stays open: an answer that comes all the same
    # counts, and who is back is in the next attempt.
    lost = len(given | (of & s.those("accepted"))) < needed
    return Wait() if step is None and lost and s.waiting_since is None else step


def _plain(s: Situation, current: Round) -> Step | None:
    missing = current.assigned - current.answered
    gone = {h: "lease" for h in missing - s.online if s.participants.get(h) == "accepted"}
    gone |= {h: "failed" for h in missing & current.failed if s.participants.get(h) == "accepted"}
    if gone:
        return Drop(gone)
    waiting = frozenset(h for h in missing if s.participants.get(h) == "accepted")
    if s.plan.pace is not None and current.kind is RoundKind.TRAIN and current.answered and len(current.here) >= s.plan.pace.quorum:
        return Close()
    enough = len(current.here) >= s.plan.min_participants
    if enough and (not waiting or s.now >= current.deadline):
        return Close()
    if s.now >= current.deadline:
        return Void()
    return None


def _secure(s: Situation, current: Round, phase: SecurePhase, threshold: int) -> Step | None:
    """As for any round, of those still in it."""
    missing = current.parties - current.spoken
    accepted = s.those("accepted")
    gone = dict.fromkeys((missing & accepted) - s.online, "lease") | dict.fromkeys(missing & accepted & current.failed, "failed")
    if gone:
        return Drop(gone)
    over = s.now >= current.deadline
    if phase is SecurePhase.REVEAL and current.lost:
        return Skip() if over else None  # their masks are in the others' vectors
    if len(current.spoken) >= threshold and (not missing & accepted or over):
        if phase is SecurePhase.VECTORS and current.parties <= current.spoken & current.whole:
            return Advance(SecurePhase.REVEAL, current.spoken)
        return Close() if phase is SecurePhase.REVEAL else Advance(PHASES[PHASES.index(phase) + 1], current.spoken)
    if over:
        return Skip() if phase in (SecurePhase.SURVIVORS, SecurePhase.REVEAL) else Void()
    return None


def _open_next(s: Situation, quorum_grace: float, max_voids: int) -> Step | None:
    current = s.round
    number = 1 if current is None else current.number + (current.state in OVER)
    if number <= s.plan.rounds and stopped(s.plan, s.scores):
        number = s.plan.rounds + 1
    kind = kind_of(s.plan, number)
    if kind is None:
        # Whoever hears of the final model must be able to fetch it for good.
        if s.skipped:
            return _ended(s, "secure.unopened")
        return Move(State.COMPLETED) if s.stored else None
    if kind is RoundKind.TRAIN and not affordable(s.plan, s.begun + 1):
        return _ended(s, "privacy.budget")
    if s.voids >= max_voids:
        return Move(State.FAILED, "federation.void")
    back = s.online & s.those("dropped")
    assigned = ((s.online & s.those("accepted")) - (s.busy if kind is RoundKind.TRAIN else frozenset())) | back
    if len(assigned) < s.plan.min_participants:
        people_decide = len(assigned | s.those("quarantined")) >= s.plan.min_participants
        if not people_decide and s.waiting_since is not None and (s.now - s.waiting_since).total_seconds() > quorum_grace:
            return Move(State.FAILED, "federation.quorum_lost")
        return Wait() if s.waiting_since is None else None
    attempt = current.attempt + 1 if current is not None and current.state == "void" else 1
    return Open(number, attempt, kind, assigned, back)


def _ended(s: Situation, reason: str) -> Step | None:
    """Before its last round: with the last committed model, or with none."""
    if s.trained == 0:
        return Move(State.FAILED, reason)
    return Move(State.COMPLETED, reason) if s.stored else None
