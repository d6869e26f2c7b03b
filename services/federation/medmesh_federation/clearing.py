"""A single hospital's update is not kept: once nobody has more need of what hospitals gave to a round, it is deleted here. A round that a
kill left is found again; for the rest there is the sweep (`sweeping.py`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import bindparam, or_, select, update

from medmesh.contracts.federation import RoundKind
from medmesh.federated.plan import plan_of
from medmesh.service.runtime import Runtime
from medmesh.store.attempts import attempt, of_attempt, same_attempt
from medmesh.store.prepared import Look, Prepared, as_text
from medmesh_federation import pace
from medmesh_federation.answering import MOST_NUMBER
from medmesh_federation.domain import OPEN_STATES
from medmesh_federation.ports import Ports
from medmesh_federation.tables import answers, federations, rounds

_SAME = same_attempt(rounds, answers)
GOES_ON = or_(*(federations.c.state == state.value for state in OPEN_STATES))
"""Of a federation."""
_UNSAVED = (rounds.c.state == "committed") & ~rounds.c.stored
_OVER = or_(
    rounds.c.state == "void",
    rounds.c.state == "skipped",
    (rounds.c.state == "committed") & rounds.c.stored,
    (rounds.c.state == "open") & ~GOES_ON,
    _UNSAVED & rounds.c.gone_since.is_not(None) & ~GOES_ON,
)
_OF = federations.c.federation == rounds.c.federation
_ABOUT = (rounds.c.federation, rounds.c.round, rounds.c.attempt, rounds.c.kind, rounds.c.state)
_TO_CLEAR = Prepared(
    select(*_ABOUT, GOES_ON.label("goes_on"), federations.c.plan_hash, as_text(federations.c.plan))
    .join_from(rounds, federations, _OF)
    .where(~rounds.c.cleared, _OVER)
    .limit(20)
)
_GIVEN = Prepared(select(answers.c.update, answers.c.late, answers.c.failed).where(of_attempt(answers), answers.c.update.is_not(None)))
_TOO_OLD = Prepared(
    select(answers.c.update).where(
        answers.c.federation == bindparam("federation"), answers.c.late, answers.c.counted.is_(None), answers.c.round <= bindparam("round")
    )
)
_CLEARED = Prepared(update(rounds).where(of_attempt(rounds)).values(cleared=True))
AWAITED = (
    select(answers.c.update)
    .join(rounds, _SAME)
    .join(federations, _OF)
    .where(~rounds.c.cleared, ((rounds.c.state == "open") & GOES_ON) | _UNSAVED, answers.c.failed.is_(None))
)
"""The updates of rounds that are not over."""
_AWAITED = Prepared(AWAITED)
# Who gives what it was given hands in a model, not an update: that is somebody else's, too, while its copy is not in the kept store.
_MODELS = Prepared(
    select(rounds.c.base, rounds.c.models, rounds.c.model, rounds.c.state_object, rounds.c.personal).where(~rounds.c.cleared)
)


async def clear(runtime: Runtime, ports: Ports) -> None:
    """Delete what was discarded, and the updates of rounds that are over."""
    look = runtime.database.look
    now = time.monotonic()
    if those := frozenset(sha256 for sha256, due in ports.discarded.items() if due <= now):
        await _delete(ports, look, those)
        for sha256 in those:
            ports.discarded.pop(sha256, None)
    for row in await look(_TO_CLEAR):
        await _delete(ports, look, frozenset(names(await _dispensable(look, row))))
        async with runtime.unit() as uow:
            await uow.rows(_CLEARED, **attempt(row))


async def _dispensable(look: Look, row: Any) -> list[Any]:
    """The updates that nobody needs once this round is over: its own, unless hospitals evaluate them as models, or a later round may take
    what came late; and those of earlier ones that were waiting for this round, or waited in vain."""
    plan, given = plan_of(row), await look(_GIVEN, **attempt(row))
    committed, training = row.state == "committed", row.kind == RoundKind.TRAIN
    if committed and row.kind == RoundKind.BASELINE:
        given = [one for one in given if one.late or one.failed is not None]
    if plan.pace is None or not committed:
        return [one.update for one in given]
    last = MOST_NUMBER if not row.goes_on or not training or row.round >= plan.rounds else row.round - plan.pace.staleness
    if row.goes_on and training and row.round > last:
        given = [one for one in given if not one.late]
    stale = await look(pace.STALE, federation=row.federation, round=row.round)
    old = await look(_TOO_OLD, federation=row.federation, round=last)
    return [one.update for one in (*given, *stale, *old)]


async def _delete(ports: Ports, look: Look, those: frozenset[str]) -> None:
    """Of these, what nobody else has need of: equal bytes are one object, and who sends the same again has it counted again."""
    needed = frozenset(names([list(row) for row in (*await look(_AWAITED), *await look(_MODELS))]))
    for sha256 in those:
        ports.copies.forget(sha256)
    for sha256 in those - needed:
        await ports.stores.scratch.delete(sha256)


def names(value: Any) -> Iterator[str]:
    """Of the objects in a document."""
    match value:
        case {"sha256": str(name)}:
            yield name
        case dict():
            yield from (name for one in value.values() for name in names(one))
        case list():
            yield from (name for one in value for name in names(one))
