"""A simulated hospital: its node's own code on a store in memory, woken by what the platform tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import Any

from medmesh.contracts.federation import RoundStored
from medmesh.learning.host import Worker
from medmesh.learning.package import Package
from medmesh.security import signing
from medmesh.security.authority import new_key, node_request
from medmesh.security.keyring.memory import MemoryKey
from medmesh.security.keys import write_secret
from medmesh.security.roster_file import NAME, RosterFile
from medmesh.security.signing import Signer
from medmesh.security.suites import DEFAULT, suite
from medmesh.security.tokens import Actor
from medmesh.service.recording import recorder
from medmesh.simulation.data import Sample
from medmesh.simulation.hub import Hub
from medmesh.simulation.link import Link
from medmesh.store.database import Database
from medmesh.store.objects.directory import DirectoryBlobs
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.envelope import Wrapping
from medmesh.store.objects.memory import MemoryBlobs
from medmesh_edge import consent, inbox, intake, outgoing, storing
from medmesh_edge.labels import Label
from medmesh_edge.patients import HOSPITAL
from medmesh_edge.ports import Site
from medmesh_edge.proofs import Proven
from medmesh_edge.rounds import Rounds
from medmesh_edge.settings import Layout, Settings
from medmesh_edge.tables import METADATA

DATASET, SITE_KEY = "simulated", "site.key"


@dataclass
class Bench:
    """A worker that several hospitals use in turn, and those whose turn it is."""

    worker: Worker
    waiting: asyncio.Queue[Hospital] = field(default_factory=asyncio.Queue)
    idle: bool = True

    @asynccontextmanager
    async def borrowed(self, *_: Any, **__: Any) -> AsyncIterator[Worker]:
        """In place of a worker of the hospital's own."""
        yield self.worker

    async def work(self) -> None:
        """For ever: let those work who were told something. Raises what one of them raises."""
        while True:
            self.idle = self.waiting.empty()
            hospital = await self.waiting.get()
            self.idle = False
            await hospital.step()


@dataclass
class Hospital:
    """One of them; it waits at a bench for its turn."""

    site: Site
    link: Link
    bench: Bench
    proven: dict[str, Proven]
    """Starts that one of them proved: the roster, and what is proven by it, is the same for all."""
    read: inbox.Read
    """How facts are read: see `Hub.read`."""
    rounds: Rounds = field(init=False)
    _told: list[dict[str, Any]] = field(default_factory=list)
    _taken: int = 0
    _waits: bool = False

    def __post_init__(self) -> None:
        self.rounds = Rounds(self.site, self.link, self.bench.borrowed, proven=self.proven)

    def tell(self, fact: dict[str, Any]) -> None:
        """Put a fact into its inbox. That an update may be released is read with the next thing there is to do."""
        self._told.append(fact)
        if not self._waits and fact["type"] != RoundStored.subject():
            self._waits = True
            self.bench.waiting.put_nowait(self)

    async def step(self) -> None:
        """Take in what was told, answer invitations, work, send and hand in, as a node's loops do, until there is nothing to do."""
        self._waits, more = False, True
        while more:
            told, self._told = self._told, []
            for fact in told:
                self._taken += 1
                await inbox.take(self.site, self._taken, fact, self.read)
            if self._rang("consent"):
                await consent.answer_invitations(self.site, self.link)
            await self._work()
            while self._rang("requests"):
                while await outgoing.send_one(self.site, self.link):
                    pass
            more = bool(self._told)
        while await outgoing.ship_audit(self.site, self.link):
            pass

    async def _work(self) -> None:
        more = True
        while more:
            while self._rang("secure") and await self.rounds.phases():
                self.site.changed.set("secure")  # there may be another
            more = await self.rounds.step()

    def _rang(self, name: str) -> bool:
        """Whether somebody left work for a loop of this name since it was last asked."""
        bell = self.site.changed.of(name)
        rang = bell.is_set()
        bell.clear()
        return rang


@asynccontextmanager
async def hospital(
    hub: Hub, own: Signer, samples: list[Sample], bench: Bench, roster: RosterFile, proven: dict[str, Proven]
) -> AsyncIterator[Hospital]:
    """A hospital named as its key says, with these samples in its store."""
    name = own.name.removeprefix("hospital:")
    folder = hub.folder / "hospitals" / name
    folder.mkdir(parents=True)
    layout = Layout(folder)
    layout.policy, layout.trust, layout.roster = hub.folder / "policy.toml", hub.folder / "trust.json", hub.folder / NAME
    layout.site_key = hub.folder / SITE_KEY
    signing.save(layout.organisation_key, own, None)
    settings = Settings(hospital=name, node="simulated", gateway="memory:")
    record = recorder(service=f"edge:{name}", instance="simulated", organisation=name, version=version("medmesh"), node=True)
    database = Database.memory(recorder=record)
    await database.create(METADATA)
    keys = MemoryKey(HOSPITAL, DEFAULT, suite(DEFAULT).new_key())
    large = any(not isinstance(sample.data, bytes) for sample in samples)
    objects = EncryptedStore(DirectoryBlobs(folder / "objects") if large else MemoryBlobs(), Wrapping(keys, HOSPITAL))
    site = Site(layout, settings, database, objects, keys, Actor("hospital", name, name, frozenset(("hospital",))))
    site.roster_file = roster  # one file, verified once for all
    try:
        await take_in(site, samples)
        key = new_key()
        certificate = hub.authority.sign_node(node_request(key, name, "simulated"), name, "simulated")
        link = Link(hub, name, key, certificate, asyncio.get_running_loop().time)
        made = Hospital(site, link, bench, proven, hub.read)
        hub.inboxes[name] = made.tell
        yield made
    finally:
        hub.inboxes.pop(name, None)
        await database.close()


async def take_in(site: Site, samples: list[Sample]) -> None:
    """Store samples as intake does, in their order; that they need no de-identification is the researcher's word."""
    outcome = intake.Outcome()
    labels = {str(n): Label(sample.label, "test" if sample.held_out else "train") for n, sample in enumerate(samples)}
    batch: list[tuple[str, intake.Prepared]] = []
    waiting = 0
    for n, sample in enumerate(samples):
        batch.append((str(n), intake.Prepared(f"{n:032d}", sample.patient, sample.modality, sample.kept, ())))
        waiting += len(batch[-1][1].data)
        if waiting >= intake.BATCH_BYTES:
            await storing.store(site, DATASET, batch, labels, b"", outcome)
            batch, waiting = [], 0
    await storing.store(site, DATASET, batch, labels, b"", outcome)
    await intake.finish(site, DATASET, outcome)


def policy(folder: Path, package: Package) -> None:
    """One for all: it lets this package run, and refuses nothing that a simulation is for. So is the secret that rounds counts."""
    write_secret(folder / SITE_KEY, token_hex(32).encode())
    (folder / "policy.toml").write_text(
        f'[federation]\ninitiators = ["*"]\npackages = ["{package.digest}"]\nalgorithms = ["*"]\n'
        f'modalities = ["{package.manifest.data.modality}"]\n'
        f"min_samples = 1\nmax_update_mib = 65536\nmax_rounds = 10000\nsmall_cell = 0\n"
    )
