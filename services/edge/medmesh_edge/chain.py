"""The rounds of a federation as this hospital saw them: each must continue the one before, from the plan it signed.

What was seen is durable. So a round that is told twice is known, one that the platform opens again after it was set back to an older state
is not the one that was seen, and a history that leaves out or alters what this hospital saw has another value.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.client.gateway import Gateway
from medmesh.contracts.federation import RoundChain, RoundKind, RoundOpened
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.chain import check_agreed, extend, round_digest
from medmesh.federated.undoing import proven
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_edge.ports import Site
from medmesh_edge.tables import bases, chain


async def note(uow: UnitOfWork[Any], plan: Plan, event: RoundOpened) -> None:
    """Write down a round that continues the newest here, and is as the plan says; with the fact itself, so that it costs no transaction
    of its own. What is not written down now is looked at, and refused with its reason, before it is worked on."""
    newest = await _newest(uow, event)
    if newest.value == event.previous and _whole(event) and _later(event, newest):
        with suppress(Problem):
            check_agreed(plan, event)
            await _progress(uow, plan, event)
            await _write(uow, event)


async def known(uow: UnitOfWork[Any], event: RoundOpened) -> bool:
    """Whether this very round was written down. Raises `Problem` (`federation.chain`) when another was in its place."""
    row = await uow.first(select(chain.c.value).where(_of(event), chain.c.round == event.round, chain.c.attempt == event.attempt))
    if row is not None and (row.value != event.chain or not _whole(event)):
        raise _broken(event)
    return row is not None


async def follow(site: Site, gateway: Gateway, plan: Plan, event: RoundOpened) -> None:
    """Write down a round after some that this hospital was not told of, whose digests the platform shows. Raises `Problem`."""
    async with site.unit() as uow:
        newest = await _newest(uow, event)
    if not _whole(event) or not _later(event, newest):
        raise _broken(event)
    value, after, more = newest.value, {"round": newest.round, "attempt": newest.attempt}, True
    while value != event.previous and more:
        shown = await gateway.ask(f"/v1/federations/{event.federation}/chain", RoundChain, **after)
        for one in shown.digests:
            value = extend(value, [one])
            if value == event.previous:
                break
        after, more = {"round": shown.round, "attempt": shown.attempt}, shown.more
    if value != event.previous:
        raise _broken(event)
    async with site.unit() as uow:
        await _progress(uow, plan, event)
        await _write(uow, event)


async def _progress(uow: UnitOfWork[Any], plan: Plan, event: RoundOpened) -> None:
    """Raise a `Problem` (`federation.rollback_unproven`) where a training round begins with a model that came before, and no approval by
    keys of this hospital's roster says that it may."""
    if event.kind is not RoundKind.TRAIN:
        return
    mine = select(bases.c.base).where(bases.c.federation == event.federation)
    newest = await uow.first(mine.order_by(bases.c.round.desc(), bases.c.attempt.desc()).limit(1))
    began = newest is not None and newest.base != event.base.sha256
    again = began and (event.base.sha256 == plan.initial or await uow.first(mine.where(bases.c.base == event.base.sha256)) is not None)
    if again or event.undoing is not None:
        found = proven(event, uow.ports.trust().governance, uow.ports.roster())
        about = (Entity("federation", event.federation, digest=event.plan_hash),)
        uow.audit(AuditEntry("federation.rollback", "E", entities=about, approval=found.evidence(), detail={"round": event.round}))


def _whole(event: RoundOpened) -> bool:
    return event.previous is not None and event.chain == extend(event.previous, [round_digest(event)])


def _later(event: RoundOpened, newest: Any) -> bool:
    return (event.round, event.attempt) > (newest.round, newest.attempt)


def _of(event: RoundOpened) -> Any:
    return chain.c.federation == event.federation


async def _newest(uow: UnitOfWork[Any], event: RoundOpened) -> Any:
    found = await uow.first(select(chain).where(_of(event)).order_by(chain.c.round.desc(), chain.c.attempt.desc()).limit(1))
    return found or _Begin(event.plan_hash)


class _Begin:
    """Before the first round."""

    round = attempt = 0

    def __init__(self, plan_hash: str) -> None:
        self.value = plan_hash


async def _write(uow: UnitOfWork[Any], event: RoundOpened) -> None:
    values = {"federation": event.federation, "round": event.round, "attempt": event.attempt, "value": event.chain}
    await uow.execute(upsert(chain).values(values).on_conflict_do_nothing())
    if event.kind is RoundKind.TRAIN:
        began = {"federation": event.federation, "round": event.round, "attempt": event.attempt, "base": event.base.sha256}
        await uow.execute(upsert(bases).values(began).on_conflict_do_nothing())


def _broken(event: RoundOpened) -> Problem:
    return Problem("federation.chain", federation=event.federation, round=event.round)
