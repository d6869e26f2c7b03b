"""How long bodies are kept, what keeps them longer, and who may change that: the rules, and the requests that others approve.

A class of records is kept so many days, never fewer than 180; a legal hold keeps everything about an organisation, or everything. What may
go is a beginning of the log: the minimum index (C2SP tlog-tiles) below which bodies are not there any more. Tiles and entries stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import insert, select, text, update

from medmesh.auditing.vocabulary import RETENTION_DAYS
from medmesh.contracts.audit import (
    Change,
    GetRetention,
    Hold,
    LogChanged,
    PlaceHold,
    RequestLift,
    RequestPruning,
    RequestRetention,
    RetentionView,
)
from medmesh.contracts.governance import ApprovalGranted, ApprovalRefused
from medmesh.contracts.message import Envelope, new_id
from medmesh.errors import Problem
from medmesh.ledger.tiles import WIDTH
from medmesh.security import approvals
from medmesh.service.approved import spend
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_audit import queries
from medmesh_audit.domain import scope
from medmesh_audit.ports import HANDLERS, Ports
from medmesh_audit.tables import changes, holds, prunings, retentions, seals

PRUNE = "log.prune"
RETENTION = "retention.change"
_KEPT = """
    SELECT e.seq FROM entries e, LATERAL (SELECT convert_from(e.leaf, 'UTF8')::jsonb AS h) leaf WHERE e.seq >= :first AND (
        e.at > :now - make_interval(days => coalesce((CAST(:days AS jsonb) ->> (leaf.h ->> 'k'))::int, :longest))
        OR string_to_array(leaf.h ->> 'c', ',') && CAST(:held AS text[])
    ) ORDER BY e.seq LIMIT 1
"""


async def minimum_index(uow: UnitOfWork[Any]) -> int:
    """Below it no bodies are."""
    row = await uow.first(select(prunings.c.minimum).order_by(prunings.c.minimum.desc()).limit(1))
    return int(row.minimum) if row is not None else 0


async def policy(uow: UnitOfWork[Any], defaults: Mapping[Any, int]) -> dict[str, int]:
    """Class -> days: the defaults, and what was approved since."""
    rows = await uow.all(select(retentions.c.kind, retentions.c.days).order_by(retentions.c.at))
    return {**RETENTION_DAYS, **defaults, **{row.kind: row.days for row in rows}}


async def prunable(uow: UnitOfWork[Ports]) -> int:
    """The highest minimum index that policy, holds and sealed segments allow today: whole bundles whose lock is over."""
    settings, first = uow.ports.settings, await minimum_index(uow)
    held = [row.org for row in await uow.all(select(holds.c.org).where(holds.c.lifted_at.is_(None)))]
    if "" in held:
        return first
    days = await policy(uow, settings.retention)
    values = {"first": first, "now": uow.now, "days": json.dumps(days), "longest": max(days.values()), "held": held}
    row = await uow.first(text(_KEPT).bindparams(**values))
    end = int(row.seq) if row is not None else int((await queries.checkpoint(uow)).size)
    over = uow.now - timedelta(days=settings.retain_days)
    whole = (seals.c.kind == "entries") & (seals.c.level == WIDTH) & (seals.c.number >= first // WIDTH) & (seals.c.at < over)
    numbers = [row.number for row in await uow.all(select(seals.c.number).where(whole).order_by(seals.c.number))]
    sealed = first // WIDTH
    for number in numbers:
        if number != sealed:
            break
        sealed += 1
    return max(first, min(end // WIDTH, sealed) * WIDTH)


# --- requests -------------------------------------------------------------------------------------------------------


@HANDLERS.on(RequestPruning)
async def request_pruning(command: Envelope[RequestPruning], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Fix up to where bodies would go. Result: `{"change", "digest", "request"}`."""
    most, first = await prunable(uow), await minimum_index(uow)
    wanted = min(command.data.below if command.data.below is not None else most, most) // WIDTH * WIDTH
    if wanted <= first:
        raise Problem("audit.nothing_to_prune", first=first, most=most)
    return await _ask(uow, PRUNE, {"minimum": wanted, "from": first})


@HANDLERS.on(RequestRetention)
async def request_retention(command: Envelope[RequestRetention], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Fix how long a class would be kept. Result: as `request_pruning`."""
    return await _ask(uow, RETENTION, {"class": command.data.kind, "days": command.data.days})


@HANDLERS.on(PlaceHold)
async def place_hold(command: Envelope[PlaceHold], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Keep what is about an organisation, or everything, until the hold is lifted. At once: it loses nothing. Result: `{"hold"}`."""
    hold, wanted = new_id(), command.data
    await uow.execute(
        insert(holds).values(hold=hold, org=wanted.org, reason=wanted.reason, who=uow.actor.text, placed_at=uow.now, lifted_at=None)
    )
    whose = (wanted.org,) if wanted.org else ()
    uow.audit(AuditEntry("log.hold", "C", entities=(Entity("hold", hold),), hospitals=whose, detail={"org": wanted.org or "*"}))
    return {"hold": hold}


@HANDLERS.on(RequestLift)
async def request_lift(command: Envelope[RequestLift], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Fix which hold would be lifted. Result: as `request_pruning`."""
    row = await uow.first(select(holds).where(holds.c.hold == command.data.hold, holds.c.lifted_at.is_(None)))
    if row is None:
        raise Problem("request.not_found", kind="hold", id=command.data.hold)
    return await _ask(uow, RETENTION, {"lift": row.hold, "org": row.org})


async def _ask(uow: UnitOfWork[Ports], action: str, wanted: dict[str, Any]) -> dict[str, Any]:
    change = new_id()
    request = {"change": change, "requester": uow.actor.text, "action": action, **wanted}
    digest = approvals.request_digest(request)
    values = {"change": change, "action": action, "request": request, "digest": digest, "requester": request["requester"]}
    await uow.execute(insert(changes).values(**values, state="waiting", approval="", code="", created_at=uow.now))
    uow.audit(
        AuditEntry("retention.request", "C", entities=(Entity("change", change, digest=digest),), detail={"action": action, **wanted})
    )
    return {"change": change, "digest": digest, "request": request}


# --- decisions ------------------------------------------------------------------------------------------------------


@HANDLERS.on(ApprovalGranted, durable="change-approved")
async def change_approved(event: Envelope[ApprovalGranted], uow: UnitOfWork[Ports]) -> None:
    """A second person approved exactly this request. A grant that does not fit raises (a dead letter) and changes nothing."""
    grant = event.data
    if grant.action not in (PRUNE, RETENTION):
        return
    row = await uow.first(select(changes).where(changes.c.change == grant.target).with_for_update())
    if row is None or row.action != grant.action:
        raise Problem("request.not_found", kind="change", id=grant.target)
    trust, roster = uow.ports.trust(), uow.ports.runtime.roster()
    found = await spend(uow, grant, trust, roster, target=row.change, digest=row.digest, maker=row.requester)
    if row.state != "waiting":
        raise Problem("audit.change_closed", change=row.change, state=row.state)
    spent = found.evidence()
    about, wanted = Entity("change", row.change, digest=row.digest), row.request
    code, state = "", "done"
    if row.action == PRUNE:
        # A hold may have been placed since, and others may have been quicker.
        code = "" if await minimum_index(uow) < wanted["minimum"] <= await prunable(uow) else "audit.held"
        state = "failed" if code else "approved"
        # What a verifier finds in the log and believes: bodies below this are not missing, they were pruned.
        what = {"minimum": wanted["minimum"]}
        uow.audit(AuditEntry("retention.request" if code else PRUNE, "D", 4 if code else 0, code, (about,), approval=spent, detail=what))
    elif "lift" in wanted:
        await uow.execute(update(holds).where(holds.c.hold == wanted["lift"]).values(lifted_at=uow.now))
        uow.audit(
            AuditEntry("log.hold", "D", entities=(about, Entity("hold", wanted["lift"])), approval=spent, detail={"org": wanted["org"]})
        )
    else:
        await uow.execute(insert(retentions).values(change=row.change, kind=wanted["class"], days=wanted["days"], at=uow.now))
        detail = {"class": wanted["class"], "days": wanted["days"]}
        uow.audit(AuditEntry(RETENTION, "U", entities=(about,), approval=spent, detail=detail))
    await uow.execute(update(changes).where(changes.c.change == row.change).values(state=state, approval=found.id, code=code))
    if state == "done":
        uow.emit(LogChanged(change=row.change, action=row.action, minimum=await minimum_index(uow)))
    uow.on_commit(uow.ports.prune.set)


@HANDLERS.on(ApprovalRefused, durable="change-refused")
async def change_refused(event: Envelope[ApprovalRefused], uow: UnitOfWork[Ports]) -> None:
    """An approver refused it."""
    said = event.data
    if said.action not in (PRUNE, RETENTION):
        return
    fits = (changes.c.change == said.target) & (changes.c.digest == said.digest) & (changes.c.state == "waiting")
    done = await uow.execute(update(changes).where(fits).values(state="refused", approval=said.approval))
    if done.rowcount:
        refused = {"id": said.approval, "digest": said.digest}
        about = (Entity("change", said.target, digest=said.digest),)
        uow.audit(AuditEntry("retention.request", "U", 4, "audit.change_refused", about, approval=refused))


@HANDLERS.answers(GetRetention)
async def get_retention(query: Envelope[GetRetention], uow: UnitOfWork[Ports]) -> RetentionView:
    """The policy, what keeps more, what has gone, and what is asked for: for the platform's auditors."""
    if scope(uow.actor) is not None:
        raise Problem("request.not_found", kind="retention", id="policy")
    found = await uow.all(select(changes).order_by(changes.c.created_at.desc()).limit(100))
    active = await uow.all(select(holds).where(holds.c.lifted_at.is_(None)).order_by(holds.c.placed_at))
    return RetentionView(
        days=await policy(uow, uow.ports.settings.retention),
        minimum=await minimum_index(uow),
        prunable=await prunable(uow),
        holds=tuple(Hold(hold=row.hold, org=row.org, reason=row.reason, who=row.who, placed=row.placed_at) for row in active),
        changes=tuple(Change(change=row.change, action=row.action, state=row.state, code=row.code, request=row.request) for row in found),
    )
