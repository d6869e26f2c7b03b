"""One service in this process on real servers: what a test needs to send it commands, ask it, and see what it emits.

async with platform(servers, tmp_path, governance) as p:
    done = await p.send(RequestApproval(...), p.person("wang", "researcher"))
    assert done.succeeded
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from sqlalchemy.engine import make_url

from medmesh.bus.nats_bus import NatsBus
from medmesh.bus.port import BusMessage, ConsumerSpec, Delivery, StreamSpec
from medmesh.bus.topology import consumers, streams
from medmesh.contracts.governance import Approvals, DecideApproval, ListApprovals
from medmesh.contracts.labels import FILES, OWNERS, DescribeObject, FileView, FindFile, ObjectView, SecurityLabel
from medmesh.contracts.message import Command, Envelope, Event, OperationFinished, Query, Record, decode, encode, envelope
from medmesh.embedded.testing import RunningServers
from medmesh.embedded.testing import servers as embedded_servers
from medmesh.errors import Problem
from medmesh.ledger.note import verifier_key
from medmesh.security import approvals
from medmesh.security.authority import Authority, new_key, node_request
from medmesh.security.keyring.file import FileKeys
from medmesh.security.keys import Identity
from medmesh.security.labels import Label, Level, own
from medmesh.security.roster_file import log_only
from medmesh.security.tokens import Actor, TrustBundle, hospital_token, person_token, service_token
from medmesh.service.runtime import Runtime, running, unwrap
from medmesh.service.settings import ObjectSettings
from medmesh.service.spec import ServiceSpec
from medmesh.store import postgres
from medmesh.store.migrate import Schema, apply
from medmesh.store.objects.open import Stores, stores
from tests.rosters import CHECKER, Rosters, decision

R = TypeVar("R", bound=Record)
E = TypeVar("E", bound=Event)
NAMES = (
    "gateway", "governance", "ingestion", "annotation", "training", "federation", "conversion", "registry", "inference", "audit",
    "operator",
)  # fmt: skip
PASSWORD = "test-only"


@dataclass
class Platform:
    """See the module."""

    folder: Path
    bus: NatsBus
    identities: dict[str, Identity]
    authority: Authority
    trust: TrustBundle
    stores: Stores
    rosters: Rosters
    runtimes: dict[str, Runtime] = field(default_factory=dict)
    seen: list[tuple[str, bytes]] = field(default_factory=list)
    nodes: dict[str, tuple[EllipticCurvePrivateKey, x509.Certificate]] = field(default_factory=dict)
    objects: dict[tuple[str, str], ObjectView] = field(default_factory=dict)
    """What services that do not run here answer about their objects; any other of theirs is `internal` and the platform's."""
    files: list[tuple[str, str, ObjectView]] = field(default_factory=list)
    """Service, SHA-256 and object of the files of services that do not run here."""

    def person(self, name: str, *roles: str, organisation: str = "platform", clearance: Label | None = None) -> str:
        """The token of a person with these roles who has just shown the second factor, cleared as a new account is."""
        cleared = clearance or Label(Level.INTERNAL, own(organisation))
        actor = Actor("person", name, organisation, frozenset(roles), "pwd+otp", datetime.now(UTC), clearance=cleared)
        return person_token(self.identities["governance"], actor)

    def service(self, name: str) -> str:
        """The token of a service."""
        return service_token(self.identities[name], name)

    def hospital(self, name: str) -> str:
        """The token of a hospital's node, enrolled at first use."""
        if name not in self.nodes:
            key = new_key()
            self.nodes[name] = (key, self.authority.sign_node(node_request(key, name, "node-1"), name, "node-1"))
            self.rosters.signer(f"hospital:{name}")
        return hospital_token(*self.nodes[name])

    def approval(self, action: str, target: str, digest: str, *, approval: str = "approval-1", minutes: float = 60) -> str:
        """A token as governance signs it, over what an approver of the roster signed."""
        expires = datetime.now(UTC) + timedelta(minutes=minutes)
        about = {"approval": approval, "action": action, "target": target, "digest": digest, "requester": "person:maker@platform"}
        early = {"made": expires - timedelta(minutes=1)} if minutes < 0 else {}
        signed = decision(self.rosters.signer(CHECKER), **about, expires=expires, **early)
        return approvals.issue(
            self.identities["governance"],
            approval=approval,
            action=action,
            target=target,
            digest=digest,
            requester="person:maker@platform",
            statements=[signed],
            expires=expires,
        )

    async def decide(self, approval: str, name: str, *roles: str, approve: bool = True) -> OperationFinished:
        """A person with these roles (an approver's by default) decides, signed with a key of their own."""
        listed = (await self.ask(ListApprovals(), Approvals, self.person(name, "approver"))).approvals
        view = next(one for one in listed if one.approval == approval)
        signed = decision(self.rosters.signer(f"person:{name}@platform"), view, approve=approve)
        wanted = DecideApproval(approval=approval, approve=approve, statement=signed)
        return await self.send(wanted, self.person(name, *(roles or ("approver",))))

    async def describe(self, body: bytes) -> bytes:
        """Stands for the owner of an object who does not run here."""
        asked = decode(body, DescribeObject).data
        kind = "dataset" if asked.kind == "content" else asked.kind
        usual = ObjectView(
            known=True,
            kind=kind,
            id=asked.id,
            label=SecurityLabel(),
            owner="platform",
            organisations=("platform",),
            maker="person:wang@platform",
        )
        return self.objects.get((asked.kind, asked.id), usual).model_dump_json().encode()

    async def whose(self, body: bytes) -> bytes:
        """Stands for a service that does not run here: what files its objects have."""
        asked = decode(body, FindFile).data
        things = [one for owner, sha256, one in self.files if (owner, sha256) == (asked.service, asked.sha256)]
        return FileView(things=tuple(things)).model_dump_json().encode()

    async def refused(self, query: Query, token: str | None = None) -> str:
        """The code a query is refused with; "" when it is not."""
        try:
            await self.ask(query, query.Reply, token)
        except Problem as problem:
            return problem.code
        return ""

    async def send(self, command: Command, token: str, *, id: str | None = None, timeout: float = 20) -> OperationFinished:
        """Send a command and wait for its owner's answer."""
        made = envelope(command, source="test", actor=token, id=id)
        (failed,) = await self.bus.publish([BusMessage(made.id + ("" if id is None else f"-{len(self.seen)}"), made.type, encode(made))])
        assert failed is None, failed

        def answered(answer: Envelope[OperationFinished]) -> bool:
            return answer.data.operation == made.id

        return (await self.wait(OperationFinished, answered, timeout)).data

    async def ask(self, query: Query, reply: type[R], token: str | None = None) -> R:
        """Ask a query; raises the `Problem` it is answered with."""
        return unwrap(await self.bus.request(query.address(), encode(envelope(query, source="test", actor=token)), timeout=20), reply)

    async def publish(self, event: Event, *, source: str = "test", id: str | None = None) -> str:
        """Publish a fact of another service."""
        token = self.service(source) if source in self.identities else None
        made = envelope(event, source=source, id=id, actor=token)
        (failed,) = await self.bus.publish([BusMessage(made.id, made.type, encode(made))])
        assert failed is None, failed
        return made.id

    def emitted(self, event: type[E]) -> list[Envelope[E]]:
        """Every fact of a class that was published so far."""
        wanted = event.subject().split(".")
        return [
            decode(body, event)
            for subject, body in self.seen
            if all(a in ("*", b) for a, b in zip(wanted, subject.split("."), strict=False)) and len(wanted) == len(subject.split("."))
        ]

    async def wait(self, event: type[E], condition: Any = lambda found: True, timeout: float = 20) -> Envelope[E]:
        """The first fact of a class that fulfils the condition."""
        async with asyncio.timeout(timeout):
            while True:
                for found in self.emitted(event):
                    if condition(found):
                        return found
                await asyncio.sleep(0.01)

    async def audited(self, service: str) -> list[dict[str, Any]]:
        """The audit records a service holds ready for the log (no audit service runs here unless it is asked for)."""
        return [json.loads(body) for _, _, body in await self.runtimes[service].database.unreceipted(1000)]


@asynccontextmanager
async def platform(
    servers: RunningServers,
    folder: Path,
    *specs: ServiceSpec,
    settings: dict[str, dict[str, Any]] | None = None,
    s3: RunningServers | None = None,
) -> AsyncIterator[Platform]:
    """Run these services with a NATS server and a database of their own; `settings` are further ones by service name. Objects lie in
    folders, or all in `s3`."""
    folder.chmod(0o700)
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(embedded_servers(folder / "nats", postgres=False))
        identities = {name: Identity.ensure(folder / "keys" / f"{name}.nk") for name in NAMES}
        release = Identity.ensure(folder / "keys" / "release.nk")
        (folder / "ca").mkdir(exist_ok=True)
        authority = Authority.ensure(folder / "ca")
        trust = TrustBundle(
            platform="medmesh",
            services={name: identity.public for name, identity in identities.items()},
            release_key=release.public,
            ca_pem=authority.certificate_pem,
        )
        trust.save(folder / "trust.json")
        log = Identity.ensure(folder / "keys" / "log.nk")
        rosters = Rosters.create(folder / "roster.json", log_only(verifier_key("medmesh/log", log.private_key.public_key())))
        bus = await NatsBus.connect(own.nats_url, name="test")
        stack.push_async_callback(bus.close)
        for stream in streams(specs):
            await bus.ensure_stream(stream)
        await bus.ensure_stream(StreamSpec("EVENTS", ("medmesh.evt.>",)))
        for consumer in consumers(specs):
            await bus.ensure_consumer(consumer)
        objects = ObjectSettings(folder=folder / "objects", spool=folder / "spool", keys=str(folder / "kek"))
        if s3 is not None and s3.servers.seaweedfs is not None:
            objects = ObjectSettings(s3_url=s3.s3_url, s3_credentials=s3.servers.seaweedfs.credentials, keys=str(folder / "kek"))
        FileKeys(folder / "kek").ensure("objects")
        opened = await stack.enter_async_context(stores(objects))
        p = Platform(folder, bus, identities, authority, trust, opened, rosters)
        watcher = ConsumerSpec(stream="EVENTS", durable="test-watcher", subjects=("medmesh.evt.>",))
        await bus.ensure_consumer(watcher)

        async def see(delivery: Delivery) -> None:
            p.seen.append((delivery.subject, delivery.body))
            await delivery.ack()

        stack.push_async_callback((await bus.consume(watcher, see, concurrency=1)).stop)
        for owner in sorted(set(FILES) - {spec.name for spec in specs}):
            stack.push_async_callback((await bus.serve(f"medmesh.qry.{owner}.find-file.v1", p.whose, queue=owner)).stop)
        for owner in sorted({one for owners in OWNERS.values() for one in owners} - {spec.name for spec in specs}):
            stack.push_async_callback((await bus.serve(f"medmesh.qry.{owner}.describe-object.v1", p.describe, queue=owner)).stop)
        database = await _database(servers, folder, specs)
        for spec in specs:
            values: dict[str, Any] = {
                **({"require_rehearsal": False, "code_reviewers": 0} if spec.name == "federation" else {}),
                "nats_url": own.nats_url,
                "identity": folder / "keys" / f"{spec.name}.nk",
                "database_url": make_url(database).set(username=f"medmesh_{spec.name}").render_as_string(hide_password=False),
                "trust": folder / "trust.json",
                "objects": objects,
                "state": folder / "state" / spec.name,
                **(settings or {}).get(spec.name, {}),
            }
            made = spec.settings.model_validate(values)
            made.state.mkdir(parents=True, exist_ok=True)
            p.runtimes[spec.name] = await stack.enter_async_context(running(spec, made))
        yield p


async def _database(servers: RunningServers, folder: Path, specs: Sequence[ServiceSpec]) -> str:
    """A database of the test's own, with the services' schemas."""
    name = f"p_{folder.name.replace('-', '_')}_{abs(hash(folder)) % 10**6}"
    engine = postgres.engine(servers.postgres_url, pool_size=1)
    async with engine.connect() as sql:
        await sql.exec_driver_sql(f'CREATE DATABASE "{name}"')
    await engine.dispose()
    admin = make_url(servers.postgres_url).set(database=name, drivername="postgresql")
    schemas = [Schema(spec.name, spec.metadata, spec.migrations) for spec in specs]
    await apply(admin.render_as_string(hide_password=False), schemas, {schema.service: PASSWORD for schema in schemas})
    return admin.set(password=PASSWORD).render_as_string(hide_password=False)
