"""Hospital systems: accounts without a password, which sign in with a key of their own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from medmesh.canonical import digest
from medmesh.contracts.governance import OpenSystemSession, RegisterSystem, SessionOpened
from medmesh.contracts.message import Envelope, new_id
from medmesh.errors import Problem
from medmesh.security.assertions import claimed, read_key, verify
from medmesh.security.codes import bearer_hash, new_bearer
from medmesh.security.labels import own
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_governance.ports import HANDLERS, Ports
from medmesh_governance.sessions import acting
from medmesh_governance.tables import assertions, hospitals, sessions, users


@HANDLERS.on(RegisterSystem)
async def register_system(command: Envelope[RegisterSystem], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Register a system of a known hospital with its public key."""
    wanted = command.data
    read_key(wanted.public_key_pem)
    if await uow.first(select(hospitals.c.hospital).where(hospitals.c.hospital == wanted.hospital)) is None:
        raise Problem("request.not_found", kind="hospital", id=wanted.hospital)
    values = {
        "name": wanted.name,
        "kind": "system",
        "display_name": wanted.display_name or wanted.name,
        "organisation": wanted.hospital,
        "roles": ["system", f"system:{wanted.hospital}"],
        "compartments": sorted(own(wanted.hospital)),
        "public_key": wanted.public_key_pem,
        "created_at": uow.now,
    }
    try:
        await uow.execute(insert(users).values(values))
    except IntegrityError:
        raise Problem("governance.taken", kind="user", name=wanted.name) from None
    entities = (Entity("system", wanted.name, digest=digest(wanted.public_key_pem)), Entity("hospital", wanted.hospital))
    uow.audit(AuditEntry("system.register", "C", entities=entities))
    return {"system": wanted.name}


@HANDLERS.answers(OpenSystemSession)
async def open_system_session(query: Envelope[OpenSystemSession], uow: UnitOfWork[Ports]) -> SessionOpened:
    """A session for an assertion; each counts once."""
    name = claimed(query.data.assertion)
    row = await uow.first(select(users).where(users.c.name == name, users.c.kind == "system").with_for_update())
    if row is None or row.disabled_at is not None:
        raise Problem("security.assertion_refused", reason="signature")  # no word on which systems there are
    shown = verify(query.data.assertion, read_key(row.public_key), name, uow.now)
    once = upsert(assertions).values(system=name, jti=shown.id, until=shown.ends).on_conflict_do_nothing().returning(assertions.c.jti)
    if (await uow.execute(once)).first() is None:
        raise Problem("security.assertion_refused", reason="used before")
    acting(uow, row)
    bearer, expires = new_bearer(), uow.now + timedelta(minutes=uow.ports.settings.system_minutes)
    values = {
        "hash": bearer_hash(bearer),
        "id": new_id(),
        "name": name,
        "must": [],
        "opened_at": uow.now,
        "used_at": uow.now,
        "expires_at": expires,
    }
    await uow.execute(insert(sessions).values(values))
    await uow.execute(update(users).where(users.c.name == name).values(signed_in_at=uow.now))
    uow.audit(AuditEntry("session.open", "E", detail={"method": "private_key_jwt"}))
    return SessionOpened(session=bearer, expires=expires, roles=tuple(row.roles))


async def prune(uow: UnitOfWork[Ports]) -> None:
    """Forget assertions that are over anyway."""
    await uow.execute(delete(assertions).where(assertions.c.until < uow.now))
