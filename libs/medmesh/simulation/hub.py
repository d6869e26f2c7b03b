"""The platform's side: the federation service itself, on a bus and a database in memory, and who else it needs, pretended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from medmesh.bus import topology
from medmesh.bus.memory_bus import MemoryBus
from medmesh.bus.port import BusMessage, ConsumerSpec, Delivery
from medmesh.contracts.audit import AuditBatch, record_subject
from medmesh.contracts.governance import ApprovalGranted, GetPolicy, ListRevocations, PolicyView, Revocations
from medmesh.contracts.labels import FILES, FileView, FindFile
from medmesh.contracts.message import (
    Command,
    Event,
    HospitalEvent,
    OperationFinished,
    Query,
    Record,
    Signal,
    encode,
    envelope,
    new_id,
)
from medmesh.errors import Problem
from medmesh.security import approvals, roster, statements
from medmesh.security.authority import Authority
from medmesh.security.keyring.file import FileKeys
from medmesh.security.keys import Identity
from medmesh.security.labels import Label, Level, own
from medmesh.security.roster import Believed, Member, Roster, believe
from medmesh.security.roster_file import NAME, log_only
from medmesh.security.signing import Signer
from medmesh.security.statements import Decision
from medmesh.security.tokens import Actor, TrustBundle, person_token
from medmesh.service.runtime import running, unwrap
from medmesh.service.settings import ObjectSettings
from medmesh.simulation.log import Log
from medmesh.store.database import Database
from medmesh.store.objects.open import Stores
from medmesh.store.objects.port import ObjectStore
from medmesh.store.objects.upload import Uploads
from medmesh_federation.service import SERVICE
from medmesh_federation.settings import Settings

R = TypeVar("R", bound=Record)
RESEARCHER, APPROVER = "researcher", "approver"
LARGEST = 8 * 2**30
TOLD = {message.subject(): message for message in SERVICE.writes if issubclass(message, HospitalEvent)}
News = Callable[[str, dict[str, Any]], None]


@dataclass
class Hub:
    """Commands, questions and objects for whoever takes part; `news(type, fact)` hears every fact of the federation service."""

    folder: Path
    bus: MemoryBus
    governance: Identity
    authority: Authority
    approver: Signer
    believed: Believed
    log: Log
    news: News
    stores: Stores = field(init=False)
    uploads: Uploads = field(init=False)
    tells: list[Callable[[Collection[str], dict[str, Any]], None]] = field(default_factory=list)
    """Whom to tell of a fact for these hospitals."""
    failures: dict[str, str] = field(default_factory=dict)
    """Hospital to the code of the problem for which it could not do its part last."""
    _asked: dict[str, asyncio.Future[OperationFinished]] = field(default_factory=dict)

    def person(self, name: str, role: str) -> str:
        """The token of a pretended person."""
        now = datetime.now(UTC)
        clearance = Label(Level.INTERNAL, own("platform"))
        actor = Actor("person", name, "platform", frozenset((role,)), "pwd+otp", now, clearance=clearance)
        return person_token(self.governance, actor)

    async def command(self, command: Command, token: str, key: str | None = None) -> dict[str, Any]:
        """Send a command and wait for its owner's answer; with a `key` that was used before, for the answer to that. Raises `Problem`."""
        operation = f"operation-{key}" if key else new_id()
        answer = self._asked.get(operation)
        if answer is None:
            answer = self._asked[operation] = asyncio.get_running_loop().create_future()
            await self.publish(command, token, operation)
        done = await asyncio.shield(answer)
        if not done.succeeded:
            raise Problem.from_document(done.problem or {})
        return done.result or {}

    async def ask(self, query: Query, reply: type[R], token: str) -> R:
        """A question. Raises `Problem`."""
        return unwrap(await self.bus.request(query.address(), encode(envelope(query, source="gateway", actor=token)), timeout=60), reply)

    async def signal(self, signal: Signal) -> None:
        """A sign of life, or progress."""
        await self.bus.signal(signal.address(), encode(envelope(signal, source="gateway")))

    async def publish(self, message: Command | Event, token: str | None = None, id: str | None = None) -> None:
        """Into its stream."""
        made = envelope(message, source="gateway", actor=token, id=id)
        (failed,) = await self.bus.publish([BusMessage(made.id, made.type, encode(made))])
        if failed is not None:
            raise failed

    async def approve(self, federation: str, plan_hash: str) -> None:
        """A second person approves the start, with a key of the roster, and governance says so."""
        expires = datetime.now(UTC) + timedelta(hours=1)
        about = {"approval": new_id(), "action": "federation.start", "target": federation, "digest": plan_hash}
        who = f"person:{RESEARCHER}@platform"
        said = Decision(made=datetime.now(UTC), approve=True, expires=expires, requester=who, **about)
        signed = [statements.sign(said, self.approver)]
        token = approvals.issue(self.governance, requester=who, statements=signed, expires=expires, **about)
        await self.publish(ApprovalGranted(token=token, **about))

    async def hear(self, delivery: Delivery) -> None:
        """A fact of the service: an answer to a command, something for hospitals' inboxes, or for whoever watches."""
        document = json.loads(delivery.body)
        fact = document["data"]
        if delivery.subject.endswith(".operation.finished.v1"):
            if (waiting := self._asked.get(fact["operation"])) is not None and not waiting.done():
                waiting.set_result(OperationFinished.model_validate(fact, extra="ignore"))
        else:
            document.pop("actor", None)  # as the gateway does
            for hospitals, own in _told(document):
                for tell in self.tells:
                    tell(hospitals, own)
            self.news(document["type"], fact)
        await delivery.ack()


def _told(document: dict[str, Any]) -> list[tuple[Sequence[str], dict[str, Any]]]:
    """Hospitals, and a fact as they read it, as the gateway tells them."""
    if (event := TOLD.get(document["type"])) is None:
        return []
    hospitals = document["data"]["hospitals"]
    parted = event.parted(document, hospitals)
    return [(hospitals, parted[0])] if len(parted) == 1 else [([one], own) for one, own in zip(hospitals, parted, strict=True)]


def _roster(names: Sequence[Signer], approver: Signer, log_key: str) -> Believed:
    """One version with everybody in it, signed by a keeper that is forgotten at once."""
    now, keeper = datetime.now(UTC), Signer.create("keeper:simulation")
    made = Roster(
        platform="medmesh",
        version=1,
        made=now,
        expires=now + timedelta(days=30),
        keepers=(keeper.vkey,),
        threshold=1,
        people=(Member(key=approver.vkey, roles=("approver",), since=now),),
        hospitals=tuple(Member(key=one.vkey, since=now) for one in names),
        policy=log_only(log_key),
    )
    return believe([keeper.sign(roster.text(made))])


@asynccontextmanager
async def hub(folder: Path, hospitals: Sequence[Signer], news: News) -> AsyncIterator[Hub]:
    """The federation service in this process with `folder` for its files, until the block ends. `hospitals` are the keys in the roster."""
    keys, authority = folder / "keys", Authority.ensure(folder / "ca")
    governance = Identity.ensure(keys / "governance.nk")
    identities = {"governance": governance, **{n: Identity.ensure(keys / f"{n}.nk") for n in ("federation", "gateway")}}
    log, approver = Log(Identity.ensure(keys / "log.nk")), Signer.create(f"person:{APPROVER}@platform")
    trust = TrustBundle("medmesh", {n: i.public for n, i in identities.items()}, ca_pem=authority.certificate_pem)
    trust.save(folder / "trust.json")
    believed = _roster(hospitals, approver, log.vkey)
    (folder / NAME).write_text(believed.document())
    bus = MemoryBus()
    made = Hub(folder, bus, governance, authority, approver, believed, log, news)
    await topology.apply(bus, [SERVICE])
    ears = ConsumerSpec(stream="EVENTS", durable="simulation", subjects=("medmesh.evt.federation.>",))
    await bus.ensure_consumer(ears)
    async with AsyncExitStack() as stack:
        await _pretend(bus, made)
        FileKeys(folder / "kek").ensure("objects")
        database = Database.memory()
        await database.create(SERVICE.metadata)

        def store(**options: Any) -> Database:
            return Database(database.engine, **options)

        settings = Settings(
            code_reviewers=0,
            require_rehearsal=False,  # a simulation is more than one
            nats_url="memory:",
            database_url="memory:",
            identity=keys / "federation.nk",
            trust=folder / "trust.json",
            state=folder / "state",
            objects=ObjectSettings(folder=folder / "objects", spool=folder / "spool", keys=str(folder / "kek")),
            audit_lag_seconds=86_400,
        )
        settings.state.mkdir()
        heard = await bus.consume(ears, made.hear, concurrency=1)
        stack.push_async_callback(heard.stop)
        runtime = await stack.enter_async_context(running(SERVICE, settings, bus=bus, store=store))
        made.stores = runtime.ports.stores
        made.uploads = Uploads(folder / "uploads", limit=LARGEST)
        yield made


async def _pretend(bus: MemoryBus, made: Hub) -> None:
    """Governance and the audit log, as far as the federation service asks them."""

    async def revocations(_: bytes) -> bytes:
        return Revocations(serials=()).model_dump_json().encode()

    async def policy(_: bytes) -> bytes:
        return PolicyView(number=0, text="").model_dump_json().encode()

    async def append(body: bytes) -> bytes:
        return made.log.take(AuditBatch.model_validate_json(body)).model_dump_json().encode()

    async def unlabelled(_: bytes) -> bytes:
        return FileView().model_dump_json().encode()

    asked = [(ListRevocations.subject(), revocations), (GetPolicy.subject(), policy)]
    asked += [(FindFile(service=owner, sha256="0" * 64).address(), unlabelled) for owner in FILES if owner != "federation"]
    for subject, answer in asked:
        await bus.serve(subject, answer, queue="simulation")
    await bus.serve(record_subject("federation"), append, queue="simulation")


async def holding(stores: Stores, sha256: str) -> tuple[ObjectStore, int]:
    """The store that has an object, and its size. Raises `Problem`."""
    store = await stores.holding(sha256)
    return store, await store.size(sha256) or 0
