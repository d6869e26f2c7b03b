"""What a federation waits for: before it runs answers, approval, its time, enough hospitals, and its turn; once it runs, its quorum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select

from medmesh.contracts.plan import Plan
from medmesh.federated.plan import after_training, plan_of
from medmesh.store.unit import UnitOfWork
from medmesh_federation.domain import BEFORE, State, absent, fails_at
from medmesh_federation.ports import Ports
from medmesh_federation.tables import federations, participants, rounds

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
    """Whether a quota keeps it from starting now, or one that was queued before it, needs what it needs and can start too: the older was
    perhaps looked at before something became free, the younger after. Until this transaction ends nobody else decides who starts: two
    instances that each saw the other's federation still waiting would exceed a quota together. SQLite has one writer in any case."""
    if uow.sql.dialect.name == "postgresql":
        await uow.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("medmesh_federation.start", 0))))
    if await quotas(uow, row, ports):
        return True
    for older in await _before(uow, row):
        people = {p.hospital: p.state for p in await uow.all(select(participants).where(participants.c.federation == older.federation))}
        if not await waits(uow, older, plan_of(older), people, ports):
            return True
    return False


async def waits(uow: UnitOfWork[Any], row: Any, plan: Plan, people: dict[str, str], ports: Ports) -> tuple[str, ...]:
    """See the module. `people` maps hospital to its state."""
    if row.state == State.RUNNING and row.waiting_since is not None:
        return ("quorum", *(f"quorum:{hospital}" for hospital in sorted(absent(people, _online(ports, plan, people)))))
    if row.state not in BEFORE:
        return ()
    found = [f"answer:{hospital}" for hospital, state in sorted(people.items()) if state == "invited" and row.state == State.INVITING]
    found += ["approval" + (f":{row.unapproved}" if row.unapproved else "")] if row.approval is None else []
    found += ["time"] if uow.now < plan.start_at else []
    online = sum(people[hospital] == "accepted" for hospital in _online(ports, plan, people))
    found += ["online"] if online < plan.min_participants and row.state == State.QUEUED else []
    return (*found, *await quotas(uow, row, ports))


def _online(ports: Ports, plan: Plan, people: Iterable[str]) -> frozenset[str]:
    return frozenset(hospital for hospital in people if ports.leases.online(hospital, plan.lease_seconds))


async def ends(uow: UnitOfWork[Any], row: Any, plan: Plan, people: dict[str, str], ports: Ports) -> datetime | None:
    """See `FederationView.fails_at`."""
    if row.state != State.RUNNING or row.waiting_since is None:
        return None
    current = await uow.first(select(rounds.c.deadline).where(rounds.c.federation == row.federation, rounds.c.state == "open"))
    deadline, grace = current.deadline if current is not None else None, ports.settings.quorum_grace_seconds
    return fails_at(row.waiting_since, deadline, grace, plan, people, _online(ports, plan, people))


async def ahead(uow: UnitOfWork[Any], row: Any) -> int:
    """How many queued before this one need what it needs."""
    return len(await _before(uow, row)) if row.state == State.QUEUED else 0


async def _before(uow: UnitOfWork[Any], row: Any) -> list[Any]:
    """Those queued before it that need what it needs: a hospital, or its initiator's quota."""
    older = (federations.c.state == State.QUEUED.value) & (federations.c.created_at < row.created_at)
    before = await uow.all(select(federations).where(older))
    theirs = await _part(uow, [row.federation, *(one.federation for one in before)])
    ours = theirs.get(row.federation, set())
    return [one for one in before if one.initiator == row.initiator or ours & theirs.get(one.federation, set())]


async def not_before(uow: UnitOfWork[Any], row: Any, plan: Plan, waiting: Sequence[str]) -> datetime | None:
    """See `FederationView.not_before`; None once it runs, and where nothing can be said of what is in its way."""
    if row.state not in BEFORE:
        return None
    found = [uow.now, plan.start_at]
    full = [wait for wait in waiting if wait == "initiator" or wait.startswith("busy:")]
    if full:
        busy = await uow.all(select(federations).where(federations.c.state.in_(BUSY)))
        theirs = await _part(uow, [one.federation for one in busy])
        ends = {one.federation: await _end(uow, one) for one in busy}
        for wait in full:
            hospital = wait.partition(":")[2]
            mine = [
                o.federation for o in busy if (hospital in theirs.get(o.federation, set()) if hospital else o.initiator == row.initiator)
            ]
            known = [end for name in mine if (end := ends[name]) is not None]
            if not known:
                return None
            found.append(min(known))
    return max(found)


async def _end(uow: UnitOfWork[Any], row: Any) -> datetime | None:
    """When one that runs will be over, if its rounds go on as they did; None before its first was committed."""
    done = (rounds.c.federation == row.federation) & (rounds.c.state == "committed") & rounds.c.closed_at.is_not(None)
    took = [one.closed_at - one.opened_at for one in await uow.all(select(rounds.c.opened_at, rounds.c.closed_at).where(done))]
    if not took:
        return None
    plan = plan_of(row)
    left = max(1, plan.rounds + len(after_training(plan)) - len(took))
    end: datetime = uow.now + left * sum(took, timedelta()) / len(took)
    return end


async def _part(uow: UnitOfWork[Any], names: Sequence[str]) -> dict[str, set[str]]:
    """Federation to the hospitals that take part in it."""
    at_work = participants.c.state.in_(["accepted", "dropped"])
    found: dict[str, set[str]] = {}
    for one in await uow.all(
        select(participants.c.federation, participants.c.hospital).where(participants.c.federation.in_(names), at_work)
    ):
        found.setdefault(one.federation, set()).add(one.hospital)
    return found
