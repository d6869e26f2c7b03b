"""Sealed segments: the log read back without its database, crashes on the way, and whoever writes into the sealed store."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.contract.test_sealed import anybody, keys
from tests.logs import audit_service, connected, faults, hand_in, records, vkey
from tests.platform import Platform
from tests.records import left

from medmesh.bus import topology
from medmesh.bus.nats_bus import NatsBus
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.service.runtime import running
from medmesh.service.settings import ObjectSettings
from medmesh.store.objects.sealed import SealedStore
from medmesh.telemetry import metrics
from medmesh_audit.restore import restore
from medmesh_audit.sealing import Sealer
from medmesh_audit.service import SERVICE


@asynccontextmanager
async def sealing(servers: RunningServers, private: Path, unique: str, **settings: Any) -> AsyncIterator[tuple[Platform, SealedStore]]:
    """The log with a sealed store of its own; by itself it seals only when told."""
    private.chmod(0o700)
    where = ObjectSettings(s3_url=servers.s3_url, s3_credentials=keys(servers, private), keys=str(private / "kek"))
    bucket = f"log-{unique}"
    slow = {"seal_seconds": 3600, "inspect_seconds": 3600, **settings}
    async with audit_service(servers, private, objects=where, sealed_bucket=bucket, **slow) as p:
        assert where.s3_credentials is not None
        store = await SealedStore.open(servers.s3_url, bucket, where.s3_credentials, retain_days=200)
        yield p, store
        store.close()


def alarms(kind: str) -> float:
    return metrics.AUDIT_ALARMS.labels(kind)._value.get()


async def test_the_log_is_read_back_when_the_database_is_gone(servers: RunningServers, private: Path, unique: str, tmp_path: Path) -> None:
    async with sealing(servers, private, unique, seal_seconds=0.3) as (p, store):
        await hand_in(p.bus, "governance", records("governance", 1, 400))
        async with asyncio.timeout(20):
            while not await store.versions("checkpoint/0000000000000400"):
                await asyncio.sleep(0.1)
        await hand_in(p.bus, "governance", records("governance", 401, 200))
        async with asyncio.timeout(20):
            while not await store.versions("checkpoint/0000000000000600"):
                await asyncio.sleep(0.1)
        async with connected(servers, p, superuser=True) as sql:
            sealed = {(r["kind"], r["level"], r["number"]) for r in await sql.fetch("SELECT kind, level, number FROM seals")}
        assert {("entries", 256, 0), ("entries", 144, 1), ("entries", 256, 1), ("entries", 88, 2), ("tile", 0, 0), ("tile", 0, 1)} <= sealed
    size = await restore(store, vkey(private), tmp_path / "copy")
    assert size == 600
    assert await faults(tmp_path / "copy", vkey(private)) == []
    assert len((tmp_path / "copy" / "bodies.jsonl").read_text().splitlines()) == 600


async def test_a_crash_anywhere_while_sealing_leaves_something_to_go_on_from(
    servers: RunningServers, private: Path, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies before or after each put, many times; what is sealed in the end is whole and nothing was sealed twice."""
    async with sealing(servers, private, unique) as (p, store):
        await hand_in(p.bus, "governance", records("governance", 1, 300))
        await hand_in(p.bus, "registry", records("registry", 1, 300))
        put = SealedStore.put

        class Died(Exception):
            pass

        dies_at, seen = 0, 0

        async def dying(self: SealedStore, key: str, data: bytes) -> str:
            nonlocal seen
            seen += 1
            if seen == dies_at:
                if dies_at % 2:
                    await put(self, key, data)  # put, and died before it was noted
                raise Died
            return await put(self, key, data)

        monkeypatch.setattr(SealedStore, "put", dying)
        for dies_at in (1, 2, 3, 4, 1, 100):  # noqa: B007
            seen = 0
            try:
                await Sealer(p.runtimes["audit"], store).run()
            except Died:
                continue
        found = await store.versions()
        assert len({version.key for version in found}) == len(found)
        before = alarms("sealed_twice")
        await Sealer(p.runtimes["audit"], store).inspect()
        assert alarms("sealed_twice") == before
        assert await restore(store, vkey(private), tmp_path / "copy") == 600
        assert await faults(tmp_path / "copy", vkey(private)) == []


async def test_a_second_version_is_an_alarm_and_is_not_read(servers: RunningServers, private: Path, unique: str, tmp_path: Path) -> None:
    async with sealing(servers, private, unique) as (p, store):
        await hand_in(p.bus, "governance", records("governance", 1, 300))
        sealer = Sealer(p.runtimes["audit"], store)
        await sealer.run()
        before, client = alarms("sealed_twice"), anybody(servers)
        bundle = (await store.versions("bundle/000"))[0]
        forged = (await store.read(bundle.key, bundle.id)).replace(b'"seq": 7', b'"seq": 8', 1)
        client.put_object(store._bucket, bundle.key, io.BytesIO(forged), len(forged))
        client.remove_object(store._bucket, "tile/0/000")
        await sealer.inspect()
        await sealer.inspect()
        assert alarms("sealed_twice") == before + 2, "once for each name"
        told = [record["detail"]["key"] for record in await left(p, "audit.alarm.sealed_twice", 2)]
        assert sorted(told) == [bundle.key, "tile/0/000"]
        assert await restore(store, vkey(private), tmp_path / "copy") == 300
        assert await faults(tmp_path / "copy", vkey(private)) == []


async def test_a_database_rolled_back_behind_what_was_sealed_is_never_signed_again(
    servers: RunningServers, private: Path, unique: str
) -> None:
    """All that the database holds agrees with itself: only what left it tells."""
    async with sealing(servers, private, unique) as (p, store):
        await hand_in(p.bus, "governance", records("governance", 1, 20))
        async with connected(servers, p, superuser=True) as sql:
            tables = ("entries", "facts", "checkpoints", "emitters", "state")
            for table in tables:
                await sql.execute(f"CREATE TABLE backup_{table} AS SELECT * FROM {table}")
        await hand_in(p.bus, "governance", records("governance", 21, 20))
        await Sealer(p.runtimes["audit"], store).run()
        settings = p.runtimes["audit"].settings
    async with connected(servers, p, superuser=True) as sql:
        await sql.execute("ALTER TABLE entries DISABLE TRIGGER USER; ALTER TABLE checkpoints DISABLE TRIGGER USER")
        for table in tables:
            await sql.execute(f"DELETE FROM {table}; INSERT INTO {table} SELECT * FROM backup_{table}")
    bus = await NatsBus.connect(servers.nats_url, name="test")
    await topology.apply(bus, [SERVICE])
    await bus.close()
    async with running(SERVICE, settings.model_copy(update={"nats_url": servers.nats_url})) as again:
        async with asyncio.timeout(10):
            while again.ports.sequencer.halted is None:
                await asyncio.sleep(0.05)
        assert "size 40 was sealed, the database has 20" in (await again.ready())["log"]
        with pytest.raises(Problem):
            await hand_in(again.bus, "governance", records("governance", 21, 1), timeout=1)
