"""Handing in what a round left: the model as it is stored here, or the masked vector that goes instead of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import bindparam, null, update

from medmesh.client import transfer
from medmesh.client.gateway import Gateway
from medmesh.client.transfer import Held, Plain, Source, Stored
from medmesh.contracts.federation import RoundOpened, Work
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.security.residue import wipe
from medmesh.store.attempts import attempt, of_attempt
from medmesh.store.objects.port import CHUNK
from medmesh.store.prepared import Prepared
from medmesh.store.unit import AuditEntry, Entity
from medmesh.tasks import aside
from medmesh.telemetry import log
from medmesh_edge import secure
from medmesh_edge.outgoing import has_left
from medmesh_edge.ports import Site
from medmesh_edge.tables import tasks
from medmesh_edge.timing import Clock

_OURS = of_attempt(tasks)
# Unless it was asked for again meanwhile, or its round was stored: then it goes again, or may be deleted already.
_SENT = Prepared(update(tasks).where(_OURS, tasks.c.state == "trained", tasks.c.code == bindparam("asked")).values(state="sent"))
_OVER = Prepared(update(tasks).where(_OURS).values(state="releasable"))


@dataclass(frozen=True)
class Trained:
    """What a round left here, as the store keeps it."""

    update: ObjectRef | None
    """None where a round only evaluates and its counts go masked."""
    samples: int
    metrics: dict[str, float]
    counts: Any = None
    """Of a training round that evaluates, a table; of an evaluation round whose counts go masked, a list of them."""
    milliseconds: dict[Work, int] = field(default_factory=dict)
    asked: str = ""
    """The fact by which the platform asked for it again."""
    marks: Sequence[str] | None = None
    """Of the update's bytes (`Digest`), in the process that stored it; None in a later one."""
    data: bytes | None = field(default=None, repr=False)
    """The update's bytes where they are few, likewise: they need not be read and opened again."""
    since: int | None = None
    """By when the shares its masks come from were committed (`Database.mark`), where that was before it was trained."""

    @classmethod
    def read(cls, row: Any) -> Trained:
        """From its row."""
        update = ObjectRef.model_validate(row.update) if row.update else None
        return cls(update, row.samples, row.metrics, row.counts, row.milliseconds, row.code)

    def values(self) -> dict[str, Any]:
        """For its row."""
        beside = {"samples": self.samples, "metrics": self.metrics, "counts": self.counts, "milliseconds": self.milliseconds}
        return {"update": self.update.model_dump() if self.update else null(), **beside}

    def body(self, event: RoundOpened) -> dict[str, Any]:
        """As it is told to the platform."""
        return {"round": event.round, "attempt": event.attempt, "base": event.base.sha256, **self.values()}


Tell = Callable[[int, int], None]
"""How many bytes of how many were sent."""


async def send(site: Site, gateway: Gateway, plan: Plan, event: RoundOpened, done: Trained, tell: Tell) -> None:
    """Upload what was trained and say so. Killed in between, it is said again: the platform keeps one answer of each attempt."""
    if not secure.is_secure(plan, event):
        assert done.update is not None
        source: Source = Stored(site.objects, done.update.sha256) if done.data is None else Held((done.data,))
        await _hand_in(site, gateway, event, done, source, tell, whole=True)
        return
    party, listed = await secure.accompanying(site, event, plan)
    with ExitStack() as stack:
        vector, source, marks = await secure.vector(site, event, plan, party, done, lambda: stack.enter_context(_room(site)))
        # Samples are in the sum, and nothing is said about this hospital alone.
        masked = replace(done, update=vector, samples=1, metrics={}, counts=None, marks=marks, data=None)
        # The shares whose masks are in it: with them, mostly, and the secrets of what is told with it, the commit of what was trained.
        await site.database.settle(done.since)
        await _hand_in(site, gateway, event, masked, source, tell, listed=listed, masks=len(party.sealed))
        if isinstance(source, Plain):
            source.path.unlink()  # noise to everybody: no need to write over it


async def _hand_in(
    site: Site,
    gateway: Gateway,
    event: RoundOpened,
    done: Trained,
    source: Source,
    tell: Tell,
    listed: str = "",
    masks: int = 0,
    whole: bool = False,
) -> None:
    assert done.update is not None
    tell(0, done.update.bytes)
    for once_more in (True, False):
        enclosed: Sequence[bytes] = ()
        if done.update.bytes <= CHUNK:  # it goes with the message
            enclosed = await aside(0 if isinstance(source, Held) else done.update.bytes, partial(source.read, 0, done.update.bytes))
        else:
            clock, model = Clock(), site.layout.cache / "models" / event.base.sha256
            base = model if whole and model.exists() else None  # masked, nothing is as it was
            with clock.of("send"):
                await transfer.send(gateway, done.update, source, marks=done.marks, base=base, progress=tell)
            done.milliseconds.update(clock.milliseconds)
            taken = clock.milliseconds["send"] / 1000
            log("edge.round.uploaded", federation=event.federation, round=event.round, bytes=done.update.bytes, seconds=taken)
        body = done.body(event) | ({"whole": listed} if listed else {})
        try:
            await gateway.command("POST", f"/v1/federations/{event.federation}/updates", body, enclosed=enclosed)
            break
        except Problem as problem:
            if problem.code != "objects.missing" or not once_more:  # gone in between
                raise
    async with site.unit(durable=False) as uow:  # forgotten, it is sent once more
        await uow.rows(_SENT, **attempt(event), asked=done.asked)
        about = (
            Entity("federation", event.federation, digest=event.plan_hash),
            Entity("update", str(event.round), digest=done.update.sha256),
        )
        detail: dict[str, str | int | bool] = {"round": event.round, "bytes": done.update.bytes}
        if masks:
            detail["masks"] = masks
        uow.audit(AuditEntry("federation.upload", "E", entities=about, detail=detail))


@contextmanager
def _room(site: Site) -> Iterator[Path]:
    """A folder of ours for files in between, gone afterwards."""
    room = site.layout.work / "encoding"
    wipe(room)
    room.mkdir(parents=True, mode=0o700)
    try:
        yield room
    finally:
        wipe(room)


async def is_over(site: Site, event: RoundOpened) -> bool:
    """Whether this hospital left the federation: what was trained stays here, and is deleted."""
    if gone := await has_left(site.database.look, event):
        async with site.unit() as uow:
            await uow.rows(_OVER, **attempt(event))
    return gone
