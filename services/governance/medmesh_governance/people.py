"""Accounts: created with a one-time code, changed, disabled, enabled and recovered by the security administrator."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError

from medmesh.contracts.governance import (
    ActivateUser,
    Bootstrap,
    ChangeRoles,
    CreateUser,
    DisableUser,
    Done,
    EnableUser,
    ListUsers,
    OneTimeCode,
    RecoverUser,
    SetClearance,
    UnlockUser,
    UserChanged,
    UserCreated,
    Users,
    UserView,
)
from medmesh.contracts.labels import Clearance
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.security.codes import code_hash, new_code, same
from medmesh.security.labels import own
from medmesh.security.passwords import check_policy
from medmesh.security.roles import check_roles
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_governance.certificates import revoke
from medmesh_governance.credentials import set_password
from medmesh_governance.domain import idle
from medmesh_governance.ports import HANDLERS, Ports
from medmesh_governance.sessions import as_person, end_all
from medmesh_governance.tables import certificates, users


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
        "created_at": uow.now,
    }
    await uow.execute(insert(users).values(values))
    await set_password(uow, wanted.name, wanted.password)
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
        "compartments": sorted(own(wanted.organisation)),
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
    """Set the first password, or a new one after a recovery."""
    wanted = query.data
    row = await uow.first(select(users).where(users.c.name == wanted.name).with_for_update())
    if (
        row is None
        or row.disabled_at is not None
        or row.activation_hash is None
        or not same(row.activation_hash, code_hash(wanted.code))
        or row.activation_expires < uow.now
    ):
        raise Problem("governance.code_refused")
    values: dict[str, Any] = {"activation_hash": None, "activation_expires": None, "failures": 0, "locked_until": None}
    await set_password(uow, wanted.name, wanted.password, **values)
    as_person(uow, wanted.name, row.organisation)
    uow.audit(AuditEntry("user.activate", "U", entities=(Entity("user", wanted.name),)))
    return Done()


@HANDLERS.answers(RecoverUser)
async def recover_user(query: Envelope[RecoverUser], uow: UnitOfWork[Ports]) -> OneTimeCode:
    """A new activation code; the old password and the sessions are gone at once."""
    wanted = query.data
    _person(await account(uow, wanted.name))
    code = new_code()
    expires = uow.now + timedelta(hours=uow.ports.settings.enrolment_hours)
    values: dict[str, Any] = {"activation_hash": code_hash(code), "activation_expires": expires, "password_hash": None}
    if wanted.second_factor:
        values |= {"factor": None, "factor_new": None}
        await revoke(uow, wanted.name, reason="recovered")
    await uow.execute(update(users).where(users.c.name == wanted.name).values(values))
    await end_all(uow, wanted.name)
    entities = (Entity("user", wanted.name),)
    uow.audit(AuditEntry("user.recover", "U", entities=entities, detail={"second_factor": wanted.second_factor}))
    return OneTimeCode(code=code, expires=expires)


@HANDLERS.on(ChangeRoles)
async def change_roles(command: Envelope[ChangeRoles], uow: UnitOfWork[Ports]) -> None:
    """Give exactly these roles."""
    roles = sorted(check_roles(command.data.roles))
    row = _person(await account(uow, command.data.name))
    detail = {"before": ",".join(row.roles), "after": ",".join(roles)}
    await change_account(uow, row, "user.roles", detail, roles=roles)


@HANDLERS.on(SetClearance)
async def set_clearance(command: Envelope[SetClearance], uow: UnitOfWork[Ports]) -> None:
    """Clear somebody up to a level and for compartments."""
    row, wanted = await account(uow, command.data.name), command.data.clearance
    compartments = sorted(set(wanted.compartments))
    detail = {"before": _cleared(row.clearance, row.compartments), "after": _cleared(wanted.level, compartments)}
    await change_account(uow, row, "clearance.set", detail, clearance=wanted.level, compartments=compartments)


def _cleared(level: str, compartments: list[str]) -> str:
    return f"{level}{{{','.join(compartments)}}}"


@HANDLERS.on(DisableUser)
async def disable_user(command: Envelope[DisableUser], uow: UnitOfWork[Ports]) -> None:
    """Close an account; closing a closed one changes nothing."""
    row = await account(uow, command.data.name)
    if row.disabled_at is None:
        await change_account(uow, row, "user.disable", {"reason": command.data.reason}, disabled_at=uow.now)
    else:
        uow.unchanged()


@HANDLERS.on(EnableUser)
async def enable_user(command: Envelope[EnableUser], uow: UnitOfWork[Ports]) -> None:
    """Open it again; it counts as used from now on, or the idle rule would close it at once."""
    row = await account(uow, command.data.name)
    if row.disabled_at is not None:
        await change_account(uow, row, "user.enable", {}, disabled_at=None, signed_in_at=uow.now)
    else:
        uow.unchanged()


@HANDLERS.on(UnlockUser)
async def unlock_user(command: Envelope[UnlockUser], uow: UnitOfWork[Ports]) -> None:
    """Lift a lock."""
    row = await account(uow, command.data.name)
    await uow.execute(update(users).where(users.c.name == row.name).values(failures=0, locked_until=None))
    uow.audit(AuditEntry("user.unlock", "U", entities=(Entity("user", row.name),)))


async def disable_idle(uow: UnitOfWork[Ports]) -> None:
    """Close accounts nobody used for long (GB/T 22239-2019 8.1.4.2 c). The last security administrator is left: without one
    nobody could open any account again."""
    used = func.coalesce(users.c.signed_in_at, users.c.created_at)
    rows = await uow.all(select(users).where(users.c.disabled_at.is_(None)).order_by(used.desc()).with_for_update(skip_locked=True))
    keep = next((row.name for row in rows if "security_administrator" in row.roles), "")
    for row in rows:
        if row.name != keep and idle(row.signed_in_at or row.created_at, uow.ports.settings.idle_days, uow.now):
            await change_account(uow, row, "user.disable", {"reason": "idle"}, disabled_at=uow.now)


async def account(uow: UnitOfWork[Ports], name: str) -> Any:
    """An account, locked. That nobody administers their own is an object rule (`object.not-oneself`). Raises `Problem`."""
    row = await uow.first(select(users).where(users.c.name == name).with_for_update())
    if row is None:
        raise Problem("request.not_found", kind="user", id=name)
    return row


def _person(row: Any) -> Any:
    """Systems have one role, and no password. Raises `Problem`."""
    if row.kind != "person":
        raise Problem("governance.no_person", name=row.name)
    return row


async def change_account(uow: UnitOfWork[Ports], row: Any, verb: str, detail: dict[str, Any], **values: Any) -> None:
    """Change what somebody may do: it counts from now on, so the sessions end."""
    await uow.execute(update(users).where(users.c.name == row.name).values(values))
    await end_all(uow, row.name)
    roles, disabled = values.get("roles", row.roles), values.get("disabled_at", row.disabled_at)
    uow.emit(UserChanged(name=row.name, roles=tuple(roles), disabled=disabled is not None))
    uow.audit(AuditEntry(verb, "U", entities=(Entity("user", row.name),), detail=detail))


@HANDLERS.answers(ListUsers)
async def list_users(query: Envelope[ListUsers], uow: UnitOfWork[Ports]) -> Users:
    """Every account, without secrets."""
    counted = select(certificates.c.name, func.max(certificates.c.expires_at).label("until")).group_by(certificates.c.name)
    counted = counted.where(certificates.c.revoked_at.is_(None), certificates.c.expires_at > uow.now)
    until = {r.name: r.until for r in await uow.all(counted)}
    views = (
        UserView(
            name=r.name,
            display_name=r.display_name,
            organisation=r.organisation,
            roles=tuple(r.roles),
            active=(r.password_hash is not None or r.kind == "system") and r.disabled_at is None,
            kind=r.kind,
            second_factor=r.factor is not None,
            disabled=r.disabled_at is not None,
            locked_until=r.locked_until if r.locked_until and r.locked_until > uow.now else None,
            signed_in=r.signed_in_at,
            certificate_until=until.get(r.name),
            clearance=Clearance(level=r.clearance, compartments=tuple(r.compartments)),
        )
        for r in await uow.all(select(users).order_by(users.c.name))
    )
    return Users(users=tuple(views))
