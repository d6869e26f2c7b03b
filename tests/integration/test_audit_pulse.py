"""Alerts about the log itself: each is brought about on real servers, and told within half a minute in three places."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.contract.test_sealed import anybody, keys
from tests.logs import audit_service, connected, hand_in, record, records
from tests.platform import Platform

from medmesh.contracts.audit import AlertRaised
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.ledger.record import record_bytes
from medmesh.store.objects.sealed import SealedStore
from medmesh.telemetry import metrics
from medmesh_audit.pulse import HEARTBEAT, Pulse, missed
from medmesh_audit.sealing import Sealer
from medmesh_audit.tables import entries, facts

pytestmark = pytest.mark.xdist_group("audit-pulse")
QUICK = {"anomaly_seconds": 0.3, "heartbeat_seconds": 4.0}


async def raised(p: Platform, rule: str, about: str) -> None:
    """The fact, the metric and the record."""
    found = await p.wait(AlertRaised, lambda found: (found.data.rule, found.data.about) == (rule, about), timeout=30)
    assert metrics.AUDIT_ALERTS.labels(rule)._value.get() >= 1
    wanted = select(entries.c.body).join(facts, facts.c.seq == entries.c.seq).where(facts.c.verb == "audit.alert")
    async with asyncio.timeout(30):
        while True:
            async with p.runtimes["audit"].unit() as uow:
                if any(json.loads(row.body)["detail"]["alert"] == found.data.alert for row in await uow.all(wanted)):
                    return
            await asyncio.sleep(0.1)


async def test_heartbeats_are_in_the_log_and_one_that_is_missed_is_told(
    servers: RunningServers, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with audit_service(servers, private, **QUICK) as p:
        async with asyncio.timeout(40), connected(servers, p, superuser=True) as sql:
            while await sql.fetchval("SELECT count(*) FROM facts WHERE verb = $1", HEARTBEAT) < 2:
                await asyncio.sleep(0.1)
        assert not [e for e in p.emitted(AlertRaised) if e.data.rule == "log_heartbeat"]

        async def nothing(self: Pulse) -> None:
            """It hangs."""

        monkeypatch.setattr(Pulse, "beat", nothing)
        await raised(p, "log_heartbeat", "log")


async def test_a_writer_that_hangs_is_told(servers: RunningServers, private: Path) -> None:
    """Somebody keeps the row that the writer must move; the watcher needs no writer."""
    async with audit_service(servers, private, anomaly_seconds=0.3) as p:
        await hand_in(p.bus, "governance", records("governance", 1, 3))
        async with connected(servers, p, superuser=True) as sql, sql.transaction():
            await sql.fetch("SELECT * FROM state FOR UPDATE")
            found = await p.wait(AlertRaised, lambda found: found.data.rule == "checkpoint_old", timeout=30)
            assert found.data.severity == "critical"
            assert metrics.AUDIT_CHECKPOINT_AGE._value.get() > 10
        await raised(p, "checkpoint_old", "log")


async def test_a_record_from_the_future_is_told(servers: RunningServers, private: Path) -> None:
    async with audit_service(servers, private, anomaly_seconds=0.3) as p:
        made = record("registry", 1)
        later = (datetime.now(UTC) + timedelta(seconds=30)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        body = record_bytes(json.loads(base64.b64decode(made.body)) | {"t": later, "tr": later})
        await hand_in(p.bus, "registry", [made.model_copy(update={"body": base64.b64encode(body).decode()})])
        await raised(p, "clock_skew", "registry")


async def test_a_store_that_takes_nothing_under_lock_is_told(servers: RunningServers, private: Path, unique: str) -> None:
    async with audit_service(servers, private, anomaly_seconds=0.3) as p:
        await hand_in(p.bus, "governance", records("governance", 1, 3))
        anybody(servers).make_bucket(f"plain-{unique}")
        pair = json.loads(keys(servers, private).read_text())
        store = SealedStore(servers.s3_url, f"plain-{unique}", **pair, retain_days=200)
        sealer = Sealer(p.runtimes["audit"], store)
        for _ in range(2):
            with pytest.raises(Problem):
                await sealer.run()
        await raised(p, "log_alarm", "audit.alarm.seal_refused")
        async with connected(servers, p, superuser=True) as sql:
            told = "SELECT count(*) FROM facts WHERE verb = 'audit.alarm.seal_refused'"
            assert await sql.fetchval(told) == 1, "once, until it goes well again"
        store.close()


def test_a_heartbeat_may_come_a_little_late() -> None:
    now, minute = datetime.now(UTC), timedelta(seconds=60)
    assert not missed(now, now - timedelta(seconds=74), minute)
    assert missed(now, now - timedelta(seconds=76), minute)
