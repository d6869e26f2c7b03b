"""What hospitals answer in a round: who may, whether it is in time, and that each counts once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, case, select, type_coerce
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.errors import Problem
from medmesh.store.prepared import Prepared, as_text
from medmesh.store.types import ReadOnce
from medmesh.store.unit import UnitOfWork
from medmesh_federation.domain import State
from medmesh_federation.ports import Ports
from medmesh_federation.tables import answers, federations, participants, rounds

FLAGGED = "flagged"
"""Why an answer that looks wrong is not in its round."""
LOST = "lost"
"""Why an answer does not count for now: its update is gone, and asked for again."""
_ATTEMPT = ("federation", "round", "attempt")
_KEY = (*_ATTEMPT, "hospital")
_LOCK = Prepared(select(federations.c.federation).where(federations.c.federation == bindparam("federation")).with_for_update())
_PARTICIPANT = Prepared(
    select(participants).where(participants.c.federation == bindparam("federation"), participants.c.hospital == bindparam("hospital"))
)
_OF_ROUND = (*_ATTEMPT, "kind", "state", "phase")
# The same in every answer to a round.
_LISTS = [type_coerce(rounds.c[name], ReadOnce()).label(name) for name in ("assigned", "models", "parties")]
ASKED = Prepared(
    select(
        *(rounds.c[name] for name in _OF_ROUND),
        *_LISTS,
        federations.c.plan_hash,
        as_text(federations.c.plan),
        federations.c.state.label("federation_state"),
        participants.c.state.label("own_state"),
    )
    .join_from(rounds, federations, federations.c.federation == rounds.c.federation)
    .join(participants, participants.c.federation == rounds.c.federation)
    .where(*(rounds.c[name] == bindparam(name) for name in _ATTEMPT), participants.c.hospital == bindparam("hospital"))
)
"""A round with what of its federation, and of the hospital that answers, an answer needs."""
_GIVEN = upsert(answers).values({column.name: bindparam(column.name) for column in answers.c if column.name != "counted"})
_IS_LOST = answers.c.failed == LOST
_SAME_BYTES = answers.c.update["sha256"].as_string() == _GIVEN.excluded.update["sha256"].as_string()
_BETTER = (answers.c.failed != FLAGGED) & (~_IS_LOST | _SAME_BYTES | _GIVEN.excluded.failed.is_not(None))
_SAID = [column for column in answers.c if column.name not in (*_KEY, "counted", "failed")]
_GAVE = select(answers.c.hospital).where(
    *(answers.c[name] == bindparam(name) for name in _ATTEMPT), answers.c.hospital == participants.c.hospital, ~answers.c.late
)
_TO_COME = (participants.c.federation == bindparam("federation"), participants.c.state == "accepted", ~_GAVE.exists())
# Who is told last mostly answers last: by the index, one of whom an answer is still to come is found soon.
_SILENT = select(participants.c.hospital).where(*_TO_COME).order_by(participants.c.hospital.desc())
_ALL_SILENT, _ONE_SILENT = Prepared(_SILENT), Prepared(_SILENT.limit(1))
_ANSWER = Prepared(
    _GIVEN.on_conflict_do_update(
        index_elements=_KEY,
        # What was said with one that was lost stands.
        set_={one.name: case((_IS_LOST, one), else_=_GIVEN.excluded[one.name]) for one in _SAID} | {"failed": _GIVEN.excluded.failed},
        where=answers.c.failed.is_not(None) & _BETTER,
    ).returning(answers.c.late)
)


async def own(uow: UnitOfWork[Ports], federation: str) -> Any:
    """The participant row of the hospital that speaks; the guard has let in nobody who was not invited."""
    (mine,) = await uow.rows(_PARTICIPANT, federation=federation, hospital=uow.actor.id)
    return mine


async def answering(uow: UnitOfWork[Ports], federation: str, number: int, attempt: int) -> tuple[Any, bool]:
    """(the round, as `ASKED` reads it; whether the answer comes too late). Only who was assigned may answer. The federation is locked
    first: what is read then is so until the end."""
    if not await uow.rows(_LOCK, federation=federation):
        raise Problem("request.not_found", kind="federation", id=federation)
    asked = await uow.one(ASKED, federation=federation, round=number, attempt=attempt, hospital=uow.actor.id)
    state = asked.own_state if asked is not None else (await own(uow, federation)).state
    if state == "withdrawn":
        raise Problem("federation.not_taking_part", federation=federation, state=state)
    if asked is None or uow.actor.id not in asked.assigned:
        raise Problem("federation.not_assigned", federation=federation, round=number)
    return asked, too_late(asked)


def too_late(asked: Any) -> bool:
    """Whether an answer does not count in its round. Of one in quarantine it is taken, and counts nowhere."""
    return asked.state != "open" or asked.federation_state not in (State.RUNNING, State.PAUSED) or asked.own_state == "quarantined"


async def answer(uow: UnitOfWork[Ports], asked: Any, late: bool, **values: Any) -> bool | None:
    """Keep an answer; whether it counts as late, None when this hospital gave one before. A failure reported earlier is replaced: it
    recovered in time. What was left out as flagged stays so, and what was lost counts again as it did."""
    row = {
        **{name: getattr(asked, name) for name in _ATTEMPT},
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
    await _wake_after_last(uow, asked)
    return None if kept is None else bool(kept.late)


async def _wake_after_last(uow: UnitOfWork[Ports], asked: Any) -> None:
    """There is something to do when nobody is waited for any more; deadlines and leases are looked at in any case."""
    attempt = {name: getattr(asked, name) for name in _ATTEMPT}
    if (silent := await uow.rows(_ONE_SILENT, **attempt)) and silent[0].hospital not in asked.assigned:
        silent = await uow.rows(_ALL_SILENT, **attempt)
    if not any(one.hospital in asked.assigned for one in silent):
        uow.on_commit(uow.ports.wake.set)
