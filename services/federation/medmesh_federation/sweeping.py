"""What lies in scratch and nobody will ask for any more: bytes that came with a message of which no command became, because the gateway was
killed in between, and updates of rounds that came to nothing. A single hospital's update is not kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import select

from medmesh.service.runtime import Runtime
from medmesh.store.unit import UnitOfWork
from medmesh.telemetry import log
from medmesh_federation.domain import OPEN_STATES
from medmesh_federation.ports import Ports
from medmesh_federation.tables import answers, federations, rounds

KEEP_SECONDS = 7 * 86_400.0
"""As long as an upload that nobody goes on with (`medmesh_gateway.service`). A hospital that names older bytes is asked for them again."""
_SAME = (rounds.c.federation == answers.c.federation) & (rounds.c.round == answers.c.round) & (rounds.c.attempt == answers.c.attempt)


async def sweep(runtime: Runtime, ports: Ports) -> int:
    """Forget it; answers how many objects that were."""
    async with runtime.unit() as uow:
        named, of_rounds = await needed(uow), await awaited(uow)
    ports.copies.keep_only(of_rounds)
    if swept := await ports.stores.scratch.sweep(time.time() - KEEP_SECONDS, named):
        log("federation.scratch.swept", objects=swept)
    return swept


async def needed(uow: UnitOfWork[Any]) -> frozenset[str]:
    """All that is named here, but updates of federations that are over: of those only what the copy of a committed model may be made from
    again."""
    of = federations.c
    ours = select(of.initial, of.package, of.model, of.state_object, of.personal)
    theirs = select(rounds.c.base, rounds.c.models, rounds.c.model, rounds.c.state_object, rounds.c.personal)
    unsaved = (rounds.c.state == "committed") & ~rounds.c.stored
    running = of.state.in_([state.value for state in OPEN_STATES])
    updates = select(answers.c.update).join(rounds, _SAME).join(federations, of.federation == answers.c.federation)
    found = [*await uow.all(ours), *await uow.all(theirs), *await uow.all(updates.where(running | unsaved))]
    return frozenset(name for row in found for value in row for name in _names(value))


async def awaited(uow: UnitOfWork[Any]) -> frozenset[str]:
    """The updates of rounds that are not over."""
    of, running = federations.c, federations.c.state.in_([state.value for state in OPEN_STATES])
    open_or_unsaved = ((rounds.c.state == "open") & running) | ((rounds.c.state == "committed") & ~rounds.c.stored)
    updates = select(answers.c.update).join(rounds, _SAME).join(federations, of.federation == answers.c.federation)
    return frozenset(name for row in await uow.all(updates.where(open_or_unsaved)) for name in _names(row.update))


def _names(value: Any) -> Iterator[str]:
    """Of the objects in a document."""
    match value:
        case {"sha256": str(name)}:
            yield name
        case dict():
            yield from (name for one in value.values() for name in _names(one))
        case list():
            yield from (name for one in value for name in _names(one))
