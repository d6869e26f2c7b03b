"""The log's one writer: receipts, repetition, conflicts, two instances, and a log that contradicts what was signed."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.logs import audit_service, connected, copied, faults, hand_in, record, records, vkey
from tests.platform import Platform

from medmesh.bus import topology
from medmesh.bus.nats_bus import NatsBus
from medmesh.contracts.audit import AuditRecord
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.ledger import proof
from medmesh.ledger.record import record_bytes
from medmesh.service.runtime import Runtime, running
from medmesh.store.session import session
from medmesh.store.unit import UnitOfWork
from medmesh_audit import head, queries, search
from medmesh_audit.domain import Shown, admit
from medmesh_audit.ports import Ports
from medmesh_audit.sequencer import Sequencer
from medmesh_audit.service import SERVICE


def sequencer(runtime: Runtime) -> Sequencer:
    ports: Ports = runtime.ports
    return ports.sequencer


async def until(condition: object, seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.05)


async def insist(p: Platform, emitter: str, first: int, count: int) -> tuple[int, ...]:
    """As a relay: again until there is a receipt."""
    made = records(emitter, first, count)
    async with asyncio.timeout(20):
        while True:
            try:
                return tuple(receipt.seq for receipt in await hand_in(p.bus, emitter, made, timeout=1))
            except (Problem, TimeoutError):
                await asyncio.sleep(0.1)


async def newest(uow: UnitOfWork[Any]) -> Shown:
    """The newest checkpoint, without witnesses."""
    row = await queries.checkpoint(uow)
    return Shown(row.size, row.note, "alone", row.root)


async def whole(p: Platform, folder: Path, runtime: Runtime | None = None) -> int:
    """How many records a verified copy has."""
    copy = await copied(runtime or p.runtimes["audit"], folder)
    assert await faults(copy, vkey(p.folder)) == []
    return int((copy / "checkpoint").read_text().split("\n")[1])


async def test_every_receipt_is_proven_and_numbers_have_no_gap(servers: RunningServers, private: Path, tmp_path: Path) -> None:
    async with audit_service(servers, private) as p:
        sent = {name: records(name, 1, 300) for name in ("governance", "federation", "registry")}

        async def emit(name: str) -> dict[str, int]:
            answers = [await hand_in(p.bus, name, sent[name][n : n + 7]) for n in range(0, 300, 7)]
            return {receipt.id: receipt.seq for answer in answers for receipt in answer}

        seqs = {k: v for places in await asyncio.gather(*map(emit, sent)) for k, v in places.items()}
        assert sorted(seqs.values()) == list(range(900))
        async with p.runtimes["audit"].unit() as uow:
            for made in (sent["governance"][0], sent["federation"][150], sent["registry"][299]):
                evidence = await queries.evidence(uow, await search.entry(uow, made.id, None), await newest(uow), queries.Upper())
                assert evidence.seq == seqs[made.id]
                assert proof.verify(evidence.proof, base64.b64decode(evidence.leaf), vkey(private)).size == 900
                assert evidence.body == made.body
            with pytest.raises(Problem, match="900"):
                await search.entry(uow, "900", None)
        assert await whole(p, tmp_path / "copy") == 900


async def test_the_same_records_again_get_the_same_receipts(servers: RunningServers, private: Path) -> None:
    async with audit_service(servers, private) as p:
        made = records("governance", 1, 20)
        first = await hand_in(p.bus, "governance", made)
        assert await hand_in(p.bus, "governance", made) == first
        more = [*made[10:], *records("governance", 21, 2)]
        assert [r.seq for r in await hand_in(p.bus, "governance", more)] == list(range(10, 22))
        # In one group: the second copy finds the first one before it is written.
        last = records("governance", 23, 3)
        same = await asyncio.gather(*(hand_in(p.bus, "governance", last) for _ in range(8)))
        assert len(set(same)) == 1
        async with connected(servers, p, superuser=True) as sql:
            assert await sql.fetchval("SELECT count(*) FROM entries WHERE emitter = 'governance'") == 25
            # Whatever stands in a text comes out of the tables of the search as it went in, but for NUL, which they cannot hold.
            odd = json.loads(base64.b64decode(record("registry", 1).body))
            odd["agents"][0]["who"], odd["t"] = 'person:"li"\\ {}\0\n王', "2026-11-27T03:04:05.000006Z"
            odd["entities"] = [{"type": "model", "id": "a,b'c", "ver": "", "digest": ""}]
            await hand_in(p.bus, "registry", [AuditRecord(id=odd["id"], n=1, body=base64.b64encode(record_bytes(odd)).decode())])
            row = await sql.fetchrow("SELECT f.*, e.body FROM facts f JOIN entries e USING (seq) WHERE f.id = $1", odd["id"])
            assert (row["who"], row["t"]) == ('person:"li"\\ {}\ufffd\n王', datetime(2026, 11, 27, 3, 4, 5, 6, tzinfo=UTC))
            assert (json.loads(row["orgs"]), json.loads(row["entities"])) == (["platform"], ["model:a,b'c"])
            assert (row["outcome"], row["service"], json.loads(row["body"])) == (0, "registry", odd)


async def test_a_gap_refuses_the_batch_and_nothing_else(servers: RunningServers, private: Path) -> None:
    async with audit_service(servers, private) as p:
        good, bad = records("governance", 1, 3), [record("registry", 1), record("registry", 3)]
        outcome = await asyncio.gather(hand_in(p.bus, "registry", bad), hand_in(p.bus, "governance", good), return_exceptions=True)
        assert isinstance(outcome[0], Problem) and outcome[0].code == "audit.gap"
        assert not isinstance(outcome[1], BaseException) and [r.seq for r in outcome[1]] == [0, 1, 2]
        assert [r.seq for r in await hand_in(p.bus, "registry", records("registry", 1, 1))] == [3]


async def test_another_record_under_a_known_number_or_id_is_an_alarm_and_both_are_kept(servers: RunningServers, private: Path) -> None:
    async with audit_service(servers, private) as p:
        made = records("governance", 1, 4)
        await hand_in(p.bus, "governance", made)
        same_number = record("governance", 2, id=made[1].id, verb="training.fail")
        same_id = record("governance", 5, id=made[2].id)
        for forged in (same_number, same_id, same_number):
            with pytest.raises(Problem) as refused:
                await hand_in(p.bus, "governance", [forged])
            assert refused.value.code == "audit.rewritten"
        async with connected(servers, p, superuser=True) as sql:
            kept = {(row["n"], row["seq"], row["body"]) for row in await sql.fetch("SELECT n, seq, body FROM conflicts")}
            assert kept == {(2, 1, base64.b64decode(same_number.body)), (5, 2, base64.b64decode(same_id.body))}
            await until_async(lambda: sql.fetchval("SELECT count(*) FROM facts WHERE verb = 'audit.alarm.rewritten'"), 2)
        assert [r.seq for r in await hand_in(p.bus, "governance", made)] == [0, 1, 2, 3], "the log holds what came first"


async def until_async(ask: object, wanted: int) -> None:
    async with asyncio.timeout(10):
        while await ask() != wanted:  # type: ignore[operator]
            await asyncio.sleep(0.1)


async def test_the_second_instance_takes_over_when_the_first_dies(servers: RunningServers, private: Path, tmp_path: Path) -> None:
    async with audit_service(servers, private) as p:
        first = p.runtimes["audit"]
        await insist(p, "governance", 1, 5)
        async with running(SERVICE, first.settings) as second:
            assert sequencer(first).leading and not sequencer(second).leading
            assert await second.ready() == {}, "who stands by is ready: the auditors' door is open"
            async with connected(servers, p, superuser=True) as sql:
                # What the database sees of a killed process.
                await sql.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7236484")
            seqs = await insist(p, "governance", 6, 5)
            assert seqs == (5, 6, 7, 8, 9)
            assert sequencer(first).leading is not sequencer(second).leading
            assert await whole(p, tmp_path / "copy") == 10


async def test_a_writer_that_slept_and_wakes_writes_nothing(servers: RunningServers, private: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """It still believes that it leads, and has records to write. The lock says nothing about a sleeper: the term and the size do."""
    monkeypatch.setattr(head, "SILENT_SECONDS", 0.5)
    async with audit_service(servers, private) as p:
        first = p.runtimes["audit"]
        await insist(p, "governance", 1, 5)
        stale, asleep, awake = sequencer(first)._head, asyncio.Event(), asyncio.Event()
        assert stale is not None
        original = head.write

        async def slow(*arguments: object) -> None:
            if arguments[1] is stale and not awake.is_set():
                asleep.set()
                await awake.wait()
            await original(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(head, "write", slow)
        late = asyncio.create_task(hand_in(p.bus, "registry", records("registry", 1, 1)))
        await asleep.wait()
        async with running(SERVICE, first.settings) as second:
            await until(lambda: sequencer(second).leading)
            seqs = await insist(p, "governance", 6, 3)
            assert seqs == (5, 6, 7)
            awake.set()
            with pytest.raises(Problem):
                await late
            await until(lambda: not sequencer(first).leading)
            assert await whole(p, tmp_path / "copy", second) == 8

            # The same without a lock at all: on a connection of its own the stale head moves nothing.
            async with session(first.database) as opened:
                entry = admit(record("registry", 1), "registry")
                after, full = head.extended(stale, [entry])
                with pytest.raises(Problem) as overtaken:
                    await original(opened, stale, after, [entry], full, "forged", datetime.now(UTC))
                assert overtaken.value.code == "audit.overtaken"
            assert await whole(p, tmp_path / "again", second) == 8


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("tile", "tiles 0/0"),
        ("tail", "entries 256 to 399"),
        ("lost", "entries 256 to 399"),
        ("rolled-back", "checkpoint of size 400"),
        ("counter", "the counter of governance"),
    ],
)
async def test_a_log_that_contradicts_its_checkpoint_is_never_signed_again(
    servers: RunningServers, private: Path, damage: str, told: str
) -> None:
    async with audit_service(servers, private) as p:
        await insist(p, "governance", 1, 400)
        settings = p.runtimes["audit"].settings
        statements = {
            "tile": "UPDATE tiles SET hashes = overlay(hashes PLACING '\\x00'::bytea FROM 70)",
            "tail": "UPDATE entries SET leaf = overlay(leaf PLACING 'x'::bytea FROM 9) WHERE seq = 300",
            "lost": "DELETE FROM entries WHERE seq >= 399",
            "rolled-back": "DELETE FROM entries WHERE seq >= 390; UPDATE state SET size = 390; UPDATE emitters SET n = 390",
            "counter": "UPDATE emitters SET n = 7",
        }
    async with connected(servers, p, superuser=True) as sql:
        await sql.execute("SET session_replication_role = replica")
        for table in ("tiles", "entries", "checkpoints"):
            await sql.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        await sql.execute(statements[damage])
        signed = await sql.fetchval("SELECT count(*) FROM checkpoints")
        bus = await NatsBus.connect(servers.nats_url, name="test")
        await topology.apply(bus, [SERVICE])
        await bus.close()
        async with running(SERVICE, settings.model_copy(update={"nats_url": servers.nats_url})) as again:
            await until(lambda: sequencer(again).halted is not None)
            assert told in (await again.ready())["log"]
            assert not sequencer(again).leading
            with pytest.raises(Problem):
                await hand_in(again.bus, "governance", records("governance", 401, 1), timeout=1)

            async def alarmed() -> bool:
                return "audit.alarm.inconsistent" in [json.loads(body)["sub"] for _, _, body in await again.database.unreceipted()]

            async with asyncio.timeout(10):
                while not await alarmed():
                    await asyncio.sleep(0.05)
            assert await sql.fetchval("SELECT count(*) FROM checkpoints") == signed
