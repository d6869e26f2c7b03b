"""The rounds of a federation as this hospital saw them: each must continue the one before, from the plan it signed.

What was seen is durable. So a round that is told twice is known, one that the platform opens again after it was set back to an older state
is not the one that was seen, and a history that leaves out or alters what this hospital saw has another value. Each begins with the model
that the rounds before it left, told link by link, so that nothing can be put in its place between two rounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import bindparam, exists, select
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.client.gateway import Gateway
from medmesh.contracts.federation import Commitment, RoundChain, RoundKind, RoundOpened
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.chain import Left, after, agreed, begins_with, extend, first, round_digest
from medmesh.federated.undoing import proven
from medmesh.memo import by_identity
from medmesh.store.attempts import attempt, same_attempt
from medmesh.store.prepared import Prepared
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_edge.ports import Site
from medmesh_edge.tables import bases, chain, committed, given

MOST_PAGES = 1000
"""Of a history that was missed. The platform shows some hundred rounds on each, and no federation has so many."""
_OURS = bases.c.federation == bindparam("federation")
_BEGAN = select(bases.c.base).where(_OURS).order_by(bases.c.round.desc(), bases.c.attempt.desc()).limit(1).scalar_subquery()
_BEFORE = exists().where(_OURS, bases.c.base == bindparam("base"))
_SAME = same_attempt(committed, chain)
_NEWEST = Prepared(
    select(chain, committed.c.value.label("left"), committed.c.model, committed.c.state, _BEGAN.label("began"), _BEFORE.label("before"))
    .outerjoin_from(chain, committed, _SAME)
    .where(chain.c.federation == bindparam("federation"))
    .order_by(chain.c.round.desc(), chain.c.attempt.desc())
    .limit(1)
)
_WRITE_CHAIN, _WRITE_LEFT, _WRITE_BASE = (
    Prepared(upsert(table).values(given(table)).on_conflict_do_nothing()) for table in (chain, committed, bases)
)


@by_identity()
def written(event: RoundOpened) -> str:
    """A round as it is kept: what it was told to answer at once is kept with its phase."""
    return (event.model_copy(update={"shares": {}}) if event.shares else event).model_dump_json()


@lru_cache(16)
def opened(text: str) -> RoundOpened:
    """A round as it was kept. It is asked for several times while it is worked on."""
    return RoundOpened.model_validate_json(text)


@dataclass(frozen=True, slots=True)
class Seen:
    """What this hospital saw of a federation before a round."""

    round: int
    attempt: int
    value: str
    """Of the chain, with the newest round."""
    left: Left | None
    """What was left before that; None of a round that was seen before this was looked at."""
    again: bool
    """Whether the model that this round begins with is one that an earlier round, but for the last, began with."""


async def _seen(uow: UnitOfWork[Any], plan: Plan, event: RoundOpened) -> Seen:
    base = event.base.sha256
    row = await uow.one(_NEWEST, federation=event.federation, base=base)
    if row is None:
        return Seen(0, 0, event.plan_hash, first(plan, event.plan_hash), again=False)
    again = row.began is not None and row.began != base and (base == plan.initial or bool(row.before))
    return Seen(row.round, row.attempt, row.value, None if row.left is None else Left(row.left, row.model, row.state), again)


async def note(uow: UnitOfWork[Any], plan: Plan, event: RoundOpened) -> None:
    """Write down a round that continues the newest here, and is as the plan says; with the fact itself, so that it costs no transaction
    of its own. What is not written down now is looked at, and refused with its reason, before it is worked on."""
    seen = await _seen(uow, plan, event)
    if seen.value == event.previous and _whole(event) and _later(event, seen):
        with suppress(Problem):
            agreed(plan, event)
            left = _begun(event, _after(event, seen.left, event.links))
            _progress(uow, event, seen)
            await _write(uow, event, left)


def known(seen: str | None, event: RoundOpened) -> bool:
    """Whether this very round was written down; `seen` is the value that was, where any was. Raises `Problem` (`federation.chain`) when
    another was in its place."""
    if seen is not None and (seen != event.chain or not _whole(event)):
        raise _broken(event)
    return seen is not None


async def follow(site: Site, gateway: Gateway, plan: Plan, event: RoundOpened) -> None:
    """Write down a round after some that this hospital was not told of, whose digests the platform shows. Raises `Problem`."""
    async with site.unit() as uow:
        seen = await _seen(uow, plan, event)
    if not _whole(event) or not _later(event, seen):
        raise _broken(event)
    left = _begun(event, _after(event, await _missed(gateway, event, seen), event.links))
    async with site.unit() as uow:
        if await _seen(uow, plan, event) != seen:
            raise Problem("request.failed")  # another was written down meanwhile: it is looked at again, after that
        _progress(uow, event, seen)
        await _write(uow, event, left)


async def _missed(gateway: Gateway, event: RoundOpened, seen: Seen) -> Left | None:
    """What the rounds between left that this hospital was not told of, as far as it is known what was left before them: shown page by page,
    and none is kept. Raises `Problem` where that does not lead to this round, each page coming nearer to it."""
    value, left, place = seen.value, seen.left, (seen.round, seen.attempt)
    for _ in range(MOST_PAGES):
        if value == event.previous:
            return left
        shown = await gateway.ask(f"/v1/federations/{event.federation}/chain", RoundChain, round=place[0], attempt=place[1])
        for digest, links in zip(shown.digests, (*shown.links, *[()] * len(shown.digests)), strict=False):
            value, left = extend(value, [digest]), _after(event, left, links)
            if value == event.previous:
                return left
        before, place = place, (shown.round, shown.attempt)
        if not (shown.more and shown.digests and before < place < (event.round, event.attempt)):
            break
    raise _broken(event)


def _progress(uow: UnitOfWork[Any], event: RoundOpened, seen: Seen) -> None:
    """Raise a `Problem` (`federation.rollback_unproven`) where a round, also one that evaluates, comes after a roll-back, or a training
    round begins with a model that came before, and no approval by keys of this hospital's roster says that it may."""
    back = [one for one in event.links if one.kind is None]
    if (seen.again and event.kind is RoundKind.TRAIN) or back or event.undoing is not None:
        # What hospitals train alone begins with the first weights, whatever the federation went back to.
        model = back[-1].model if back else event.base.sha256
        found = proven(event, model, uow.ports.trust().governance, uow.ports.roster())
        if back and back[-1].approval != found.id:
            raise _uncommitted(event)
        about = (Entity("federation", event.federation, digest=event.plan_hash),)
        uow.audit(AuditEntry("federation.rollback", "E", entities=about, approval=found.evidence(), detail={"round": event.round}))


def _after(event: RoundOpened, left: Left | None, links: Iterable[Commitment]) -> Left | None:
    """What is left after one round more, where it is known what was left before. Raises `Problem` (`federation.uncommitted`)."""
    try:
        return None if left is None else after(left, links)
    except ValueError:
        raise _uncommitted(event) from None


def _begun(event: RoundOpened, left: Left | None) -> Left:
    """What the rounds before this one left: it must begin with just that. Raises `Problem` (`federation.uncommitted`)."""
    if left is None:  # believed once, where the store is of an earlier version
        left = Left(event.committed or "", event.base.sha256, event.state.sha256 if event.state else None)
    if not begins_with(event, left):
        raise _uncommitted(event)
    return left


def _whole(event: RoundOpened) -> bool:
    return event.previous is not None and event.chain == extend(event.previous, [round_digest(event)])


def _later(event: RoundOpened, seen: Seen) -> bool:
    return (event.round, event.attempt) > (seen.round, seen.attempt)


async def _write(uow: UnitOfWork[Any], event: RoundOpened, left: Left) -> None:
    key = attempt(event)
    await uow.rows(_WRITE_CHAIN, **key, value=event.chain)
    await uow.rows(_WRITE_LEFT, **key, value=left.value, model=left.model, state=left.state)
    if event.kind is RoundKind.TRAIN:
        await uow.rows(_WRITE_BASE, **key, base=event.base.sha256)


def _broken(event: RoundOpened) -> Problem:
    return Problem("federation.chain", federation=event.federation, round=event.round)


def _uncommitted(event: RoundOpened) -> Problem:
    return Problem("federation.uncommitted", federation=event.federation, round=event.round)
