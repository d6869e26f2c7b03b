"""What a federation waits for before it runs: answers, approval, its time, enough hospitals, and its turn."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import func, select

from medmesh.contracts.plan import Plan
from medmesh.store.unit import UnitOfWork
from medmesh_federation.domain import State
from medmesh_federation.ports import Ports
from medmesh_federation.tables import federations, participants

BUSY = (State.RUNNING.value, State.PAUSED.value)


async def quotas(uow: UnitOfWork[Any], row: Any, ports: Ports) -> tuple[str, ...]:
    """The quotas that are used up: `initiator`, `busy:HOSPITAL`."""
    others = await uow.all(select(federations.c.federation, federations.c.initiator).where(federations.c.state.in_(BUSY)))
    if not others:
        return ()
    theirs = participants.c.federation.in_([row.federation, *(other.federation for other in others)])
    at_work = participants.c.state.in_(["accepted", "dropped"])
    part = await uow.all(select(participants.c.federation, participants.c.hospital).where(theirs, at_work))
    ours = {p.hospital for p in part if p.federation == row.federation}
    busy = Counter(p.hospital for p in part if p.federation != row.federation)
    full = [f"busy:{hospital}" for hospital in sorted(ours) if busy[hospital] >= ports.settings.running_per_hospital]
    mine = sum(other.initiator == row.initiator for other in others)
    return (*(["initiator"] if mine >= ports.settings.running_per_initiator else []), *full)


async def blocked(uow: UnitOfWork[Any], row: Any, ports: Ports) -> bool:
    """Whether a quota keeps it from starting now. Until this transaction ends nobody else decides who starts: two instances that each
    saw the other's federation still waiting would exceed a quota together. SQLite has one writer in any case."""
    if uow.sql.dialect.name == "postgresql":
        await uow.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("medmesh_federation.start", 0))))
    return bool(await quotas(uow, row, ports))


async def waits(uow: UnitOfWork[Any], row: Any, plan: Plan, people: dict[str, str], ports: Ports) -> tuple[str, ...]:
    """See the module; nothing once it runs. `people` maps hospital to its state."""
    if row.state not in (State.INVITING, State.READY, State.QUEUED):
        return ()
    found = [f"answer:{hospital}" for hospital, state in sorted(people.items()) if state == "invited" and row.state == State.INVITING]
    found += ["approval"] if row.approval is None else []
    found += ["time"] if uow.now < plan.start_at else []
    online = sum(state == "accepted" and ports.leases.online(hospital, plan.lease_seconds) for hospital, state in people.items())
    found += ["online"] if online < plan.min_participants and row.state == State.QUEUED else []
    return (*found, *await quotas(uow, row, ports))
