"""The coordinator's decisions, as values: whatever happens, a federation ends, and nothing is decided twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmesh.contracts.data import ImageSchema
from medmesh.contracts.federation import RoundKind, SecurePhase
from medmesh.contracts.plan import EarlyStopping, Plan, SecureAggregation, TensorSignature
from medmesh.contracts.privacy import Privacy
from medmesh.federated.privacy.budget import rounds_within
from medmesh.learning.metrics import add, balanced_accuracy
from medmesh_federation.domain import Advance, Close, Drop, Move, Open, Round, Situation, Skip, State, Void, Wait, best, next_step, score

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOSPITALS = ("a", "b", "c", "d")
PLAN = Plan(
    name="m",
    purpose="test",
    initiator="person:li@platform",
    package="0" * 64,
    initial="1" * 64,
    framework="numpy",
    data=ImageSchema(modality="MR", image_size=8, classes=("x", "y")),
    signature=(TensorSignature(name="w", shape=(1,), dtype="F32"),),
    rounds=2,
    local_steps=1,
    batch_size=1,
    learning_rate="0.1",
    seed=1,
    participants=HOSPITALS,
    min_participants=2,
    accept_by=NOW,
    start_at=NOW,
    round_deadline_seconds=60,
    baseline=True,
)


def situation(**changed: object) -> Situation:
    values: dict[str, object] = {
        "state": State.RUNNING,
        "plan": PLAN,
        "approved": True,
        "participants": dict.fromkeys(HOSPITALS, "accepted"),
        "online": frozenset(HOSPITALS),
        "round": None,
        "voids": 0,
        "waiting_since": None,
        "stored": True,
        "now": NOW,
        **changed,
    }
    return Situation(**values)  # type: ignore[arg-type]


def step(s: Situation) -> object:
    return next_step(s, quorum_grace=100, max_voids=3)


def round_(**changed: object) -> Round:
    values: dict[str, object] = {
        "number": 1,
        "attempt": 1,
        "kind": RoundKind.TRAIN,
        "state": "open",
        "assigned": frozenset(HOSPITALS),
        "answered": frozenset(),
        "failed": frozenset(),
        "deadline": NOW + timedelta(seconds=60),
        **changed,
    }
    return Round(**values)  # type: ignore[arg-type]


def test_a_round_that_would_exceed_the_privacy_budget_is_not_begun() -> None:
    privacy = Privacy(unit="hospital", epsilon="1.7", delta="1e-5", clip="1", noise="4")
    plan = PLAN.model_copy(update={"privacy": privacy, "baseline": False, "rounds": 9})
    fits = rounds_within(plan)
    done = round_(number=3, state="committed")
    assert isinstance(step(situation(plan=plan, round=done, begun=fits - 1, trained=3)), Open)
    assert step(situation(plan=plan, round=done, begun=fits, trained=3)) == Move(State.COMPLETED, "privacy.budget")
    assert step(situation(plan=plan, round=done, begun=fits, trained=3, stored=False)) is None, "who hears of the model can fetch it"
    void = round_(number=1, state="void")
    assert step(situation(plan=plan, round=void, begun=fits)) == Move(State.FAILED, "privacy.budget"), "attempts count, too"
    assert step(situation(plan=plan, round=round_(number=9, state="committed"), begun=fits, trained=9)) == Move(State.COMPLETED)


def test_a_secure_sum_of_everybody_is_opened_without_asking_over_whom() -> None:
    plan = PLAN.model_copy(update={"secure": SecureAggregation(threshold=3), "baseline": False, "min_participants": 3})
    everybody = frozenset(HOSPITALS)
    came = {"phase": SecurePhase.VECTORS, "parties": everybody, "spoken": everybody, "answered": everybody, "whole": everybody}
    assert step(situation(plan=plan, round=round_(**came))) == Advance(SecurePhase.REVEAL, everybody)
    unsaid = round_(**{**came, "whole": frozenset(HOSPITALS[1:])})
    assert step(situation(plan=plan, round=unsaid)) == Advance(SecurePhase.SURVIVORS, everybody)
    left = frozenset(HOSPITALS[1:])
    fewer = round_(**{**came, "spoken": left, "answered": left, "deadline": NOW})
    assert step(situation(plan=plan, round=fewer)) == Advance(SecurePhase.SURVIVORS, left), "the list they signed has one more"


def test_who_fails_or_is_gone_is_dropped_from_a_secure_sum_unless_it_spoke() -> None:
    plan = PLAN.model_copy(update={"secure": SecureAggregation(threshold=3), "baseline": False, "min_participants": 3})
    for phase in (SecurePhase.KEYS, SecurePhase.VECTORS, SecurePhase.REVEAL):
        current = round_(phase=phase, parties=frozenset(HOSPITALS), spoken=frozenset("a"), failed=frozenset("ac"))
        assert step(situation(plan=plan, round=current, online=frozenset("bc"))) == Drop({"c": "failed", "d": "lease"})


def test_a_secure_sum_that_stays_closed_skips_its_round() -> None:
    plan = PLAN.model_copy(update={"secure": SecureAggregation(threshold=3), "baseline": False, "min_participants": 3})
    late = {"phase": SecurePhase.REVEAL, "parties": frozenset(HOSPITALS), "spoken": frozenset("ab"), "deadline": NOW}
    assert step(situation(plan=plan, round=round_(**late))) == Skip()
    assert step(situation(plan=plan, round=round_(**{**late, "phase": SecurePhase.SURVIVORS}))) == Skip()
    assert step(situation(plan=plan, round=round_(**{**late, "phase": SecurePhase.VECTORS}))) == Void(), "nobody signed a list yet"
    skipped = step(situation(plan=plan, round=round_(state="skipped"), voids=1))
    assert isinstance(skipped, Open) and (skipped.number, skipped.attempt) == (2, 1)
    last = round_(number=2, state="skipped")
    assert step(situation(plan=plan, round=last, trained=1, skipped=1)) == Move(State.COMPLETED, "secure.unopened")
    assert step(situation(plan=plan, round=last, trained=0, skipped=2)) == Move(State.FAILED, "secure.unopened")
    evaluated = plan.model_copy(update={"evaluate_every": 1, "stop": EarlyStopping(patience=1)})
    last = round_(number=3, state="skipped", kind=RoundKind.EVALUATE)
    assert step(situation(plan=evaluated, round=last, trained=2, skipped=1)) == Move(State.COMPLETED, "secure.unopened"), "not evaluated"
    last = round_(number=3, state="committed", kind=RoundKind.EVALUATE)
    assert step(situation(plan=evaluated, round=last, trained=1)) == Move(State.COMPLETED), "it ended early, and no sum stayed closed"
    assert step(situation(plan=plan, round=round_(state="skipped"), voids=3)) == Move(State.FAILED, "federation.void")
    assert step(situation(plan=plan, round=round_(number=2, state="committed"), trained=2)) == Move(State.COMPLETED)


def test_the_order_of_rounds() -> None:
    first = step(situation())
    assert first == Open(1, 1, RoundKind.TRAIN, frozenset(HOSPITALS), frozenset())
    for number, kind in ((2, RoundKind.TRAIN), (3, RoundKind.BASELINE), (4, RoundKind.EVALUATE)):
        after = step(situation(round=round_(number=number - 1, state="committed")))
        assert isinstance(after, Open)
        assert (after.number, after.kind) == (number, kind)
    assert step(situation(round=round_(number=4, state="committed"))) == Move(State.COMPLETED)
    assert step(situation(round=round_(number=4, state="committed"), stored=False)) is None


def test_training_ends_when_nothing_has_got_better_for_a_while_and_the_rest_follows() -> None:
    stop = EarlyStopping(patience=2, min_delta="0.01")
    plan = PLAN.model_copy(update={"rounds": 9, "evaluate_every": 1, "stop": stop, "baseline": False})
    fifth = round_(number=5, state="committed")

    def opens(*scores: str) -> object:
        return step(situation(plan=plan, round=fifth, scores={n: Fraction(one) for n, one in enumerate(scores)}))

    on, over = (
        Open(6, 1, RoundKind.TRAIN, frozenset(HOSPITALS), frozenset()),
        Open(10, 1, RoundKind.EVALUATE, frozenset(HOSPITALS), frozenset()),
    )
    assert opens() == opens("0.5", "0.6", "0.6") == opens("0.5", "0.6", "0.7", "0.7") == on
    assert opens("0.5", "0.7", "0.7", "0.71") == over, "by 0.01 and no more"
    assert opens("0.5", "0.7", "0.7", "0.72") == on
    last = round_(number=9, state="committed")
    assert step(situation(plan=plan, round=last, scores={})) == over
    assert step(situation(plan=plan, round=round_(number=10, kind=RoundKind.EVALUATE, state="committed"))) == Move(State.COMPLETED)
    assert best(stop, {0: Fraction(1, 2), 3: Fraction(7, 10), 4: Fraction(71, 100)}) == 3


@given(st.lists(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_score_is_that_of_all_hospitals_together(tables: list[list[list[int]]]) -> None:
    together = add(tables)
    assert float(score("balanced_accuracy", tables)) == pytest.approx(balanced_accuracy(together))
    assert float(score("accuracy", tables)) == pytest.approx(np.trace(together) / together.sum() if together.sum() else 0)


def test_nothing_starts_without_approval_time_and_quorum() -> None:
    assert step(situation(state=State.READY, approved=False)) is None
    assert step(situation(state=State.READY)) == Move(State.QUEUED)
    assert step(situation(state=State.QUEUED, now=NOW - timedelta(seconds=1))) is None
    assert step(situation(state=State.QUEUED, online=frozenset("a"))) is None
    assert step(situation(state=State.QUEUED)) == Move(State.RUNNING)
    early = situation(state=State.INVITING, participants={"a": "accepted", "b": "invited"}, now=NOW - timedelta(seconds=1))
    assert step(early) is None
    assert step(situation(state=State.INVITING, participants={"a": "accepted", "b": "invited"})) == Move(State.FAILED, "federation.quorum")


def test_leases_and_deadlines() -> None:
    answered = frozenset("abc")
    assert step(situation(round=round_(answered=answered))) is None
    assert step(situation(round=round_(answered=answered), online=frozenset("abc"))) == Drop({"d": "lease"})
    gone = dict.fromkeys("abc", "accepted") | {"d": "dropped"}
    assert step(situation(round=round_(answered=answered), participants=gone)) == Close()
    assert step(situation(round=round_(answered=answered), now=NOW + timedelta(seconds=61))) == Close()
    assert step(situation(round=round_(answered=frozenset("a")), now=NOW + timedelta(seconds=61))) == Void()
    assert step(situation(round=round_(failed=frozenset("d")))) == Drop({"d": "failed"})
    back = step(situation(round=round_(state="committed"), participants=gone))
    assert isinstance(back, Open)
    assert back.rejoined == frozenset("d")
    assert step(situation(round=round_(state="void"), voids=3)) == Move(State.FAILED, "federation.void")
    assert step(situation(online=frozenset("a"))) == Wait()
    long_ago = NOW - timedelta(seconds=101)
    assert step(situation(online=frozenset("a"), waiting_since=long_ago)) == Move(State.FAILED, "federation.quorum_lost")


subsets = st.frozensets(st.sampled_from(HOSPITALS))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(State)),
    st.dictionaries(st.sampled_from(HOSPITALS), st.sampled_from(["invited", "accepted", "declined", "dropped"]), min_size=4),
    subsets,
    subsets,
    subsets,
    st.sampled_from(["open", "committed", "void"]),
    st.integers(-100, 200),
)
def test_every_decision_is_one_the_situation_allows(
    state: State, people: dict[str, str], online: frozenset[str], answered: frozenset[str], failed: frozenset[str], of: str, late: int
) -> None:
    current = round_(answered=answered, failed=failed - answered, state=of)
    now = NOW + timedelta(seconds=late)
    decided = step(situation(state=state, participants=people, online=online, round=current, now=now))
    if state in (State.COMPLETED, State.FAILED, State.CANCELLED):
        assert decided is None
    match decided:
        case Close():
            assert len(answered) >= PLAN.min_participants
        case Open(assigned=assigned):
            assert assigned <= online
            assert len(assigned) >= PLAN.min_participants
            assert all(people[h] in ("accepted", "dropped") for h in assigned)
        case Drop(hospitals=hospitals):
            assert not set(hospitals) & answered
        case Void():
            assert now >= current.deadline
        case _:
            pass
