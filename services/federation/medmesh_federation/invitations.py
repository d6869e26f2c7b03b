"""One-time links: made by the initiator for one hospital, opened once by that hospital's node. They show, and decide nothing."""

from __future__ import annotations

from datetime import timedelta
from hmac import compare_digest
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.federation import LinkInvitation, OpenLink, RevokeLink
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.federated.invitation import link_digest
from medmesh.federated.plan import plan_of
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_federation.domain import State
from medmesh_federation.handlers import entity, locked
from medmesh_federation.ports import HANDLERS, Ports
from medmesh_federation.tables import links


@HANDLERS.on(LinkInvitation)
async def link(command: Envelope[LinkInvitation], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """While hospitals are asked. Raises `Problem`."""
    wanted = command.data
    row = await _asked(uow, wanted.federation, wanted.hospital)
    expires = uow.now + timedelta(seconds=wanted.seconds)
    values = {"digest": wanted.digest, "state": "waiting", "expires": expires, "at": uow.now}
    made = upsert(links).values(federation=row.federation, hospital=wanted.hospital, **values)
    await uow.execute(made.on_conflict_do_update(index_elements=list(links.primary_key), set_=values))
    _record(uow, row, wanted.hospital, "federation.invite", "C", expires=expires.isoformat())
    return {"hospital": wanted.hospital, "expires": expires.isoformat()}


@HANDLERS.on(RevokeLink)
async def revoke(command: Envelope[RevokeLink], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Also of one that was opened, which then is said to be revoked. Raises `Problem`."""
    wanted = command.data
    row = await _asked(uow, wanted.federation, wanted.hospital, at_any_time=True)
    given = await _given(uow, row.federation, wanted.hospital)
    if given is None:
        raise Problem("federation.link", reason="there is none for this hospital")
    if given.state == "revoked":
        uow.unchanged()
    else:
        await _set(uow, given, "revoked")
        _record(uow, row, wanted.hospital, "federation.invite", "D")
    return {"hospital": wanted.hospital}


@HANDLERS.on(OpenLink)
async def open_link(command: Envelope[OpenLink], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """By the hospital it is for, once. Raises `Problem` (`federation.link`) with the reason; of another's link nothing more is said."""
    wanted, hospital = command.data, uow.actor.id
    row = await locked(uow, wanted.federation)
    given = await _given(uow, row.federation, hospital)
    if given is None or not compare_digest(given.digest, link_digest(row.federation, hospital, row.plan_hash, wanted.secret)):
        raise Problem("federation.link", reason="it was not made for this hospital and this plan, or another has taken its place")
    if given.state != "waiting":
        raise Problem("federation.link", reason={"opened": "it was opened already", "revoked": "it was revoked"}[given.state])
    if uow.now > given.expires:
        raise Problem("federation.link", reason="it has expired")
    if row.state != State.INVITING:
        raise Problem("federation.closed", federation=row.federation, state=row.state)
    await _set(uow, given, "opened")
    _record(uow, row, hospital, "federation.open", "R")
    return {"plan_hash": row.plan_hash}


async def _asked(uow: UnitOfWork[Ports], federation: str, hospital: str, *, at_any_time: bool = False) -> Any:
    """The federation, for its initiator. Raises `Problem`."""
    row = await locked(uow, federation)
    if row.initiator != uow.actor.text:
        raise Problem("federation.initiator", plan=row.initiator, actor=uow.actor.text)
    if hospital not in plan_of(row).participants:
        raise Problem("federation.link", reason="this hospital is not invited")
    if row.state != State.INVITING and not at_any_time:
        raise Problem("federation.closed", federation=row.federation, state=row.state)
    return row


async def _given(uow: UnitOfWork[Ports], federation: str, hospital: str) -> Any:
    return await uow.first(select(links).where(links.c.federation == federation, links.c.hospital == hospital))


async def _set(uow: UnitOfWork[Ports], given: Any, state: str) -> None:
    where = (links.c.federation == given.federation) & (links.c.hospital == given.hospital)
    await uow.execute(update(links).where(where).values(state=state, at=uow.now))


def _record(uow: UnitOfWork[Ports], row: Any, hospital: str, verb: str, action: str, **detail: str) -> None:
    uow.audit(AuditEntry(verb, action, entities=(entity(row), Entity("hospital", hospital)), hospitals=(hospital,), detail={**detail}))
