"""What hospitals answer in a round: who may, whether it is in time, and that each counts once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, case, exists, func, select, type_coerce
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.federation import RoundKind
from medmesh.contracts.plan import Plan
from medmesh.contracts.screening import Verdict
from medmesh.errors import Problem
from medmesh.store.attempts import KEY, attempt, of_attempt
from medmesh.store.prepared import Look, Prepared, as_text
from medmesh.store.types import ReadOnce
from medmesh.store.unit import UnitOfWork
from medmesh_federation.domain import OPEN_STATES, State
from medmesh_federation.ports import Ports
from medmesh_federation.tables import answers, federations, participants, rounds

FLAGGED = "flagged"
"""Why an answer that looks wrong is not in its round."""
ACCEPTED = "accepted"
"""The state of a participant that takes part."""
LOST = "lost"
"""Why an answer does not count for now: its update is gone, and asked for again."""
MOST_NUMBER = 2**31 - 1
"""Of a round, or an attempt: no more fits the database."""
_KEY = (*KEY, "hospital")
MADE = (rounds.c.state == "committed") & (rounds.c.kind == RoundKind.TRAIN.value) & ~rounds.c.undone
"""Of a round: it made a model from which the federation went on."""
_MIXED = rounds.alias()
_UNDONE = exists().where(_MIXED.c.federation == answers.c.federation, _MIXED.c.round == answers.c.counted, _MIXED.c.undone)
IN_MODEL = (
    MADE
    & answers.c.failed.is_(None)
    & answers.c.verdict.is_distinct_from(Verdict.ASIDE.value)
    & (~answers.c.late | (answers.c.counted.is_not(None) & ~_UNDONE))
)
"""Of an answer and its round: its update is part of the model that this left, or where it came late a later one: that of `PART_OF`."""
PART_OF = func.coalesce(answers.c.counted, answers.c.round)
_LATER = ("counted", "verdict")
"""Of an answer what is known once its round is closed."""
_THEIRS = participants.c.federation == bindparam("federation")
LOCK = Prepared(select(federations.c.federation).where(federations.c.federation == bindparam("federation")).with_for_update())
_PARTICIPANT = Prepared(select(participants).where(_THEIRS, participants.c.hospital == bindparam("hospital")))
_OF_ROUND = (*KEY, "kind", "state", "phase")
# The same in every answer to a round.
_LISTS = [type_coerce(rounds.c[name], ReadOnce()).label(name) for name in ("assigned", "models", "parties", "base")]
_ROUND = Prepared(
    select(
        *(rounds.c[name] for name in _OF_ROUND),
        *_LISTS,
        federations.c.plan_hash,
        as_text(federations.c.plan),
        federations.c.state.label("federation_state"),
    )
    .join_from(rounds, federations, federations.c.federation == rounds.c.federation)
    .where(of_attempt(rounds))
)
# Mostly nobody: to read hundreds for each few answers costs more than the answers.
_OTHERS = Prepared(select(participants.c.hospital, participants.c.state).where(_THEIRS, participants.c.state != ACCEPTED))
_GAVE = select(answers.c.hospital).where(of_attempt(answers), answers.c.hospital == participants.c.hospital, ~answers.c.late)
# Who is told last mostly answers last: by the index, one of whom an answer is still to come is found soon.
_SILENT = (
    select(participants.c.hospital)
    .where(_THEIRS, participants.c.state == ACCEPTED, ~_GAVE.exists())
    .order_by(participants.c.hospital.desc())
)
_ALL_SILENT, _ONE_SILENT = Prepared(_SILENT), Prepared(_SILENT.limit(1))
_GIVEN = upsert(answers).values({column.name: bindparam(column.name) for column in answers.c if column.name not in _LATER})
_IS_LOST = answers.c.failed == LOST
_SAME_BYTES = answers.c.update["sha256"].as_string() == _GIVEN.excluded.update["sha256"].as_string()
_BETTER = (answers.c.failed != FLAGGED) & (~_IS_LOST | _SAME_BYTES | _GIVEN.excluded.failed.is_not(None))
_SAID = [column for column in answers.c if column.name not in (*_KEY, *_LATER, "failed")]
_ANSWER = Prepared(
    _GIVEN.on_conflict_do_update(
        index_elements=_KEY,
        # What was said with one that was lost stands.
        set_={one.name: case((_IS_LOST, one), else_=_GIVEN.excluded[one.name]) for one in _SAID} | {"failed": _GIVEN.excluded.failed},
        where=answers.c.failed.is_not(None) & _BETTER,
    ).returning(answers.c.late)
)

_GAVE_BEFORE = Prepared(select(answers.c.update).where(of_attempt(answers), answers.c.hospital == bindparam("hospital")))


@dataclass
class Asked:
    """An attempt at a round."""

    round: Any
    """With what of its federation an answer needs; None: there is no such attempt."""
    others: Mapping[str, str]
    """The states of the invited hospitals that are not `accepted`."""

    def state(self, hospital: str) -> str:
        """Of one that was invited."""
        return self.others.get(hospital, ACCEPTED)

    def late(self, hospital: str) -> bool:
        """Whether an answer does not count in its round. Of one in quarantine it is taken, and counts nowhere."""
        running = self.round.federation_state in (State.RUNNING, State.PAUSED)
        return self.round.state != "open" or not running or self.state(hospital) == "quarantined"

    def may_count_later(self, plan: Plan) -> bool:
        """Whether a round that is to come may take what came late to this one."""
        goes_on = State(self.round.federation_state) in OPEN_STATES
        return plan.pace is not None and goes_on and self.round.kind == "train" and self.round.state in ("open", "committed")


async def asked_of(look: Look, federation: str, number: int, attempt: int) -> Asked:
    """As it is now."""
    place = {"federation": federation, "round": number, "attempt": attempt}
    there_may_be = 0 <= number <= MOST_NUMBER and 0 <= attempt <= MOST_NUMBER
    (current, *_) = [*(await look(_ROUND, **place) if there_may_be else ()), None]
    return Asked(current, {one.hospital: one.state for one in await look(_OTHERS, federation=federation)})


async def own(uow: UnitOfWork[Ports], federation: str) -> Any:
    """The participant row of the hospital that speaks; the guard has let in nobody who was not invited."""
    (mine,) = await uow.rows(_PARTICIPANT, federation=federation, hospital=uow.actor.id)
    return mine


async def answering(uow: UnitOfWork[Ports], federation: str, number: int, attempt: int) -> tuple[Asked, bool]:
    """(the attempt; whether the answer comes too late). Only who was assigned may answer."""
    asked, hospital = await uow.once(_locked, federation, number, attempt), uow.actor.id
    if asked.state(hospital) == "withdrawn":
        raise Problem("federation.not_taking_part", federation=federation, state="withdrawn")
    if asked.round is None or hospital not in asked.round.assigned:
        raise Problem("federation.not_assigned", federation=federation, round=number)
    return asked, asked.late(hospital)


async def _locked(uow: UnitOfWork[Ports], federation: str, number: int, attempt: int) -> Asked:
    """Of all answers of one transaction. The federation is locked first: what is read then is so until the end, but for what they say."""
    if not await uow.rows(LOCK, federation=federation):
        raise Problem("request.not_found", kind="federation", id=federation)
    return await asked_of(uow.rows, federation, number, attempt)


async def answer(uow: UnitOfWork[Ports], asked: Asked, late: bool, **values: Any) -> bool | None:
    """Keep an answer; whether it counts as late, None when this hospital gave one before. A failure reported earlier is replaced: it
    recovered in time. What was left out as flagged stays so, and what was lost counts again as it did."""
    row = {
        **attempt(asked.round),
        "hospital": uow.actor.id,
        "late": late,
        "at": uow.now,
        "samples": 0,
        "metrics": {},
        "update": None,
        "results": None,
        "milliseconds": {},
        "failed": None,
        "fingerprint": None,
        **values,
    }
    kept = await uow.one(_ANSWER, **row)
    uow.at_end(_wake_after_last, *attempt(asked.round).values())
    return None if kept is None else bool(kept.late)


async def repeated(uow: UnitOfWork[Ports], asked: Asked, sha256: str) -> bool:
    """Whether an update that `answer` did not keep is the very one that is kept, sent again."""
    found = await uow.rows(_GAVE_BEFORE, **attempt(asked.round), hospital=uow.actor.id)
    return any(one.update is not None and one.update["sha256"] == sha256 for one in found)


async def _wake_after_last(uow: UnitOfWork[Ports], federation: str, number: int, attempt: int) -> None:
    """There is something to do when nobody is waited for any more; deadlines and leases are looked at in any case."""
    place = {"federation": federation, "round": number, "attempt": attempt}
    assigned = frozenset((await uow.once(_locked, federation, number, attempt)).round.assigned)
    if (silent := await uow.rows(_ONE_SILENT, **place)) and silent[0].hospital not in assigned:
        silent = await uow.rows(_ALL_SILENT, **place)
    if not any(one.hospital in assigned for one in silent):
        uow.on_commit(uow.ports.wake.set)
