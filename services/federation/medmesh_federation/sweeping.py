"""What lies in scratch and nobody will ask for any more: bytes that came with a message of which no command became, because the gateway was
killed in between, and updates that a kill kept from being deleted (`clearing.py`). A single hospital's update is not kept."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import select

from medmesh.federated.plan import plan_of
from medmesh.service.runtime import Runtime
from medmesh.store.unit import UnitOfWork
from medmesh.telemetry import log
from medmesh_federation import clearing
from medmesh_federation.ports import Ports
from medmesh_federation.tables import answers, federations, rounds

KEEP_SECONDS = 7 * 86_400.0
"""As long as an upload that nobody goes on with (`medmesh_gateway.service`). A hospital that names older bytes is asked for them again."""


async def sweep(runtime: Runtime, ports: Ports) -> int:
    """Forget it; answers how many objects that were."""
    async with runtime.unit() as uow:
        of_rounds, others = await awaited(uow), await needed(uow)
    ports.copies.keep_only(of_rounds)
    if swept := await ports.stores.scratch.sweep(time.time() - KEEP_SECONDS, of_rounds | others):
        log("federation.scratch.swept", objects=swept)
    return swept


async def needed(uow: UnitOfWork[Any]) -> frozenset[str]:
    """All that is named here, but of updates only late ones that a later round may take."""
    of = federations.c
    ours = select(of.initial, of.package, of.model, of.state_object, of.personal)
    theirs = select(rounds.c.base, rounds.c.models, rounds.c.model, rounds.c.state_object, rounds.c.personal)
    usable = answers.c.late & answers.c.counted.is_(None) & answers.c.failed.is_(None) & answers.c.update.is_not(None)
    late = select(answers.c.update, of.plan_hash, of.plan).join(federations, of.federation == answers.c.federation)
    waiting = [[one.update] for one in await uow.all(late.where(usable, clearing.GOES_ON)) if plan_of(one).pace is not None]
    found = [*await uow.all(ours), *await uow.all(theirs), *waiting]
    return frozenset(clearing.names([list(row) for row in found]))


async def awaited(uow: UnitOfWork[Any]) -> frozenset[str]:
    """The updates of rounds that are not over."""
    return frozenset(clearing.names([list(row) for row in await uow.all(clearing.AWAITED)]))
