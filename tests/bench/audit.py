"""The log: durable appends through NATS to the receipt, and inclusion proofs at ten million entries.

The service runs as a process of its own, as everywhere; so do NATS and PostgreSQL. A receipt means: committed, in the tree, and under a
signed checkpoint. Floors and peers are in `tests.bench.audit_raw`; verifying and rebuilding in `tests.bench.audit_verify`.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import asyncpg
import psutil
import uvloop
from sqlalchemy import select
from sqlalchemy.engine import make_url

from medmesh.bus.nats_bus import NatsBus
from medmesh.bus.port import StreamSpec
from medmesh.bus.topology import consumers, streams
from medmesh.contracts.audit import AuditBatch, Receipts, record_subject
from medmesh.embedded.testing import RunningServers, servers
from medmesh.ledger import note, proof, sm
from medmesh.ledger.edge import Edge
from medmesh.ledger.leaf import Leaf, commitment
from medmesh.ledger.tree import leaf_hash
from medmesh.security.authority import Authority
from medmesh.security.keyring.file import FileKeys
from medmesh.security.keys import Identity
from medmesh.security.tokens import TrustBundle
from medmesh.store.database import Database
from medmesh.store.migrate import Schema, apply
from medmesh.store.unit import Context
from medmesh_audit import queries
from medmesh_audit.domain import Shown
from medmesh_audit.service import SERVICE
from medmesh_audit.tables import entries
from medmesh_audit.witnesses import UNWITNESSED
from tests.bench import audit_raw, audit_verify
from tests.bench.common import Measure, percentile
from tests.logs import record

CALLERS, EACH, REPEATS = 64, 150, 3
BATCH, BATCHES = 100, 30
IDLE = 200
ENTRIES = int(os.environ.get("MEDMESH_BENCH_ENTRIES", "10000000"))
PROOFS = 400
PASSWORD = "bench-only"
EMITTERS = [f"bench{n:02d}" for n in range(CALLERS)]


@dataclass
class Bench:
    """The servers, the driver's connection, and how far each emitter has counted."""

    up: RunningServers
    folder: Path
    bus: NatsBus
    process: psutil.Process
    """The log's."""
    counted: dict[str, int] = field(default_factory=dict)

    @property
    def raw_url(self) -> str:
        """For the floors."""
        return self.up.postgres_url

    def batches(self, emitter: str, count: int, size: int) -> list[bytes]:
        """Requests made before the clock runs: making them is the emitters' work, spread over their machines."""
        made = []
        for _ in range(count):
            first = self.counted.get(emitter, 0) + 1
            self.counted[emitter] = first + size - 1
            records = tuple(record(emitter, n) for n in range(first, first + size))
            made.append(AuditBatch(emitter=emitter, records=records).model_dump_json().encode())
        return made

    async def hand_in(self, emitter: str, body: bytes, subject: str = "") -> Receipts:
        """Until the receipt."""
        answer = Receipts.model_validate_json(await self.bus.request(subject or record_subject(emitter), body, timeout=30))
        assert not answer.problem, answer.problem
        return answer


def measure(names: Sequence[str] = ()) -> list[Measure]:
    """Run the area under the loop that services run under."""
    measures = uvloop.run(_measure(names))
    if not names or any(name.startswith("audit.verify") for name in names):
        measures += uvloop.run(audit_verify.measures())
    return measures


async def _measure(names: Sequence[str]) -> list[Measure]:
    cases: dict[str, Callable[[Bench], Awaitable[list[Measure]]]] = {
        "audit.idle_p50": idle,
        "audit.append64": append64,
        "audit.batch100": batch100,
        "audit.proof_p50": proofs,
    }
    measures: list[Measure] = []
    with tempfile.TemporaryDirectory(prefix="medmesh-bench-") as place:
        folder = Path(place)
        folder.chmod(0o711)
        async with servers(folder / "servers") as up:
            for name, case in cases.items():
                if not names or name in names:
                    print(f"{name} ...", file=sys.stderr, flush=True)
                    async with service(up, folder, f"bench_{name[6:]}") as bench:
                        measures += await case(bench)
            if not names or "audit.append64_sm" in names:
                measures += await second_tree(up, folder)
    return measures


@asynccontextmanager
async def service(up: RunningServers, folder: Path, database: str, **further: object) -> AsyncIterator[Bench]:
    """The audit service in a process of its own, on an empty database."""
    private = folder / database
    private.mkdir(mode=0o700)
    await asyncio.to_thread(_prepare_keys, private)
    admin = make_url(up.postgres_url)
    sql = await asyncpg.connect(up.postgres_url)
    await sql.execute(f'CREATE DATABASE "{database}"')
    await sql.close()
    own = admin.set(database=database).render_as_string(hide_password=False)
    await apply(own, [Schema("audit", SERVICE.metadata, SERVICE.migrations)], {"audit": PASSWORD})
    settings = SERVICE.settings.model_validate(
        {
            "nats_url": up.nats_url,
            "identity": private / "audit.nk",
            "database_url": admin.set(database=database, username="medmesh_audit", password=PASSWORD).render_as_string(hide_password=False),
            "trust": private / "trust.json",
            "state": private,
            "log_key": private / "log.nk",
            "log_level": "error",
            **further,
            "objects": {"folder": private / "objects", "spool": private / "spool", "keys": str(private / "kek")},
        }
    )
    (private / "audit.json").write_text(settings.model_dump_json(exclude_none=True))
    bus = await NatsBus.connect(up.nats_url, name="bench-driver")
    for stream in (*streams([SERVICE]), StreamSpec("EVENTS", ("medmesh.evt.>",))):
        await bus.ensure_stream(stream)
    for consumer in consumers([SERVICE]):
        await bus.ensure_consumer(consumer)
    command = (sys.executable, "-P", "-m", "medmesh.service", "audit", "--settings", str(private / "audit.json"))
    process = await asyncio.create_subprocess_exec(*command)
    bench = Bench(up, private, bus, psutil.Process(process.pid))
    try:
        await _answers(bench)
        yield bench
    finally:
        process.terminate()
        await process.wait()
        await bus.close()


def _prepare_keys(private: Path) -> None:
    audit = Identity.ensure(private / "audit.nk")
    release = Identity.ensure(private / "release.nk")
    Identity.ensure(private / "log.nk")
    FileKeys(private / "kek").ensure("objects")
    (private / "ca").mkdir()
    services = {"audit": audit.public, **dict.fromkeys(EMITTERS, audit.public)}
    ca = Authority.ensure(private / "ca").certificate_pem
    TrustBundle(platform="bench", services=services, release_key=release.public, ca_pem=ca).save(private / "trust.json")


async def _answers(bench: Bench) -> None:
    (first,) = bench.batches(EMITTERS[-1], 1, 1)
    async with asyncio.timeout(30):
        while True:
            try:
                await bench.hand_in(EMITTERS[-1], first)
                return
            except Exception:
                await asyncio.sleep(0.1)


@asynccontextmanager
async def bare(bench: Bench) -> AsyncIterator[psutil.Process]:
    """The floor's responder while it runs."""
    command = (sys.executable, "-m", "tests.bench.audit_raw", bench.up.nats_url, bench.raw_url)
    process = await asyncio.create_subprocess_exec(*command)
    try:
        for _ in range(100):
            with suppress(Exception):
                await bench.hand_in("", b'{"records": []}', audit_raw.SUBJECT)
                break
            await asyncio.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        await process.wait()


async def _load(bench: Bench, callers: int, each: int, size: int, subject: str = "") -> tuple[float, list[float]]:
    """(records a second, seconds until each receipt)."""
    wishes = {emitter: bench.batches(emitter, each, size) for emitter in EMITTERS[:callers]}
    taken: list[float] = []

    async def call(emitter: str) -> None:
        for body in wishes[emitter]:
            began = perf_counter()
            await bench.hand_in(emitter, body, subject)
            taken.append(perf_counter() - began)

    began = perf_counter()
    await asyncio.gather(*map(call, wishes))
    return callers * each * size / (perf_counter() - began), taken


def _busy(process: psutil.Process) -> float:
    """Seconds of processor time it has used."""
    return float(sum(process.cpu_times()[:2]))


async def append64(bench: Bench) -> list[Measure]:
    """64 emitters with one record a request, each waiting for its receipt."""
    taken = await _in_turn(bench, CALLERS, EACH, 1)
    peer, _, peer_p99 = await audit_raw.chained(bench.raw_url, CALLERS, 10)
    return [
        Measure("audit.append64", taken.rate, "records/s", taken.floor, "a chain in SQL", peer, 4000, "more"),
        Measure("audit.append64_p99", taken.p99, "ms", taken.floor_p99, "a chain in SQL", peer_p99, 50),
        Measure("audit.append64_commit", taken.inside, "records/s"),
        Measure("audit.append64_cpu", taken.cpu, "us/record", taken.floor_cpu),
    ]


async def second_tree(up: RunningServers, folder: Path) -> list[Measure]:
    """`append64` with the second tree (SM3, SM2) until that has followed to the last record, and without it, in turn."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    key = folder / "sm2.json"
    sm.write_key(key, "medmesh/log")
    for turn in range(REPEATS):
        for second in (False, True):
            database = f"bench_sm_{turn}_{int(second)}"
            further = {"sm_keys": [key], "sm_seconds": 0.2} if second else {}
            async with service(up, folder, database, **further) as bench:
                await _load(bench, CALLERS, 20, 1)
                sql = await asyncpg.connect(make_url(up.postgres_url).set(database=database).render_as_string(hide_password=False))
                began = perf_counter()
                await _load(bench, CALLERS, 2 * EACH, 1)
                if second:
                    behind = "SELECT (SELECT size FROM audit.state) > coalesce((SELECT max(size) FROM audit.sm_checkpoints), 0)"
                    while await sql.fetchval(behind):
                        await asyncio.sleep(0.01)
                rates[second].append(CALLERS * 2 * EACH / (perf_counter() - began))
                await sql.close()
    one, both = statistics.median(rates[False]), statistics.median(rates[True])
    return [Measure("audit.append64_sm", both, "records/s", one, goal=0.75 * one, better="more")]


async def batch100(bench: Bench) -> list[Measure]:
    """Eight emitters that hand in a hundred records a request."""
    taken = await _in_turn(bench, 8, BATCHES, BATCH)
    return [
        Measure("audit.batch100", taken.rate, "records/s", taken.floor, goal=12_000, better="more"),
        Measure("audit.batch100_commit", taken.inside, "records/s"),
        Measure("audit.batch100_cpu", taken.cpu, "us/record", taken.floor_cpu),
    ]


@dataclass
class Taken:
    """Medians: ours, the bare responder's (the floor), a group commit without any transport (`inside`), and the processor time of the
    log's and of the bare process, which other work beside it changes least."""

    rate: float
    p99: float
    floor: float
    floor_p99: float
    inside: float
    cpu: float
    floor_cpu: float


async def _in_turn(bench: Bench, callers: int, each: int, size: int) -> Taken:
    await _load(bench, callers, 5, size)
    taken: list[tuple[float, ...]] = []
    for _ in range(REPEATS):
        busy = _busy(bench.process)
        rate, waits = await _load(bench, callers, each, size)
        cpu = (_busy(bench.process) - busy) / (callers * each * size) * 1e6
        async with bare(bench) as floored:
            busy = _busy(floored)
            floor, floor_waits = await _load(bench, callers, each, size, audit_raw.SUBJECT)
            floor_cpu = (_busy(floored) - busy) / (callers * each * size) * 1e6
        # The floor took numbers that the log has not seen.
        bench.counted = {emitter: n - each * size if emitter in EMITTERS[:callers] else n for emitter, n in bench.counted.items()}
        inside, _, _ = await audit_raw.grouped(bench.raw_url, callers, each, size)
        taken.append((rate, percentile(waits, 99) * 1e3, floor, percentile(floor_waits, 99) * 1e3, inside, cpu, floor_cpu))
    return Taken(*map(statistics.median, zip(*taken, strict=True)))


async def idle(bench: Bench) -> list[Measure]:
    """One record at a time; and how long after it was handed in a reader of the log finds it under a signed checkpoint."""
    await _load(bench, 1, 50, 1)
    p50s, floors, visible = [], [], []
    admin = make_url(bench.up.postgres_url).set(database="bench_idle_p50").render_as_string(hide_password=False)
    sql = await asyncpg.connect(admin)
    for _ in range(REPEATS):
        _, floor, _ = await audit_raw.grouped(bench.raw_url, 1, IDLE)
        _, taken = await _load(bench, 1, IDLE, 1)
        p50s.append(percentile(taken, 50) * 1e3)
        floors.append(floor)
        for body in bench.batches(EMITTERS[0], 50, 1):
            began = perf_counter()
            (receipt,) = (await bench.hand_in(EMITTERS[0], body)).receipts
            while await sql.fetchval("SELECT max(size) FROM audit.checkpoints") <= receipt.seq:
                await asyncio.sleep(0.001)
            visible.append(perf_counter() - began)
    await sql.close()
    m = statistics.median
    return [
        Measure("audit.idle_p50", m(p50s), "ms", m(floors), goal=6),
        Measure("audit.checkpoint_p99", percentile(visible, 99), "s", goal=2),
    ]


async def proofs(bench: Bench) -> list[Measure]:
    """Inclusion proofs through the service's own query, on a log whose tiles were written directly; every proof is verified."""
    sql = await asyncpg.connect(make_url(bench.up.postgres_url).set(database="bench_proof_p50").render_as_string(hide_password=False))
    dice = random.Random(7)
    began = perf_counter()
    edge, wanted = await large_log(sql, bench.folder, ENTRIES, sorted(dice.sample(range(ENTRIES - 256), PROOFS)))
    print(f"{ENTRIES} entries in {perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    url = make_url(bench.up.postgres_url).set(database="bench_proof_p50", username="medmesh_audit", password=PASSWORD)
    database = Database.postgres(url.render_as_string(hide_password=False))
    order, taken, floor = list(wanted), list[float](), list[float]()
    dice.shuffle(order)
    upper = queries.Upper()
    key = note.verifier_key("medmesh/log", Identity.load(bench.folder / "log.nk").private_key.public_key())
    for seq in order:
        began = perf_counter()
        async with database.unit(Context("audit")) as uow:
            row = await uow.first(select(entries).where(entries.c.seq == seq))
            newest = await queries.checkpoint(uow)
            evidence = await queries.evidence(uow, row, Shown(newest.size, newest.note, UNWITNESSED, newest.root), upper)
        taken.append(perf_counter() - began)
        assert proof.verify(evidence.proof, base64.b64decode(evidence.leaf), key).size == edge.size
        began = perf_counter()
        await sql.fetchrow("SELECT hashes FROM audit.tiles WHERE level = 0 AND number = $1", dice.randrange(ENTRIES // 256))
        floor.append(perf_counter() - began)
    await database.close()
    await sql.close()
    return [
        Measure("audit.proof_p50", percentile(taken, 50) * 1e3, "ms", percentile(floor, 50) * 1e3, goal=3),
        Measure("audit.proof_p99", percentile(taken, 99) * 1e3, "ms", percentile(floor, 99) * 1e3, goal=10),
    ]


async def large_log(sql: asyncpg.Connection, folder: Path, size: int, kept: Sequence[int]) -> tuple[Edge, list[int]]:
    """Tiles, checkpoint and counters of a log of `size` entries, of which only the `kept` and the last ones have rows."""
    await sql.execute("SET search_path TO audit")
    await sql.execute("ALTER TABLE audit.entries DISABLE TRIGGER USER; ALTER TABLE audit.tiles DISABLE TRIGGER USER")
    rows = {seq: _entry(seq) for seq in (*kept, *range(size // 256 * 256, size))}
    edge, tiles, now = Edge(), [], datetime.now(UTC)
    for block in range(0, size, 256):
        noise = os.urandom(256 * 32)
        places = range(min(256, size - block))
        tiles += edge.add([leaf_hash(rows[seq][4]) if (seq := block + p) in rows else noise[p * 32 : p * 32 + 32] for p in places])
        if len(tiles) >= 2000:
            await _put_tiles(sql, tiles)
            tiles = []
    await _put_tiles(sql, tiles)
    columns = ("seq", "id", "emitter", "n", "leaf", "hash", "salt", "body", "at")
    records = [(*row[:5], leaf_hash(row[4]), *row[5:], now) for row in rows.values()]
    await sql.execute("DELETE FROM entries")
    await sql.copy_records_to_table("entries", records=records, columns=columns)
    key = Identity.load(folder / "log.nk").private_key
    signed = note.sign(note.Checkpoint("medmesh/log", size, edge.root()).text(), "medmesh/log", key)
    await sql.execute("INSERT INTO checkpoints (size, root, note, at) VALUES ($1, $2, $3, $4)", size, edge.root(), signed, now)
    await sql.execute("VACUUM ANALYZE entries")
    await sql.execute("VACUUM ANALYZE tiles")
    return edge, list(kept)


async def _put_tiles(sql: asyncpg.Connection, tiles: Sequence[tuple[int, int, bytes, bytes]]) -> None:
    await sql.copy_records_to_table("tiles", records=tiles, columns=("level", "number", "hashes", "root"))


def _entry(seq: int) -> tuple[int, str, str, int, bytes, bytes, bytes]:
    made = record("bench", seq + 1)
    body, salt = base64.b64decode(made.body), os.urandom(16)
    leaf = Leaf("2026-11-26T00", "bench", seq + 1, "platform", commitment(salt, body)).encode()
    return seq, made.id, "bench", seq + 1, leaf, salt, body
