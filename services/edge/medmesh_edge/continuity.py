"""The platform's log as this hospital saw it: every checkpoint it is shown must continue the one before, or nothing new is begun here.

The node asks for the newest checkpoint with each sign of life and keeps it, with what the log signed. One that is shorter, or has another
root at the same length, or of which no proof shows that it merely grew, is kept beside it: two notes signed by one key that cannot both be
true are a proof against whoever holds that key. So that a platform cannot show two hospitals two logs, a hospital's acceptance of a plan
names the checkpoint it knew, and every other hospital compares that with its own before it trains; and every few minutes nodes leave at the
gateway the checkpoint they go by and take along those of a few others.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.client.gateway import Gateway
from medmesh.contracts.audit import Sighting, Sightings
from medmesh.errors import Problem
from medmesh.ledger import note, tiles
from medmesh.ledger.note import Checkpoint, VerifierKey, signature_line
from medmesh.ledger.policy import demanding
from medmesh.ledger.tree import Node, consistency_proof, verify_consistency
from medmesh.store.prepared import Prepared
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log
from medmesh_edge.ports import Site
from medmesh_edge.tables import log_views

FORKED, ROLLED_BACK = "edge.log_forked", "edge.log_rolled_back"
MOST_COMPARED = 1000
"""How many checkpoints are remembered as compared: one more is only weighed again."""
MOST_SERVED = 64
"""How many tiles are remembered, of 8 KiB at most; one proof may need a few more."""
_VIEW = Prepared(select(log_views).where(log_views.c.origin == bindparam("origin")))


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint and the note in which the log signed it, without the lines of witnesses."""

    checkpoint: Checkpoint
    text: str

    @classmethod
    def read(cls, shown: str | bytes, keys: Iterable[VerifierKey]) -> Signed:
        """Raises `Problem` (`ledger.*`) unless one of the log's keys signed it for its own origin."""
        opened = note.open_note(shown, tuple(keys))
        found, (key, *_) = note.parse_checkpoint(opened.text), opened.signers
        assert isinstance(key, VerifierKey)
        if found.origin != key.name:
            raise Problem("ledger.origin", wanted=key.name, got=found.origin)
        raw = next(raw for name, raw in note.split(shown)[1] if (name, raw[:4]) == (key.name, key.id))
        return cls(found, f"{opened.text}\n{signature_line(key, raw[4:])}")


def keys(site: Site) -> tuple[VerifierKey, ...]:
    """The log's keys: of the pinned roster, and before there is one of what was handed over at enrolment."""
    if site.layout.roster.exists():
        return site.roster().log_policy().logs
    return demanding(site.trust().log_key).logs


async def view(uow: UnitOfWork[Any], origin: str) -> Any:
    """What is kept of a log: `note`, `size`, `at`, and the `fault` that stands; None when it was never seen."""
    return await uow.one(_VIEW, origin=origin)


async def present(site: Site) -> Any:
    """The view of the log this hospital goes by; None when it was never seen."""
    async with site.unit() as uow:
        return await view(uow, keys(site)[0].name)


async def trusted(site: Site) -> None:
    """Raise the `Problem` that stands against the log."""
    row = await present(site)
    if row is not None and (problem := against(row)):
        raise problem


def against(row: Any) -> Problem | None:
    """What stands against a log by its view."""
    if not row.fault:
        return None
    return Problem("edge.log_forked", size=row.size) if row.fault == FORKED else Problem("edge.log_rolled_back", size=row.size)


@dataclass
class Continuity:
    """`look` asks for the newest checkpoint, `exchange` for what others were shown, `compare` takes those that came by another way. One
    at a time."""

    site: Site
    gateway: Gateway
    _next: float = float("-inf")
    _exchange: float | None = None
    _compared: set[str] = field(default_factory=set)
    _served: dict[tuple[int, int, int], bytes] = field(default_factory=dict)
    """Tiles that were read. What they say is proven where it is used, and checkpoints of one log need mostly the same ones."""
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def step(self) -> bool:
        """For a loop."""
        now = asyncio.get_running_loop().time()
        if now >= self._next:
            await self.look()
            self._next = now + self.site.settings.log_every.total_seconds()
        every = self.site.settings.log_compared_every.total_seconds()
        if self._exchange is None:
            self._exchange = now + random.SystemRandom().uniform(0, every)  # nodes that were started together do not all come together
        if now >= self._exchange:
            await self.exchange()
            self._exchange = now + every
        return False

    async def look(self) -> None:
        """Raises the `Problem` that stands."""
        async with self._one:
            await self._weigh(Signed.read(await self._read("checkpoint"), keys(self.site)), "the platform")
        await trusted(self.site)

    async def exchange(self) -> None:
        """Show what this hospital goes by and compare it with what others do. Raises the `Problem` that stands, and shows nothing then: of
        a log that is refused here nobody shall think that it is believed."""
        await trusted(self.site)
        row = await present(self.site)
        if row is None:
            return
        try:
            answer = await self.gateway.request("POST", "/v1/audit/sightings", Sighting(note=row.note).model_dump(exclude_none=True))
        except Problem as problem:
            if problem.code in ("request.no_route", "request.no_method"):  # a platform of before
                return
            raise
        for one in Sightings.model_validate(answer, extra="ignore").others:
            try:
                await self.compare((one.note, f"hospital:{one.hospital}"))
            except Problem as problem:
                if problem.code in (FORKED, ROLLED_BACK):
                    raise
                # What the log did not sign, or what is not served to prove it by, accuses nobody; the others are compared all the same.
                log("edge.log.incomparable", level=30, error=problem, by=one.hospital)

    async def compare(self, *shown: tuple[str, str]) -> None:
        """Checkpoints and who was shown them, each weighed once; the longest first, so that all others are weighed against one tree.
        Raises `Problem`: what stands, or `ledger.*` where the log did not sign one."""
        new = [(Signed.read(text, keys(self.site)), text, who) for text, who in dict(shown).items() if text not in self._compared]
        for signed, text, who in sorted(new, key=lambda one: -one[0].checkpoint.size):
            async with self._one:
                await self._weigh(signed, who)
            if len(self._compared) >= MOST_COMPARED:
                self._compared.clear()
            self._compared.add(text)
        if new:
            await trusted(self.site)

    async def _weigh(self, shown: Signed, who: str) -> None:
        row = next(iter(await self.site.database.look(_VIEW, origin=shown.checkpoint.origin)), None)
        if row is None:
            await self._keep(shown, first=True)
            return
        known = note.parse_checkpoint(note.split(row.note)[0])
        if row.fault or known == shown.checkpoint:
            return
        old, new = sorted((known, shown.checkpoint), key=lambda one: one.size)
        grew = await self._grew(old, new)
        if grew is None and new is not known:
            raise Problem("edge.log_unproven", size=new.size)
        if grew is not True:
            await self._accuse(row, shown, FORKED if grew is False else ROLLED_BACK, who)
        elif new is not known:  # else an older one that fits: it shows such while it waits for witnesses
            await self._keep(shown)

    async def _grew(self, old: Checkpoint, new: Checkpoint) -> bool | None:
        """Whether `new` continues `old`, by hashes of the served tree, which prove themselves; None when those are not there. A proof
        that does not hold is asked for twice: a watchman who cries wolf is switched off."""
        if old.size == new.size:
            return old.root == new.root
        for _ in range(2):
            try:
                if await self._proof_holds(old, new):
                    return True
            except Problem as problem:
                if problem.code != "request.not_found":
                    raise
                return None
            except ValueError:
                pass
            self._served.clear()
        return False

    async def _proof_holds(self, old: Checkpoint, new: Checkpoint) -> bool:
        """Raises `ValueError` for a tile that is none."""

        def ask(node: Node) -> list[bytes]:
            return consistency_proof(node, old.size, new.size)

        if len(self._served) >= MOST_SERVED:
            self._served.clear()
        for place in tiles.needed(new.size, ask):
            if place not in self._served:
                self._served[place] = await self._read(tiles.path(*place))
        proof = ask(tiles.nodes(lambda *place: self._served[place], new.size))
        return verify_consistency(old.size, new.size, old.root, new.root, proof)

    async def _read(self, path: str) -> bytes:
        answer = await self.gateway.request("GET", "/v1/audit/log", query={"path": path})
        return base64.b64decode(str(answer["content"]))

    async def _keep(self, shown: Signed, *, first: bool = False) -> None:
        origin = shown.checkpoint.origin
        async with self.site.unit() as uow:
            values = {"origin": origin, "note": shown.text, "size": shown.checkpoint.size, "at": uow.now, "fault": "", "shown": ""}
            row = upsert(log_views).values(values)
            # What somebody else found meanwhile stands.
            kept = (log_views.c.fault == "") & (log_views.c.size <= shown.checkpoint.size)
            await uow.execute(row.on_conflict_do_update(index_elements=["origin"], set_=values, where=kept))
            if first:
                about = (Entity("log", origin, version=str(shown.checkpoint.size), digest=shown.checkpoint.root.hex()),)
                uow.audit(AuditEntry("log.seen", "R", entities=about))

    async def _accuse(self, row: Any, shown: Signed, code: str, who: str) -> None:
        """Keep both, refuse from now on, say so; the record reaches the log where that is still possible."""
        origin, known = shown.checkpoint.origin, note.parse_checkpoint(note.split(row.note)[0])
        log("edge.log.refused", level=50, code=code, known=known.size, shown=shown.checkpoint.size, by=who)
        async with self.site.unit() as uow:
            where = (log_views.c.origin == origin) & (log_views.c.fault == "")
            done = await uow.execute(update(log_views).where(where).values(fault=code, shown=shown.text, at=uow.now))
            if done.rowcount:
                about = (
                    Entity("log", origin, version=str(known.size), digest=known.root.hex()),
                    Entity("log", origin, version=str(shown.checkpoint.size), digest=shown.checkpoint.root.hex()),
                )
                uow.audit(AuditEntry("log.refused", "R", outcome=12, why=code, entities=about, detail={"by": who[:80]}))
        self.site.changed.set()


async def forgive(site: Site, by: str) -> None:
    """A person of the hospital decided to go on with the log as it is shown from now on. Raises `Problem` when nothing stands."""
    async with site.unit() as uow:
        row = await view(uow, keys(site)[0].name)
        if row is None or not row.fault:
            raise Problem("edge.log_unblamed")
        await uow.execute(delete(log_views).where(log_views.c.origin == row.origin))
        uow.audit(AuditEntry("log.forgive", "E", entities=(Entity("log", row.origin, version=str(row.size)),), detail={"by": by[:80]}))
    site.changed.set()
