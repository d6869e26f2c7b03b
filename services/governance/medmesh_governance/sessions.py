"""Sessions of people: opened with password and second factor, strengthened, listed, ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, insert, select, update

from medmesh.contracts.governance import (
    ActorToken,
    CloseSession,
    Done,
    EndSession,
    ListSessions,
    OfSession,
    OpenSession,
    ResolveSession,
    SessionOpened,
    Sessions,
    SessionView,
    StepUp,
)
from medmesh.contracts.message import Envelope, new_id
from medmesh.errors import Problem
from medmesh.security import totp
from medmesh.security.codes import bearer_hash, new_bearer
from medmesh.security.emergency import Emergency
from medmesh.security.labels import Label, level
from medmesh.security.passwords import verify_password
from medmesh.security.tokens import AUDIENCE, Actor, person_token
from medmesh.store.unit import AuditEntry, Context, Entity, UnitOfWork
from medmesh_governance.domain import EmergencyState, due, idle, locked_until
from medmesh_governance.ports import HANDLERS, Ports
from medmesh_governance.tables import certificates, emergencies, sessions, users

TOKEN_MINUTES = 10
EMERGENCY_TOKEN_MINUTES = 2
"""A token that opens more than its roles do dies soon after that was ended."""
AUDIENCES = (AUDIENCE, "inference", "audit")


def acting(uow: UnitOfWork[Ports], row: Any) -> None:
    """The same for an account, which may be a system's."""
    actor = Actor(row.kind, row.name, row.organisation)
    uow.context = Context(uow.context.service, uow.context.cause, actor, None, uow.context.traceparent)


def as_person(uow: UnitOfWork[Ports], name: str, organisation: str = "platform") -> None:
    """Let the audit records of this transaction name the person whose secret was just checked."""
    actor = Actor("person", name, organisation)
    uow.context = Context(uow.context.service, uow.context.cause, actor, None, uow.context.traceparent)


async def live(uow: UnitOfWork[Ports], shown: OfSession, *, limited: bool = False) -> Any:
    """The row of an open session with its person, locked. Raises `Problem` when it is over, when it belongs to a client certificate
    that was not shown, or when something is due first (not with `limited`: for what does that very thing)."""
    wanted = select(sessions, *(c for c in users.c if c.name not in ("name",))).join(users, users.c.name == sessions.c.name)
    row = await uow.first(wanted.where(sessions.c.hash == bearer_hash(shown.session)).with_for_update())
    minutes = uow.ports.settings.session_idle_minutes
    if row is None or row.disabled_at is not None or row.expires_at < uow.now or row.used_at + timedelta(minutes=minutes) < uow.now:
        raise Problem("governance.session_over")
    if row.certificate is not None and row.certificate != shown.certificate:
        acting(uow, row)
        raise Problem("governance.certificate_session")
    if row.must and not limited:
        raise Problem("governance.password_due") if "password" in row.must else Problem("governance.second_factor_due")
    if limited and row.kind != "person":
        raise Problem("governance.no_person", name=row.name)
    acting(uow, row)
    return row


async def shows_factor(uow: UnitOfWork[Ports], row: Any, code: str, password: str) -> bool:
    """Whether somebody shows the second factor in an open session: a code, or the password where the connection shows the certificate
    to which the session belongs. Raises `Problem` when there is none."""
    if row.certificate is not None and not code:
        fits = verify_password(row.password_hash, password)
        if fits:
            await uow.execute(update(users).where(users.c.name == row.name).values(failures=0))
        return fits
    if row.factor is None:
        raise Problem("governance.no_second_factor")
    return await spend_code(uow, row, code)


async def failed(uow: UnitOfWork[Ports], row: Any, verb: str, problem: Problem) -> Problem:
    """Count a wrong secret of a known person and record it; answered, not raised: raising would undo the count."""
    settings = uow.ports.settings
    failures = row.failures + 1
    until = locked_until(failures, settings.lock_after, settings.lock_minutes, uow.now)
    await uow.execute(update(users).where(users.c.name == row.name).values(failures=0 if until else failures, locked_until=until))
    uow.audit(AuditEntry(verb, "E", outcome=4, why=problem.code))
    if until:
        uow.audit(AuditEntry("user.locked", "U", outcome=8, why=problem.code, entities=(Entity("user", row.name),)))
    return problem


async def spend_code(uow: UnitOfWork[Ports], row: Any, code: str) -> bool:
    """Whether a code of this person's second factor is right and new; it is used up."""
    if row.factor is None:
        return False
    step = totp.accept(uow.ports.seal.open(row.factor, row.name), code, uow.now, row.factor_step)
    if step is not None:
        await uow.execute(update(users).where(users.c.name == row.name).values(factor_step=step, failures=0))
    return step is not None


def locked(uow: UnitOfWork[Ports], row: Any, verb: str) -> Problem | None:
    """What somebody is told whose account too many wrong secrets closed for a while; recorded. None when it is open."""
    if row.locked_until is None or row.locked_until <= uow.now:
        return None
    uow.audit(AuditEntry(verb, "E", outcome=8, why="governance.locked"))
    return Problem("governance.locked", minutes=uow.ports.settings.lock_minutes)


@HANDLERS.answers(OpenSession)
async def open_session(query: Envelope[OpenSession], uow: UnitOfWork[Ports]) -> SessionOpened | Problem:
    """Sign in. Until the password fits, every refusal but the lock is the same."""
    wanted, settings = query.data, uow.ports.settings
    row = await uow.first(select(users).where(users.c.name == wanted.name).with_for_update())
    fits = verify_password(row.password_hash if row else None, wanted.password)
    as_person(uow, wanted.name, row.organisation if row else "unknown")
    if row is not None and (problem := locked(uow, row, "session.open")):
        return problem
    if row is None:
        uow.audit(AuditEntry("session.open", "E", outcome=4, why="governance.sign_in_refused"))
        return Problem("governance.sign_in_refused")
    if not fits:
        return await failed(uow, row, "session.open", Problem("governance.sign_in_refused"))
    if row.disabled_at is not None or idle(row.signed_in_at or row.created_at, settings.idle_days, uow.now):
        uow.audit(AuditEntry("session.open", "E", outcome=8, why="governance.disabled"))
        return Problem("governance.disabled")
    if row.ends_at is not None and row.ends_at <= uow.now:
        uow.audit(AuditEntry("session.open", "E", outcome=8, why="governance.ended"))
        return Problem("governance.ended")
    theirs = await good(uow, row.name)
    shown = next((one for one in theirs if one.fingerprint == wanted.certificate), None)
    if theirs and wanted.certificate is None:
        uow.audit(AuditEntry("session.open", "E", outcome=4, why="governance.certificate_wanted"))
        return Problem("governance.certificate_wanted")
    if shown is None and wanted.certificate is not None:
        return await failed(uow, row, "session.open", Problem("governance.certificate_wrong"))
    if shown is None and row.factor is not None and not wanted.code:
        uow.audit(AuditEntry("session.open", "E", outcome=4, why="governance.code_needed"))
        return Problem("governance.code_needed")
    if shown is None and row.factor is not None and not await spend_code(uow, row, wanted.code or ""):
        return await failed(uow, row, "session.open", Problem("governance.code_wrong"))
    strong = shown is not None or row.factor is not None
    must = due(row.roles, strong, row.password_at, settings.second_factor_roles, settings.password_days, uow.now)
    bearer = new_bearer()
    expires = uow.now + (timedelta(minutes=settings.grace_minutes) if must else timedelta(hours=settings.session_hours))
    ends = (expires, shown.expires_at if shown is not None else None, row.ends_at)
    expires = min(end for end in ends if end is not None)
    values = {
        "hash": bearer_hash(bearer),
        "id": new_id(),
        "name": row.name,
        "must": list(must),
        "strong_at": uow.now if strong else None,
        "certificate": shown.fingerprint if shown is not None else None,
        "opened_at": uow.now,
        "used_at": uow.now,
        "expires_at": expires,
    }
    await uow.execute(insert(sessions).values(values))
    await uow.execute(update(users).where(users.c.name == row.name).values(failures=0, locked_until=None, signed_in_at=uow.now))
    how = {"method": "pwd+swk", "certificate": shown.fingerprint} if shown is not None else {}
    uow.audit(AuditEntry("session.open", "E", detail={"second_factor": strong, "must": ",".join(must), **how}))
    return SessionOpened(session=bearer, expires=expires, roles=tuple(row.roles), must=must)


async def fulfilled(uow: UnitOfWork[Ports], row: Any, what: str, **values: Any) -> None:
    """What was due in a session was done: when nothing is left, it is a session like any other."""
    left = [name for name in row.must if name != what]
    if row.must and not left:
        full = row.opened_at + timedelta(hours=uow.ports.settings.session_hours)
        values["expires_at"] = min(full, row.ends_at) if row.ends_at is not None else full
    await uow.execute(update(sessions).where(sessions.c.hash == row.hash).values(must=left, used_at=uow.now, **values))


@HANDLERS.answers(StepUp)
async def step_up(query: Envelope[StepUp], uow: UnitOfWork[Ports]) -> Done | Problem:
    """Show the second factor again."""
    row = await live(uow, query.data)
    if problem := locked(uow, row, "session.step_up"):
        return problem
    if not await shows_factor(uow, row, query.data.code, query.data.password):
        return await failed(uow, row, "session.step_up", Problem("governance.code_wrong"))
    await uow.execute(update(sessions).where(sessions.c.hash == row.hash).values(strong_at=uow.now, used_at=uow.now))
    uow.audit(AuditEntry("session.step_up", "E"))
    return Done()


@HANDLERS.answers(ResolveSession)
async def resolve_session(query: Envelope[ResolveSession], uow: UnitOfWork[Ports]) -> ActorToken | Problem:
    """Exchange a session for an actor token; using it keeps it from going idle."""
    if query.data.audience not in AUDIENCES:
        raise Problem("request.invalid", reason=f"audience is one of {', '.join(AUDIENCES)}")
    try:
        row = await live(uow, query.data)
    except Problem as problem:
        if problem.code == "governance.certificate_session":  # somebody has the bearer, and not the key
            uow.audit(AuditEntry("session.foreign", "E", outcome=8, why=problem.code))
            return problem
        raise
    await uow.execute(update(sessions).where(sessions.c.hash == row.hash).values(used_at=uow.now))
    method = "pkjwt" if row.kind == "system" else "pwd+swk" if row.certificate else "pwd+otp" if row.strong_at else "pwd"
    emergency = await open_in(uow, row.id)
    clearance, shown = Label(level(row.clearance), frozenset(row.compartments)), row.certificate or ""
    roles = frozenset(row.roles)
    key = query.data.key or ""
    actor = Actor(row.kind, row.name, row.organisation, roles, method, row.strong_at, emergency, shown, clearance, key)
    minutes = EMERGENCY_TOKEN_MINUTES if emergency else TOKEN_MINUTES
    token = person_token(uow.ports.identity, actor, audience=query.data.audience, minutes=minutes, now=uow.now)
    return ActorToken(token=token, expires=uow.now + timedelta(minutes=minutes))


async def open_in(uow: UnitOfWork[Ports], session: str) -> Emergency | None:
    """The emergency access that is open in a session."""
    mine = (emergencies.c.session == session) & (emergencies.c.state == EmergencyState.OPEN.value)
    row = await uow.first(select(emergencies).where(mine, emergencies.c.expires_at > uow.now))
    return Emergency(row.emergency, row.organisation, row.expires_at) if row is not None else None


@HANDLERS.answers(CloseSession)
async def close_session(query: Envelope[CloseSession], uow: UnitOfWork[Ports]) -> Done:
    """Sign out; closing what is closed is no mistake."""
    key = bearer_hash(query.data.session)
    row = await uow.first(select(sessions.c.name).where(sessions.c.hash == key))
    if row is not None:
        await uow.execute(delete(sessions).where(sessions.c.hash == key))
        as_person(uow, row.name)
        uow.audit(AuditEntry("session.close", "E"))
    else:
        uow.unchanged()
    return Done()


@HANDLERS.answers(ListSessions)
async def list_sessions(query: Envelope[ListSessions], uow: UnitOfWork[Ports]) -> Sessions:
    """One's own, newest first."""
    mine = await live(uow, query.data)
    open_ones = (sessions.c.name == mine.name) & (sessions.c.expires_at > uow.now)
    idle_since = uow.now - timedelta(minutes=uow.ports.settings.session_idle_minutes)
    rows = await uow.all(select(sessions).where(open_ones, sessions.c.used_at > idle_since).order_by(sessions.c.opened_at.desc()))
    views = (
        SessionView(id=r.id, opened=r.opened_at, used=r.used_at, expires=r.expires_at, strong=r.strong_at, this=r.hash == mine.hash)
        for r in rows
    )
    return Sessions(sessions=tuple(views))


@HANDLERS.answers(EndSession)
async def end_session(query: Envelope[EndSession], uow: UnitOfWork[Ports]) -> Done:
    """End one of one's own, for example that of a machine that was lost."""
    mine = await live(uow, query.data)
    gone = await uow.execute(delete(sessions).where(sessions.c.id == query.data.id, sessions.c.name == mine.name).returning(sessions.c.id))
    if gone.first() is None:
        raise Problem("request.not_found", kind="session", id=query.data.id)
    uow.audit(AuditEntry("session.end", "D", entities=(Entity("session", query.data.id),)))
    return Done()


async def good(uow: UnitOfWork[Ports], name: str) -> Sequence[Any]:
    """A person's client certificates that count now."""
    theirs = (certificates.c.name == name) & certificates.c.revoked_at.is_(None) & (certificates.c.expires_at > uow.now)
    return await uow.all(select(certificates).where(theirs))


async def end_all(uow: UnitOfWork[Ports], name: str, *, but: str = "") -> None:
    """Every session of a person but the one with the hash `but`."""
    await uow.execute(delete(sessions).where(sessions.c.name == name, sessions.c.hash != but))


async def prune(uow: UnitOfWork[Ports]) -> None:
    """Forget sessions that are over."""
    idle_since = uow.now - timedelta(minutes=uow.ports.settings.session_idle_minutes)
    await uow.execute(delete(sessions).where((sessions.c.expires_at < uow.now) | (sessions.c.used_at < idle_since)))
