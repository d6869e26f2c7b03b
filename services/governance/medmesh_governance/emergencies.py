"""Emergency access: opened by who needs it, ended by its time, reviewed by somebody else."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import insert, select, update

from medmesh.canonical import digest
from medmesh.contracts.governance import (
    Emergencies,
    EmergencyEnded,
    EmergencyOpened,
    EmergencyOverdue,
    EmergencyReviewed,
    EmergencyView,
    EndEmergency,
    ListEmergencies,
    OpenEmergency,
    RestoreEmergency,
    ReviewEmergency,
)
from medmesh.contracts.message import Envelope, new_id
from medmesh.errors import Problem
from medmesh.security.redaction import identifying, redact
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log, metrics
from medmesh_governance.domain import EmergencyState, emergency_stands, judge, may_open_emergency, move_emergency
from medmesh_governance.ports import HANDLERS, Ports
from medmesh_governance.sessions import end_all, failed, live, locked, shows_factor
from medmesh_governance.tables import emergencies, hospitals, sessions, users

PLATFORM = "platform"
SEES_ALL = frozenset({"approver", "security_administrator", "audit_administrator", "auditor"})
UNSETTLED = (EmergencyState.OPEN.value, EmergencyState.ENDED.value)


@HANDLERS.answers(OpenEmergency)
async def open_emergency(query: Envelope[OpenEmergency], uow: UnitOfWork[Ports]) -> EmergencyView | Problem:
    """At once, for who shows the second factor now; the others are told by the event, the alarm and the log."""
    wanted, settings, asked = query.data, uow.ports.settings, uow.context
    row = await live(uow, wanted)
    if row.name != asked.actor.id:
        raise Problem("governance.session_over")
    uow.context = asked  # the record keeps the roles and the rule that allowed it
    if problem := locked(uow, row, "emergency.open"):
        return problem
    await settle(uow, row.name)
    theirs = await uow.all(select(emergencies).where(emergencies.c.person == row.name))
    if (same := _same(theirs, row.id, wanted)) is not None:
        uow.unchanged()
        return view(same, uow)
    standing = (emergency_stands(r.state, r.expires_at, r.due_at, uow.now) for r in theirs)
    may_open_emergency(row.name, row.emergency_withdrawn_at is not None, standing)
    note = _checked(wanted.note)
    if wanted.organisation != PLATFORM:
        known = await uow.first(select(hospitals.c.hospital).where(hospitals.c.hospital == wanted.organisation))
        if known is None:
            raise Problem("request.not_found", kind="hospital", id=wanted.organisation)
    if not await shows_factor(uow, row, wanted.code, wanted.password):
        return await failed(uow, row, "emergency.open", Problem("governance.code_wrong"))
    values: dict[str, Any] = {
        "emergency": new_id(),
        "person": row.name,
        "organisation": wanted.organisation,
        "reason": wanted.reason,
        "note": note,
        "session": row.id,
        "state": EmergencyState.OPEN.value,
        "opened_at": uow.now,
        "expires_at": uow.now + timedelta(minutes=min(wanted.minutes, settings.emergency_minutes)),
        "due_at": uow.now + timedelta(hours=settings.emergency_review_hours),
    }
    made = (await uow.execute(insert(emergencies).values(values).returning(emergencies))).one()
    await uow.execute(update(sessions).where(sessions.c.hash == row.hash).values(strong_at=uow.now, used_at=uow.now))
    uow.emit(
        EmergencyOpened(
            hospitals=_told(made),
            emergency=made.emergency,
            person=made.person,
            organisation=made.organisation,
            reason=made.reason,
            expires=made.expires_at,
            due=made.due_at,
        )
    )
    detail: dict[str, str | int | bool] = {"reason": made.reason, "expires": made.expires_at.isoformat(), "note": _fingerprint(made)}
    uow.audit(AuditEntry("emergency.open", "E", 0, "", _entities(made), hospitals=_told(made), detail=detail))
    uow.on_commit(lambda: log("emergency.opened", level=50, emergency=made.emergency, organisation=made.organisation, reason=made.reason))
    return view(made, uow)


@HANDLERS.on(EndEmergency)
async def end_emergency(command: Envelope[EndEmergency], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Ended is ended: again changes nothing."""
    row = await _locked(uow, command.data.emergency)
    if uow.actor.id != row.person and "security_administrator" not in uow.actor.roles:
        raise Problem("governance.emergency_not_yours", emergency=row.emergency)
    state = emergency_stands(row.state, row.expires_at, row.due_at, uow.now)
    if state is EmergencyState.OPEN:
        await _end(uow, row, uow.actor.text)
        state = EmergencyState.ENDED
    else:
        uow.unchanged()
    return {"emergency": row.emergency, "state": state.value}


@HANDLERS.on(ReviewEmergency)
async def review_emergency(command: Envelope[ReviewEmergency], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Somebody else's judgement; one that says no takes effect in this transaction."""
    wanted = command.data
    # The account before the access, as opening does: in the other order the two would wait for each other.
    person = select(emergencies.c.person).where(emergencies.c.emergency == wanted.emergency).scalar_subquery()
    await uow.execute(select(users.c.name).where(users.c.name == person).with_for_update())
    row = await _locked(uow, wanted.emergency)
    comment = _checked(wanted.comment, needed=not wanted.justified)
    present = emergency_stands(row.state, row.expires_at, row.due_at, uow.now)
    state = judge(row.emergency, row.person, present, uow.actor.id, wanted.justified)
    values = {"state": state.value, "reviewer": uow.actor.id, "comment": comment, "reviewed_at": uow.now}
    if row.ended_at is None:
        values |= {"ended_at": min(uow.now, row.expires_at)}
    await uow.execute(update(emergencies).where(emergencies.c.emergency == row.emergency).values(values))
    if not wanted.justified:
        await uow.execute(update(users).where(users.c.name == row.person).values(emergency_withdrawn_at=uow.now))
        await end_all(uow, row.person)
    uow.emit(
        EmergencyReviewed(
            hospitals=_told(row),
            emergency=row.emergency,
            person=row.person,
            organisation=row.organisation,
            justified=wanted.justified,
        )
    )
    detail: dict[str, str | int | bool] = {"state": state.value, "late": present is EmergencyState.OVERDUE}
    uow.audit(AuditEntry("emergency.review", "U", 0, "", _entities(row), hospitals=_told(row), detail=detail))
    return {"emergency": row.emergency, "state": state.value}


@HANDLERS.on(RestoreEmergency)
async def restore_emergency(command: Envelope[RestoreEmergency], uow: UnitOfWork[Ports]) -> None:
    """Nobody gives it back to themselves: a rule of `user.manage`."""
    name = command.data.name
    row = await uow.first(select(users).where(users.c.name == name).with_for_update())
    if row is None:
        raise Problem("request.not_found", kind="user", id=name)
    if row.emergency_withdrawn_at is None:
        uow.unchanged()
        return
    await uow.execute(update(users).where(users.c.name == name).values(emergency_withdrawn_at=None))
    uow.audit(AuditEntry("emergency.restore", "U", entities=(Entity("user", name),)))


@HANDLERS.answers(ListEmergencies)
async def list_emergencies(query: Envelope[ListEmergencies], uow: UnitOfWork[Ports]) -> Emergencies:
    """The last 500; who neither reviews nor audits sees their own."""
    wanted = select(emergencies).order_by(emergencies.c.opened_at.desc()).limit(500)
    if not SEES_ALL & set(uow.actor.roles):
        wanted = wanted.where(emergencies.c.person == uow.actor.id)
    views = [view(row, uow) for row in await uow.all(wanted)]
    return Emergencies(emergencies=tuple(v for v in views if query.data.state in (None, v.state)))


async def settle(uow: UnitOfWork[Ports], person: str | None = None) -> None:
    """Write down what time has done: ended, by its time or with its session, and, looking at everybody's, overdue, told once."""
    wanted = select(emergencies, sessions.c.id.label("alive")).outerjoin(sessions, sessions.c.id == emergencies.c.session)
    wanted = wanted.where(emergencies.c.state.in_(UNSETTLED)).order_by(emergencies.c.emergency)
    if person is not None:
        wanted = wanted.where(emergencies.c.person == person)
    for row in await uow.all(wanted.with_for_update(of=emergencies)):
        if row.state == EmergencyState.OPEN and (row.expires_at <= uow.now or row.alive is None):
            await _end(uow, row, "time" if row.expires_at <= uow.now else "session")
        if person is None and emergency_stands(EmergencyState.ENDED, row.expires_at, row.due_at, uow.now) is EmergencyState.OVERDUE:
            await _overdue(uow, row)


async def watch(uow: UnitOfWork[Ports]) -> None:
    """Settle, and show how many stand how."""
    await settle(uow)
    rows = await uow.all(select(emergencies.c.state).where(emergencies.c.reviewed_at.is_(None)))
    for state in (EmergencyState.OPEN, EmergencyState.ENDED, EmergencyState.OVERDUE):
        metrics.EMERGENCIES.labels(state.value).set(sum(row.state == state for row in rows))


async def _end(uow: UnitOfWork[Ports], row: Any, by: str) -> None:
    values = {"state": EmergencyState.ENDED.value, "ended_at": min(uow.now, row.expires_at)}
    await uow.execute(update(emergencies).where(emergencies.c.emergency == row.emergency).values(values))
    uow.emit(EmergencyEnded(hospitals=_told(row), emergency=row.emergency, organisation=row.organisation, by=by))
    uow.audit(AuditEntry("emergency.end", "E", 0, "", _entities(row), hospitals=_told(row), detail={"by": by}))


async def _overdue(uow: UnitOfWork[Ports], row: Any) -> None:
    state = move_emergency(row.emergency, EmergencyState.ENDED, EmergencyState.OVERDUE)
    await uow.execute(update(emergencies).where(emergencies.c.emergency == row.emergency).values(state=state.value))
    uow.emit(EmergencyOverdue(hospitals=_told(row), emergency=row.emergency, person=row.person, organisation=row.organisation))
    uow.audit(AuditEntry("emergency.overdue", "E", 8, "governance.emergency_overdue", _entities(row), hospitals=_told(row)))
    uow.on_commit(lambda: log("emergency.overdue", level=50, emergency=row.emergency, organisation=row.organisation))


async def _locked(uow: UnitOfWork[Ports], emergency: str) -> Any:
    row = await uow.first(select(emergencies).where(emergencies.c.emergency == emergency).with_for_update())
    if row is None:
        raise Problem("request.not_found", kind="emergency access", id=emergency)
    return row


def _same(theirs: Any, session: str, wanted: OpenEmergency) -> Any | None:
    """The one that is open for the same, where an answer was lost: it gives nothing that was not given, and so needs no new code."""
    for row in theirs:
        mine = row.state == EmergencyState.OPEN and row.session == session
        if mine and (row.organisation, row.reason, row.note) == (wanted.organisation, wanted.reason, redact(wanted.note.strip())):
            return row
    return None


def _checked(text: str, *, needed: bool = True) -> str:
    """A note one may keep. Raises `Problem` (`governance.emergency_note`), which never repeats the note."""
    text = text.strip()
    if needed and not text:
        raise Problem("governance.emergency_note", reason="it is empty")
    if not text.isprintable():
        raise Problem("governance.emergency_note", reason="it is not one line")
    if identifying(text):
        raise Problem("governance.emergency_note", reason="it looks as if it named somebody")
    return str(redact(text))


def _fingerprint(row: Any) -> str:
    """Binds the note to the record without telling it: what somebody typed in a hurry may have to be erased one day."""
    return digest({"emergency": row.emergency, "note": row.note})


def _told(row: Any) -> tuple[str, ...]:
    return () if row.organisation == PLATFORM else (row.organisation,)


def _entities(row: Any) -> tuple[Entity, ...]:
    return (Entity("emergency", row.emergency), Entity("user", row.person), Entity("organisation", row.organisation))


def view(row: Any, uow: UnitOfWork[Ports]) -> EmergencyView:
    """A row as it is answered, in the state it has at this moment."""
    return EmergencyView(
        emergency=row.emergency,
        person=row.person,
        organisation=row.organisation,
        reason=row.reason,
        note=row.note,
        state=emergency_stands(row.state, row.expires_at, row.due_at, uow.now).value,
        opened=row.opened_at,
        expires=row.expires_at,
        ended=row.ended_at,
        due=row.due_at,
        reviewer=row.reviewer or "",
        comment=row.comment,
    )
