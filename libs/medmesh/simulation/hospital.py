"""Simulated hospitals: their nodes' own code on stores in memory, woken by what the platform tells them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medmesh.contracts.federation import FederationCompleted, FederationFailed, RoundOpened, RoundStored
from medmesh.contracts.message import Envelope, Event, understood
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.learning.environment import Environment
from medmesh.learning.host import Worker, worker
from medmesh.learning.isolation import Limits
from medmesh.learning.package import Package
from medmesh.memo import by_identity
from medmesh.security import signing
from medmesh.security.keyring.memory import MemoryKey
from medmesh.security.keys import write_secret
from medmesh.security.roster_file import NAME, RosterFile
from medmesh.security.signing import Signer
from medmesh.security.suites import DEFAULT, suite
from medmesh.security.tokens import Actor
from medmesh.service.recording import recorder
from medmesh.simulation.data import Sample, Shares
from medmesh.simulation.field import SHELVED, Far, Idle, Shelf, Tell
from medmesh.simulation.wire import Wire
from medmesh.store.database import Database
from medmesh.store.objects.directory import DirectoryBlobs
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.envelope import Wrapping
from medmesh.store.objects.memory import MemoryBlobs
from medmesh.tasks import end
from medmesh_edge import consent, inbox, intake, outgoing, storing
from medmesh_edge import policy as rules
from medmesh_edge.interpreters import Interpreters
from medmesh_edge.labels import Label
from medmesh_edge.patients import HOSPITAL
from medmesh_edge.ports import Site
from medmesh_edge.proofs import Proven
from medmesh_edge.rounds import Rounds
from medmesh_edge.settings import Layout, Settings
from medmesh_edge.tables import METADATA

DATASET, SITE_KEY = "simulated", "site.key"


TOGETHER = 3
"""Hospitals that are at work at the same time at one worker: while some wait for it, or for the platform, others go on, and the platform
answers several at once, as it does real ones."""
GATHERED = 8
"""Steps after which a hospital hands its audit records in, and at the end: a real one lets them gather by the clock."""
OVER = frozenset((FederationCompleted.subject(), FederationFailed.subject()))


@dataclass
class Bench:
    """A worker that several hospitals use in turn, and those whose turn it is."""

    worker: Worker
    waiting: asyncio.Queue[Hospital] = field(default_factory=asyncio.Queue)
    busy: int = 0
    """How many are at work."""

    def idle(self) -> bool:
        """Whether nobody has anything to do."""
        return not self.busy and self.waiting.empty()

    async def work(self) -> None:
        """For ever: let those work who were told something. Raises what one of them raises."""
        turns = [asyncio.create_task(self._turns()) for _ in range(TOGETHER)]
        try:
            await asyncio.gather(*turns)
        finally:
            await end(*turns)

    async def _turns(self) -> None:
        while True:
            hospital = await self.waiting.get()
            self.busy += 1
            await hospital.step()
            self.busy -= 1


@dataclass
class Hospital:
    """One of them; it waits at a bench for its turn."""

    site: Site
    link: Far
    bench: Bench
    proven: dict[str, Proven]
    """Starts that one of them proved: the roster, and what is proven by it, is the same for all."""
    read: inbox.Read
    """How facts are read: see `Reader`."""
    rounds: Rounds = field(init=False)
    _told: list[dict[str, Any]] = field(default_factory=list)
    _taken: int = 0
    _waits: bool = False
    _steps: int = 0
    _over: bool = False

    def __post_init__(self) -> None:
        self.rounds = Rounds(self.site, self.link, self._borrowed, proven=self.proven)

    @asynccontextmanager
    async def _borrowed(self, *_: Any, **__: Any) -> AsyncIterator[Worker]:
        """In place of a worker of the hospital's own."""
        yield self.bench.worker.within(self.site.settings.hospital)

    def tell(self, fact: dict[str, Any]) -> None:
        """Put a fact into its inbox. That an update may be released is read with the next thing there is to do."""
        self._told.append(fact)
        self._over = self._over or fact["type"] in OVER
        if not self._waits and fact["type"] != RoundStored.subject():
            self._waits = True
            self.bench.waiting.put_nowait(self)

    async def step(self) -> None:
        """Take in what was told, answer invitations, work, send and hand in, as a node's loops do, until there is nothing to do."""
        more = True
        while more:
            told, self._told = self._told, []
            for fact in told:
                self._taken += 1
                await self._enclose(fact)
                await inbox.take(self.site, self._taken, fact, self.read)
            if self._rang("consent"):
                await consent.answer_invitations(self.site, self.link)
            await self._work()
            while self._rang("requests"):
                while await outgoing.send_one(self.site, self.link):
                    pass
            self._steps += 1
            if self._over or self._steps % GATHERED == 0:
                while await outgoing.ship_audit(self.site, self.link):
                    pass
            more = bool(self._told)  # asked last: whoever tells something while we are at work does not wake us
        self._waits = False

    async def _enclose(self, fact: dict[str, Any]) -> None:
        """A small model comes with its round, as from the gateway."""
        if fact["type"] == RoundOpened.subject() and (base := fact["data"]["base"])["bytes"] <= SHELVED:
            self.rounds.fetched.enclosed(await self.link.whole(base["sha256"], base["bytes"]))

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


@dataclass
class Reader:
    """How facts are read: as by `understood`. What several hospitals are told is one document: it is read once for all of them."""

    _read: dict[type[Event], Callable[[dict[str, Any]], Envelope[Any]]] = field(default_factory=dict)

    def __call__(self, document: dict[str, Any], message: type[Event]) -> Envelope[Any]:
        if message not in self._read:
            self._read[message] = by_identity(2)(partial(understood, message=message))
        return self._read[message](document)


@asynccontextmanager
async def hospitals(
    folder: Path, package: Package, signers: Mapping[str, Signer], shares: Shares, ranks: int, wire: Wire, names: Sequence[str]
) -> AsyncIterator[tuple[Tell, Idle, Coroutine[Any, Any, None]]]:
    """The hospitals of one process, at one worker: see `medmesh.simulation.field.Work`."""
    async with AsyncExitStack() as stack:
        # One for all rounds of all hospitals: however long a simulation takes, that is no sign of a package that loops.
        limits = Limits(operations=10**6)
        bench = Bench(await stack.enter_async_context(worker(package, folder / f"worker-{names[0]}", limits=limits, ranks=ranks)))
        roster, proven, read, there = RosterFile(folder / NAME), dict[str, Proven](), Reader(), dict[str, Hospital]()
        shelf = Shelf()
        for name in names:
            site = await stack.enter_async_context(_site(folder, signers[name], shares[name], roster))
            there[name] = Hospital(site, Far(wire, name, shelf), bench, proven, read)

        def tell(told: Collection[str], document: dict[str, Any]) -> None:
            for name in told:
                there[name].tell(document)

        yield tell, bench.idle, bench.work()


@asynccontextmanager
async def _site(shared: Path, own: Signer, samples: list[Sample], roster: RosterFile) -> AsyncIterator[Site]:
    """A hospital named as its key says, with these samples in its store."""
    name = own.name.removeprefix("hospital:")
    folder = shared / "hospitals" / name
    folder.mkdir(parents=True)
    layout = Layout(folder)
    layout.policy, layout.trust, layout.roster = shared / "policy.toml", shared / "trust.json", shared / NAME
    layout.site_key = shared / SITE_KEY
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
    site.interpreters = Interpreters(layout, settings, _anything)
    try:
        await take_in(site, samples)
        yield site
    finally:
        await database.close()


async def _anything(*_: Any) -> Environment:
    """What all of them run in is the researcher's own, and approved by nobody: it is not looked at."""
    return Environment({"python": "simulated", "distributions": {}})


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
    """One for all: it lets this package run, refuses nothing that a simulation is for (samples of the researcher's own machine need no
    protection from the researcher; what hospitals may say is `would_refuse`), and rounds counts as the plan says and no further. So is
    what rounds them, which is no secret: nobody is to be hidden, and what is simulated again is weighed as before, whoever wrote the
    package."""
    write_secret(folder / SITE_KEY, b"nobody is to be hidden")
    (folder / "policy.toml").write_text(
        f'[federation]\ninitiators = ["*"]\npackages = ["{package.digest}"]\nalgorithms = ["*"]\n'
        f'modalities = ["{package.manifest.data.modality}"]\n'
        f'environment = "any"\nmin_samples = 1\nmax_update_mib = 65536\nmax_rounds = 10000\nsmall_cell = 0\n'
        f"min_hospitals = 0\nmin_batch = 0\nmin_steps = 0\nmin_seen = 0\n"
    )


def would_refuse(plan: Plan, shares: Mapping[str, Sequence[Sample]]) -> dict[str, Problem]:
    """By its name, every rule of the policy that nodes begin with by which one of the hospitals would not take part in a plan."""
    begun = rules.parse(rules.DEFAULT)
    found: dict[str, Problem] = {}
    for samples in shares.values():
        training = [sample.patient for sample in samples if not sample.held_out]
        found |= rules.refusals(begun, plan, rules.Cohort(len(training), len(set(training))))
    return found
