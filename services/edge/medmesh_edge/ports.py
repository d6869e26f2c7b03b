"""What the parts of a node share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from sqlalchemy import text

from medmesh.client.credentials import Node as NodeCredentials
from medmesh.client.gateway import Gateway
from medmesh.embedded.files import Watched
from medmesh.errors import Problem
from medmesh.security import signing
from medmesh.security.authority import load_key
from medmesh.security.keyring.file import FileKeys
from medmesh.security.keyring.port import KeyProvider
from medmesh.security.roster import Roster
from medmesh.security.roster_file import RosterFile
from medmesh.security.signing import Signer
from medmesh.security.tokens import Actor, TrustBundle
from medmesh.service.recording import recorder
from medmesh.store.database import Database
from medmesh.store.objects.directory import DirectoryBlobs
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.envelope import Wrapping
from medmesh.store.unit import Context, UnitOfWork
from medmesh_edge import policy
from medmesh_edge.interpreters import Interpreters
from medmesh_edge.patients import HOSPITAL
from medmesh_edge.settings import Layout, Settings
from medmesh_edge.tables import METADATA

if TYPE_CHECKING:
    from medmesh.federated.secure.contributor import Contributor
    from medmesh_edge.attempts import Place


@dataclass
class Bells:
    """Wakes the node's loops, each by its name; whoever left work for one rings it."""

    _bells: dict[str, asyncio.Event] = field(default_factory=dict)

    def of(self, name: str) -> asyncio.Event:
        """What a loop waits for."""
        return self._bells.setdefault(name, asyncio.Event())

    def set(self, *names: str) -> None:
        """Wake these, or all when none is named."""
        for name in names or tuple(self._bells):
            self.of(name).set()


@dataclass
class Site:
    """A node's folder, opened: its store, its objects, its policy. Works without any connection."""

    layout: Layout
    settings: Settings
    database: Database
    objects: EncryptedStore
    keys: KeyProvider
    actor: Actor
    changed: Bells = field(default_factory=Bells)
    attempts: dict[Place, Contributor] = field(default_factory=dict, repr=False)
    """Secrets of secure sums as they were kept (`medmesh_edge.attempts`)."""
    preparing: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    """Held while a pipeline is applied."""
    interpreters: Interpreters = field(init=False, repr=False)
    roster_file: RosterFile = field(init=False, repr=False)
    policy: Watched[policy.Policy] = field(init=False, repr=False)
    """The hospital's rules as they stand now. Raises `Problem`."""
    trust: Watched[TrustBundle] = field(init=False, repr=False)
    """Whom this node believes: handed over at enrolment."""
    certificate: Watched[x509.Certificate] = field(init=False, repr=False)
    """The node's. Raises `Problem` (`edge.not_enrolled`)."""

    def __post_init__(self) -> None:
        self.interpreters = Interpreters(self.layout, self.settings)
        # Read when the file changes, not at every look.
        self.roster_file = RosterFile(self.layout.roster)
        self.policy = Watched(self.layout.policy, policy.read)
        self.trust = Watched(self.layout.trust, TrustBundle.load)
        self.certificate = Watched(self.layout.certificate, _certificate)

    @property
    def emitter(self) -> str:
        """The name under which this node's audit records are logged."""
        return f"edge:{self.settings.hospital}"

    def unit(self, actor: Actor | None = None, *, durable: bool = True) -> AbstractAsyncContextManager[UnitOfWork[Any]]:
        """A transaction on the node's store; see `Database.unit`."""
        return self.database.unit(Context(self.emitter, None, actor or self.actor), self, durable=durable)

    def anonymous(self) -> AbstractAsyncContextManager[UnitOfWork[None]]:
        """The same on nobody's behalf."""
        return self.database.unit(Context(self.emitter))

    def roster(self) -> Roster:
        """Whose own signatures count here. Raises `Problem` (`roster.none`, `roster.expired`)."""
        return self.roster_file()

    def organisation(self) -> Signer:
        """The hospital's own key. Raises `Problem`."""
        return signing.load(self.layout.organisation_key)

    def credentials(self) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
        """The node's key and certificate. Raises `Problem` (`edge.not_enrolled`)."""
        certificate = self.certificate()
        return load_key(self.layout.key), certificate

    def gateway(self, *, attempts: int = 6) -> Gateway:
        """A client with the node's certificate."""
        key, certificate = self.credentials()
        return Gateway(
            self.settings.gateway,
            ca=self.layout.ca,
            identity=(self.layout.certificate, self.layout.key),
            credentials=NodeCredentials(key, certificate),
            proxy=self.settings.proxy,
            attempts=attempts,
        )


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise Problem("edge.not_enrolled", folder=path.parents[1]) from None


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[Site]:
    """Open a node's folder. Raises `Problem`."""
    layout, settings = Layout(folder), Settings.load(folder)
    layout.take_up()
    database = Database.sqlite(
        layout.database,
        recorder=recorder(
            service=f"edge:{settings.hospital}",
            instance=settings.node,
            organisation=settings.hospital,
            version=version("medmesh"),
            node=True,
        ),
    )
    try:
        await database.create(METADATA)
        actor = Actor("hospital", settings.hospital, settings.hospital, frozenset(("hospital",)))
        keys = FileKeys(layout.keys).ensure(HOSPITAL)
        objects = EncryptedStore(DirectoryBlobs(layout.objects), Wrapping(keys, HOSPITAL))
        opened = Site(layout, settings, database, objects, keys, actor)
        database.on_audited = lambda: opened.changed.set("audit")
        await _take_over(opened)
        yield opened
    finally:
        await database.close()


_TAKEN_OVER = """
UPDATE federations SET approved = (SELECT statement FROM approved_packages WHERE package = json_extract(federations.package, '$.sha256'))
WHERE state NOT IN ('invited', 'declined')
"""


async def _take_over(site: Site) -> None:
    """Code was approved whatever the plan, before decision 0152: it stands for what this hospital had signed by then."""
    async with site.unit() as uow:
        if await uow.first(text("SELECT 1 FROM sqlite_master WHERE name = 'approved_packages'")) is not None:
            await uow.execute(text(_TAKEN_OVER))
            await uow.execute(text("DROP TABLE approved_packages"))
