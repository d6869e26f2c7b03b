"""Sessions and accounts: exchanges of credentials."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from medmesh.contracts.governance import (
    ActivateUser,
    ActorToken,
    Bootstrap,
    CloseSession,
    CreateUser,
    Done,
    ListUsers,
    OneTimeCode,
    OpenSession,
    ResolveSession,
    SessionOpened,
    UserCreated,
    Users,
    UserView,
)
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.security.codes import bearer_hash, code_hash, new_bearer, new_code, same
from medmesh.security.passwords import check_policy, hash_password, verify_password
from medmesh.security.roles import check_roles
from medmesh.security.tokens import AUDIENCE, Actor, person_token
from medmesh.store.unit import AuditEntry, Context, Entity, UnitOfWork
from medmesh_governance.domain import locked_until
from medmesh_governance.ports import HANDLERS, Ports
from medmesh_governance.tables import sessions, users

TOKEN_MINUTES = 10
AUDIENCES = (AUDIENCE, "inference", "audit")


def as_person(uow: UnitOfWork[Ports], name: str, organisation: str = "platform") -> None:
    """Let the audit records of this transaction name the person whose secret was just checked."""
    actor = Actor("person", name, organisation)
    uow.context = Context(uow.context.service, uow.context.cause, actor, None, uow.context.traceparent)


@HANDLERS.answers(Bootstrap)
async def bootstrap(query: Envelope[Bootstrap], uow: UnitOfWork[Ports]) -> Done:
    """Create the first security administrator; works once, while there is no user."""
    wanted = query.data
    expected = uow.ports.bootstrap_hash
    given = hashlib.sha256(wanted.token.strip().encode()).hexdigest()
    exists = await uow.first(select(users.c.name).limit(1))
    if expected is None or exists is not None or not same(given, expected):
        raise Problem("governance.bootstrap_refused")
    check_policy(wanted.name, wanted.password)
    values = {
        "name": wanted.name,
        "display_name": wanted.display_name,
        "organisation": "platform",
        "roles": ["security_administrator"],
        "password_hash": hash_password(wanted.password),
        "created_at": uow.now,
    }
    await uow.execute(insert(users).values(values))
    uow.emit(UserCreated(name=wanted.name, organisation="platform", roles=("security_administrator",)))
    as_person(uow, wanted.name)
    uow.audit(AuditEntry("governance.bootstrap", "C", entities=(Entity("user", wanted.name),)))
    return Done()


@HANDLERS.answers(CreateUser)
async def create_user(query: Envelope[CreateUser], uow: UnitOfWork[Ports]) -> OneTimeCode:
    """Create an account; its owner sets the password with the code."""
    wanted = query.data
    roles = sorted(check_roles(wanted.roles))
    code = new_code()
    expires = uow.now + timedelta(hours=uow.ports.settings.enrolment_hours)
    values = {
        "name": wanted.name,
        "display_name": wanted.display_name,
        "organisation": wanted.organisation,
        "roles": roles,
        "activation_hash": code_hash(code),
        "activation_expires": expires,
        "created_at": uow.now,
    }
    try:
        await uow.execute(insert(users).values(values))
    except IntegrityError:
        raise Problem("governance.taken", kind="user", name=wanted.name) from None
    uow.emit(UserCreated(name=wanted.name, organisation=wanted.organisation, roles=tuple(roles)))
    uow.audit(AuditEntry("user.create", "C", entities=(Entity("user", wanted.name),), detail={"roles": ",".join(roles)}))
    return OneTimeCode(code=code, expires=expires)


@HANDLERS.answers(ActivateUser)
async def activate_user(query: Envelope[ActivateUser], uow: UnitOfWork[Ports]) -> Done:
    """Set the first password."""
    wanted = query.data
    row = await uow.first(select(users).where(users.c.name == wanted.name).with_for_update())
    if (
        row is None
        or row.activation_hash is None
        or not same(row.activation_hash, code_hash(wanted.code))
        or row.activation_expires < uow.now
    ):
        raise Problem("governance.code_refused")
    check_policy(wanted.name, wanted.password)
    values: dict[str, Any] = {"password_hash": hash_password(wanted.password), "activation_hash": None, "activation_expires": None}
    await uow.execute(update(users).where(users.c.name == wanted.name).values(values))
    as_person(uow, wanted.name, row.organisation)
    uow.audit(AuditEntry("user.activate", "U", entities=(Entity("user", wanted.name),)))
    return Done()


@HANDLERS.answers(OpenSession)
async def open_session(query: Envelope[OpenSession], uow: UnitOfWork[Ports]) -> SessionOpened | Problem:
    """Sign in. A failure is counted and recorded, so it is answered, not raised: raising would undo the count."""
    wanted, settings = query.data, uow.ports.settings
    row = await uow.first(select(users).where(users.c.name == wanted.name).with_for_update())
    fits = verify_password(row.password_hash if row else None, wanted.password)
    as_person(uow, wanted.name, row.organisation if row else "unknown")
    if row is not None and row.locked_until is not None and row.locked_until > uow.now:
        uow.audit(AuditEntry("session.open", "E", outcome=8, why="governance.locked"))
        return Problem("governance.locked", minutes=settings.lock_minutes)
    if row is None or not fits:
        if row is not None:
            failures = row.failures + 1
            until = locked_until(failures, settings.lock_after, settings.lock_minutes, uow.now)
            await uow.execute(update(users).where(users.c.name == row.name).values(failures=0 if until else failures, locked_until=until))
        uow.audit(AuditEntry("session.open", "E", outcome=4, why="governance.sign_in_refused"))
        return Problem("governance.sign_in_refused")
    await uow.execute(update(users).where(users.c.name == row.name).values(failures=0, locked_until=None))
    bearer = new_bearer()
    expires = uow.now + timedelta(hours=settings.session_hours)
    await uow.execute(
        insert(sessions).values(hash=bearer_hash(bearer), name=row.name, opened_at=uow.now, used_at=uow.now, expires_at=expires)
    )
    uow.audit(AuditEntry("session.open", "E"))
    return SessionOpened(session=bearer, expires=expires, roles=tuple(row.roles))


@HANDLERS.answers(ResolveSession)
async def resolve_session(query: Envelope[ResolveSession], uow: UnitOfWork[Ports]) -> ActorToken:
    """Exchange a session for an actor token; using it keeps it from going idle."""
    settings = uow.ports.settings
    if query.data.audience not in AUDIENCES:
        raise Problem("request.invalid", reason=f"audience is one of {', '.join(AUDIENCES)}")
    key = bearer_hash(query.data.session)
    wanted = (
        select(sessions, users.c.organisation, users.c.roles).join(users, users.c.name == sessions.c.name).where(sessions.c.hash == key)
    )
    row = await uow.first(wanted)
    if row is None or row.expires_at < uow.now or row.used_at + timedelta(minutes=settings.session_idle_minutes) < uow.now:
        raise Problem("governance.session_over")
    await uow.execute(update(sessions).where(sessions.c.hash == key).values(used_at=uow.now))
    actor = Actor("person", row.name, row.organisation, frozenset(row.roles), "password")
    token = person_token(uow.ports.identity, actor, audience=query.data.audience, minutes=TOKEN_MINUTES, now=uow.now)
    return ActorToken(token=token, expires=uow.now + timedelta(minutes=TOKEN_MINUTES))


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


@HANDLERS.answers(ListUsers)
async def list_users(query: Envelope[ListUsers], uow: UnitOfWork[Ports]) -> Users:
    """Every account, without secrets."""
    rows = await uow.all(select(users).order_by(users.c.name))
    views = (
        UserView(
            name=r.name, display_name=r.display_name, organisation=r.organisation, roles=tuple(r.roles), active=r.password_hash is not None
        )
        for r in rows
    )
    return Users(users=tuple(views))
