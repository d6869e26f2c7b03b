"""A one-time link that somebody handed to this hospital's people: it is opened at the platform and shows the plan that lies here."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import select

from medmesh.errors import Problem
from medmesh.federated.invitation import parts
from medmesh.store.unit import AuditEntry, Entity
from medmesh_edge.ports import Site
from medmesh_edge.tables import federations


async def open_link(site: Site, link: str, *, seconds: float = 10.0) -> Any:
    """The row of the invitation. What is shown is what the node was told and would sign, never what a link says: the link's plan must be
    that one. Raises `Problem` (`federation.link`, `federation.plan_changed`, `edge.not_told`)."""
    federation, secret = parts(link)
    if (row := await _row(site, federation, seconds)) is None:
        raise Problem("edge.not_told", federation=federation)  # and the link is still good
    async with site.gateway() as gateway:
        said = await gateway.command("POST", f"/v1/federations/{federation}/opening", {"secret": secret})
    if said["plan_hash"] != row.plan_hash:
        raise Problem("federation.plan_changed", federation=federation)
    async with site.unit() as uow:
        uow.audit(AuditEntry("federation.open", "R", entities=(Entity("federation", federation, digest=row.plan_hash),)))
    return row


async def _row(site: Site, federation: str, seconds: float) -> Any:
    """A moment later where the node is about to hear of it."""
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    while True:
        async with site.unit() as uow:
            row = await uow.first(select(federations).where(federations.c.federation == federation))
        if row is not None or clock() > end:
            return row
        await asyncio.sleep(0.25)
