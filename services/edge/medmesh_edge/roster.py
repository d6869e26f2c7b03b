"""The roster this hospital goes by: its first version is pinned by a fingerprint that was read aloud, later ones are believed by their
signatures alone, whoever hands them over."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from medmesh.client.gateway import Gateway
from medmesh.embedded import files
from medmesh.errors import Problem
from medmesh.security.roster import Believed, believe, notes_of
from medmesh.security.roster_file import RosterFile
from medmesh.store.unit import AuditEntry, Entity
from medmesh.telemetry import log
from medmesh_edge.ports import Site
from medmesh_edge.settings import Layout


async def served(gateway: Gateway) -> list[str]:
    """The versions the platform shows, none of them believed. Raises `Problem`."""
    return [str(one) for one in (await gateway.request("GET", "/v1/roster"))["versions"]]


def pin(layout: Layout, notes: Sequence[str], fingerprint: str | None) -> Believed:
    """Believe the version with this fingerprint and those after it; without one, the first version of a file that was handed over.
    What was pinned once stays pinned. Raises `Problem` (`roster.*`, `edge.roster_pinned`)."""
    found = believe(notes, fingerprint)
    if layout.roster.exists():
        known = RosterFile(layout.roster).chain()
        if known.pin != found.pin:
            raise Problem("edge.roster_pinned", pin=known.pin)
        found = known.extended(notes)
    files.write(layout.roster, found.document())
    return found


def take(site: Site, notes: Sequence[str]) -> Believed | None:
    """What the roster is with the versions that continue it; None when there is nothing new. Raises `Problem`."""
    known = site.roster_file.chain()
    if tuple(notes) == tuple(known.notes) or len((found := known.extended(notes)).notes) == len(known.notes):
        return None
    files.write(site.layout.roster, found.document())
    return found


async def refresh(site: Site, gateway: Gateway) -> bool:
    """Take newer versions from the platform; whether there were any. One that the keepers did not sign is refused and recorded."""
    if not site.layout.roster.exists():
        return False
    try:
        offered = await served(gateway)
    except Problem as problem:
        if problem.code != "roster.none":
            raise
        return False
    try:
        found = take(site, offered)
    except Problem as problem:
        log("edge.roster.refused", level=40, error=problem)
        async with site.unit() as uow:
            uow.audit(AuditEntry("roster.update", "U", outcome=8, why=problem.code))
        raise
    if found is None:
        return False
    await record(site, found)
    log("edge.roster.updated", version=found.roster.version)
    return True


async def record(site: Site, found: Believed, *, pinned: bool = False) -> None:
    """That the hospital goes by this version from now on."""
    async with site.unit() as uow:
        about = (Entity("roster", found.roster.platform, version=str(found.roster.version)),)
        uow.audit(AuditEntry("roster.pin" if pinned else "roster.update", "U", entities=about, detail={"fingerprint": found.present}))
    site.changed.set()


async def hand_over(site: Site, content: bytes) -> Believed | None:
    """Newer versions in a file that came by another way than the platform. Raises `Problem`."""
    found = take(site, notes_of(content))
    if found is not None:
        await record(site, found)
    return found


class Refresher:
    """Asks for newer versions now and then; a version that was refused is not asked for in a hurry."""

    def __init__(self, site: Site, gateway: Gateway) -> None:
        self._site, self._gateway, self._next = site, gateway, datetime.min.replace(tzinfo=UTC)

    async def step(self) -> bool:
        """See the class."""
        now = datetime.now(UTC)
        if now >= self._next:
            await refresh(self._site, self._gateway)
            self._next = now + self._site.settings.roster_every
        return False
