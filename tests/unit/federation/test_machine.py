"""A federation as a machine under random hospitals, clocks and losses: no illegal transition, no deadlock, always an end."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.unit.federation.test_domain import HOSPITALS, NOW, PLAN

from medmesh_federation.domain import BEFORE, Close, Drop, Lapse, Move, Open, Round, Situation, State, Void, Wait, next_step

GRACE, VOIDS = 100.0, 3
LEGAL = {
    State.INVITING: {State.READY, State.FAILED},
    State.READY: {State.QUEUED, State.FAILED},
    State.QUEUED: {State.RUNNING, State.FAILED},
    State.RUNNING: {State.COMPLETED, State.FAILED},
}
ENDED = (State.COMPLETED, State.FAILED, State.CANCELLED)
hospital = st.sampled_from(HOSPITALS)


class Federation(RuleBasedStateMachine):
    """What the coordinator's tables hold, changed by steps as `steps.py` does it and by whatever hospitals do."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.now, self.approved, self.stored = State.INVITING, NOW - timedelta(seconds=50), False, True
        self.lapsed = False
        self.people = dict.fromkeys(HOSPITALS, "invited")
        self.online: set[str] = set()
        self.round: Round | None = None
        self.voids = 0
        self.waiting: datetime | None = None
        self.committed: list[int] = []
        self.hopeless = False
        """Of what hospitals give now no model can be made."""
        self.unfit = ""
        """Of what this one gives none can, even alone."""

    def situation(self) -> Situation:
        people, online = dict(self.people), frozenset(self.online)
        about = (self.state, PLAN, self.approved, people, online, self.round, self.voids, self.waiting, self.stored, self.now)
        return Situation(*about, lapsed=self.lapsed)

    def settle(self) -> None:
        """As the coordinator: steps until nothing is due. More than a handful at one moment would be a loop without an end."""
        for _ in range(50):
            step = next_step(self.situation(), quorum_grace=GRACE, max_voids=VOIDS)
            if step is None:
                return
            self.apply(step)
            if isinstance(step, Wait):
                return
        raise AssertionError("the coordinator never rests")

    def apply(self, step: object) -> None:
        current = self.round
        match step:
            case Move(to=to):
                assert to in LEGAL[self.state], (self.state, to)
                if self.state is State.INVITING:
                    self.people |= {who: "expired" for who, state in self.people.items() if state == "invited"}
                self.state = to
            case Lapse():
                assert self.approved
                self.unapprove()
            case Open(number, attempt, kind, assigned, back):
                assert current is None or current.state != "open"
                assert (number, attempt) > ((current.number, current.attempt) if current else (0, 0))
                self.people |= dict.fromkeys(back, "accepted")
                self.waiting = None
                empty: frozenset[str] = frozenset()
                deadline = self.now + timedelta(seconds=PLAN.round_deadline_seconds)
                self.round = Round(number, attempt, kind, "open", assigned, empty, empty, deadline)
            case Drop(hospitals=gone):
                assert all(self.people[h] == "accepted" for h in gone)
                self.people |= dict.fromkeys(gone, "dropped")
            case Close():
                assert current is not None
                assert len(current.answered) >= PLAN.min_participants
                if self.unfit in current.answered:
                    self.taken_out(self.unfit)
                    return
                if self.hopeless:
                    self.voids += 1
                    self.close("void")
                    return
                self.committed.append(current.number)
                self.voids = 0
                self.close("committed")
            case Void():
                self.voids += 1
                self.close("void")
            case Wait():
                self.waiting = self.now

    def close(self, state: str) -> None:
        r = self.round
        assert r is not None
        assert r.state == "open"
        self.round = Round(r.number, r.attempt, r.kind, state, r.assigned, r.answered, r.failed, r.deadline)

    def answered(self, who: str, *, failed: bool) -> None:
        r = self.round
        if self.state is State.RUNNING and r is not None and r.state == "open" and who in r.assigned - r.answered:
            done, bad = (r.answered, r.failed | {who}) if failed else (r.answered | {who}, r.failed - {who})
            self.round = Round(r.number, r.attempt, r.kind, r.state, r.assigned, done, bad, r.deadline)

    def taken_out(self, who: str) -> None:
        r = self.round
        assert r is not None
        self.round = Round(r.number, r.attempt, r.kind, r.state, r.assigned, r.answered - {who}, r.failed | {who}, r.deadline)

    @rule(hopeless=st.booleans(), unfit=st.sampled_from(("", *HOSPITALS)))
    def makes_no_model(self, hopeless: bool, unfit: str) -> None:
        self.hopeless, self.unfit = hopeless, unfit

    @rule(who=hospital, accept=st.booleans())
    def responds(self, who: str, accept: bool) -> None:
        if self.state is State.INVITING and self.people[who] == "invited":
            self.people[who] = "accepted" if accept else "declined"
        self.settle()

    @rule()
    def approve(self) -> None:
        self.approved = True
        self.settle()

    def unapprove(self) -> None:
        self.approved = self.lapsed = False
        self.state = State.READY if self.state is State.QUEUED else self.state

    @rule(said=st.booleans())
    def approval_ends(self, said: bool) -> None:
        if self.approved and self.state in BEFORE:
            if said:
                self.unapprove()
            else:
                self.lapsed = True
        self.settle()
        assert not self.lapsed
        assert self.approved or self.state is not State.QUEUED, "it waits for its turn without an approval"

    @rule(who=hospital, here=st.booleans())
    def lease(self, who: str, here: bool) -> None:
        (self.online.add if here else self.online.discard)(who)
        self.settle()

    @rule(who=hospital, failed=st.booleans())
    def answers(self, who: str, failed: bool) -> None:
        self.answered(who, failed=failed)
        self.settle()

    @rule(who=hospital)
    def withdraws(self, who: str) -> None:
        if self.people[who] in ("accepted", "dropped"):
            self.people[who] = "withdrawn"
            r = self.round
            if r is not None and r.state == "open":
                self.round = Round(r.number, r.attempt, r.kind, r.state, r.assigned, r.answered - {who}, r.failed - {who}, r.deadline)
        self.settle()

    @rule(seconds=st.integers(1, 120))
    def later(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        self.settle()

    @rule(stored=st.booleans())
    def store(self, stored: bool) -> None:
        self.stored = stored
        self.settle()

    @invariant()
    def rounds_commit_once_and_in_order(self) -> None:
        assert self.committed == list(range(1, len(self.committed) + 1))
        if self.state is State.COMPLETED:
            assert len(self.committed) == PLAN.rounds + 2

    @invariant()
    def nobody_waits_for_who_will_not_answer(self) -> None:
        r = self.round
        if self.state is State.RUNNING and r is not None and r.state == "open":
            awaited = {h for h in r.assigned - r.answered if self.people[h] == "accepted"}
            assert awaited <= self.online - r.failed

    def teardown(self) -> None:
        """From wherever chance left it: approved, stored, and with time, it ends; with whoever is left answering, or nobody."""
        self.approved, self.lapsed, self.stored = True, False, True
        for _ in range(60):
            for who in HOSPITALS:
                if who in self.online:
                    self.answered(who, failed=False)
            self.now += timedelta(seconds=61)
            self.settle()
            if self.state in ENDED:
                return
            if self.state is State.QUEUED:  # waits for hospitals as long as people let it: they come
                self.online |= {h for h in HOSPITALS if self.people[h] == "accepted"}
        raise AssertionError(f"never ends: {self.situation()}")


TestFederation = Federation.TestCase
TestFederation.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
