"""Own keys under decisions: what an approver signed is checked against the roster; announced keys are kept for its keepers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from medmesh.contracts.governance import DecideApproval, KeyView, ListKeys, RegisterKey, RequestApproval, SigningKeys
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.ledger.note import parse_key
from medmesh.security import approvals as tokens
from medmesh.security.signing import key_fingerprint
from medmesh.security.tokens import LEEWAY
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_governance.ports import HANDLERS, Ports
from medmesh_governance.tables import decisions, enrolments, signing_keys


def check_asking(uow: UnitOfWork[Ports], wanted: RequestApproval) -> None:
    """What comes with a request is signed by the very person who sends it, about exactly this, and new. Raises `Problem`."""
    try:
        roster = uow.ports.roster()
    except Problem:
        if wanted.asking:
            raise
        return  # without one nothing is approved; then it may be asked for as well
    about = {"action": wanted.action, "target": wanted.target, "digest": wanted.digest, "requester": uow.actor.text}
    found = tokens.asked(wanted.asking, roster, **about, seen=uow.now)
    if found is not None and uow.now - found.made > uow.ports.settings.statement_age:
        raise Problem("statement.other", what="time")


def check_decision(uow: UnitOfWork[Ports], row: Any, wanted: DecideApproval) -> None:
    """The statement of a decision is by the very person who sends it, about exactly this request, and new. Raises `Problem`."""
    roster = uow.ports.roster()
    if not wanted.statement:
        raise Problem("statement.missing", what=f"A decision on {row.action}")
    about = {"approval": row.approval, "action": row.action, "target": row.target, "digest": row.digest, "requester": row.requester}
    who, found = tokens.decided(wanted.statement, roster, **about, seen=uow.now)
    if who != uow.actor.text:
        raise Problem("statement.other", what="approver")
    if found.approve != wanted.approve:
        raise Problem("statement.other", what="approve")
    if abs(found.expires - row.expires_at) > LEEWAY or uow.now - found.made > uow.ports.settings.statement_age:
        raise Problem("statement.other", what="time")


async def signed_approvals(uow: UnitOfWork[Ports], approval: str) -> tuple[str, ...]:
    """What those who approved signed."""
    wanted = select(decisions.c.statement).where(decisions.c.approval == approval, decisions.c.approve).order_by(decisions.c.approver)
    return tuple(row.statement for row in await uow.all(wanted))


async def evidence(uow: UnitOfWork[Ports], row: Any) -> dict[str, str]:
    """What the record of something governance executes itself says of its approval (a row of `approvals`)."""
    wanted = select(decisions.c.approver).where(decisions.c.approval == row.approval, decisions.c.approve).order_by(decisions.c.approver)
    approvers, signed = tuple(one.approver for one in await uow.all(wanted)), await signed_approvals(uow, row.approval)
    return tokens.Approval(
        row.approval, row.action, row.target, row.digest, row.requester, approvers, signed, row.expires_at, row.asking
    ).evidence()


@HANDLERS.on(RegisterKey)
async def register_key(command: Envelope[RegisterKey], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Announce one's own key; the same again is harmless. It counts when the keepers have put it into the roster."""
    key = parse_key(command.data.key)
    if key.name != uow.actor.text:
        raise Problem("statement.other", what="name")
    values = {"key": str(key), "name": key.name, "at": uow.now}
    made = await uow.execute(insert(signing_keys).values(values).on_conflict_do_nothing().returning(signing_keys.c.key))
    if made.first() is None:
        uow.unchanged()
    else:
        entities = (Entity("user", uow.actor.id), Entity("key", str(key)))
        uow.audit(AuditEntry("key.register", "C", entities=entities, detail={"fingerprint": key_fingerprint(str(key))}))
    return {"key": str(key)}


@HANDLERS.answers(ListKeys)
async def list_keys(query: Envelope[ListKeys], uow: UnitOfWork[Ports]) -> SigningKeys:
    """People's, then hospitals'; the newest last."""
    found: dict[str, tuple[str, Any]] = {}
    for row in await uow.all(select(signing_keys).order_by(signing_keys.c.at)):
        found[row.key] = (row.name, row.at)
    enrolled = enrolments.c.state == "enrolled"
    for row in await uow.all(select(enrolments).where(enrolled).order_by(enrolments.c.created_at)):
        found.setdefault(row.organisation_key, (f"hospital:{row.hospital}", row.created_at))
    try:
        present = uow.ports.roster()
        known = {member.key for member in (*present.people, *present.hospitals) if member.until is None}
    except Problem:
        known = set()
    return SigningKeys(keys=tuple(KeyView(name=name, key=key, at=at, rostered=key in known) for key, (name, at) in found.items()))
