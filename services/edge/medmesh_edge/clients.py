"""The hospital's systems that may use the node's DICOMweb: a token each, for one project and one realm, kept as its hash, revocable."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import delete, insert, select

from medmesh.archive.tables import Realm
from medmesh.errors import Problem
from medmesh.security.codes import bearer_hash, new_bearer
from medmesh.security.tokens import Actor
from medmesh.store.unit import AuditEntry, Entity
from medmesh_edge.ports import Site
from medmesh_edge.tables import dicomweb_clients

Right = Literal["read", "write"]


@dataclass(frozen=True, slots=True)
class Client:
    """Whoever shows its token."""

    name: str
    project: str
    realm: Realm
    rights: tuple[str, ...]
    expires: datetime

    def actor(self, hospital: str) -> Actor:
        """As records name it."""
        return Actor("system", self.name, hospital, frozenset())


async def create(site: Site, name: str, project: str, realm: Realm, rights: tuple[Right, ...], days: int) -> str:
    """A new client's token, told this once. Objects come in as originals: who writes has that realm. Raises `Problem`
    (`dicomweb.client`)."""
    for text in (name, project):
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", text):
            raise Problem("dicomweb.client", name=name[:63], reason="small letters, digits, - and _")
    if "write" in rights and realm != "original":
        raise Problem("dicomweb.client", name=name, reason="write goes with the realm original")
    token = new_bearer()
    async with site.unit() as uow:
        if await uow.first(select(dicomweb_clients.c.name).where(dicomweb_clients.c.name == name)) is not None:
            raise Problem("dicomweb.client", name=name, reason="its name is taken")
        values = {"name": name, "project": project, "realm": realm, "rights": ",".join(sorted(rights)), "token": bearer_hash(token)}
        await uow.execute(insert(dicomweb_clients).values(**values, at=uow.now, expires=uow.now + timedelta(days=days)))
        detail: dict[str, str | int | bool] = {"client": name, "realm": realm, "rights": values["rights"], "days": days}
        uow.audit(
            AuditEntry("dicomweb.token_create", "C", entities=(Entity("dataset", f"{site.settings.hospital}/{project}"),), detail=detail)
        )
    return token


async def revoke(site: Site, name: str) -> None:
    """Its token opens nothing from now on. Raises `Problem` (`dicomweb.client`)."""
    async with site.unit() as uow:
        row = await uow.first(delete(dicomweb_clients).where(dicomweb_clients.c.name == name).returning(dicomweb_clients.c.project))
        if row is None:
            raise Problem("dicomweb.client", name=name, reason="there is none of that name")
        about = (Entity("dataset", f"{site.settings.hospital}/{row.project}"),)
        uow.audit(AuditEntry("dicomweb.token_revoke", "D", entities=about, detail={"client": name}))


async def all_clients(site: Site) -> list[Client]:
    """By name."""
    async with site.unit() as uow:
        rows = await uow.all(select(dicomweb_clients).order_by(dicomweb_clients.c.name))
    return [Client(row.name, row.project, row.realm, tuple(row.rights.split(",")), row.expires) for row in rows]


async def authenticate(site: Site, authorization: str) -> Client:
    """Whose token it is. Raises `Problem` (`dicomweb.token`)."""
    kind, _, token = authorization.partition(" ")
    if kind.lower() == "bearer" and token:
        # Without a transaction: every request looks here first, and it changes nothing.
        async with site.database.engine.connect() as sql:
            wanted = select(dicomweb_clients).where(dicomweb_clients.c.token == bearer_hash(token.strip()))
            row = (await sql.execute(wanted)).first()
        if row is not None and row.expires > datetime.now(row.expires.tzinfo):
            return Client(row.name, row.project, row.realm, tuple(row.rights.split(",")), row.expires)
    raise Problem("dicomweb.token")
