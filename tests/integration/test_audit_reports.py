"""Lineage, MLPS evidence and alerts from a log that lives: what they say changes with what happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tests.integration.test_audit_door import about, door, log
from tests.logs import connected
from tests.records import left
from tests.world import World, small_world

from medmesh.contracts.audit import AlertRaised
from medmesh.contracts.federation import HospitalAlive
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security.access import Rules
from medmesh.security.tokens import Actor
from medmesh.store.unit import AuditEntry, Entity
from medmesh_audit import anomalies, rules


@pytest.fixture
async def world(request: pytest.FixtureRequest, servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    """A parameter is further settings by service."""
    more: dict[str, dict[str, Any]] = getattr(request, "param", {})
    settings = {**more, "audit": {**await audit(private, ports), **more.get("audit", {})}}
    async with small_world(servers, private, ports, settings=settings) as made:
        yield made


async def audit(private: Path, ports: Ports) -> dict[str, Any]:
    tls = {"tls_certificate": private / "server.pem", "tls_key": private / "server.key"}
    return {"log_key": private / "keys" / "log.nk", "port": ports.take("door")[0], "anomaly_seconds": 0.2, **tls}


@pytest.fixture(autouse=True)
def address(world: World) -> None:
    world.audit = f"https://127.0.0.1:{world.p.runtimes['audit'].settings.port}"


def cells(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {cell["cell"]: cell for part in document["parts"] for cell in part["cells"]}


async def history(world: World) -> None:
    """A model of two hospitals, from the plan to the inference, as the services record it."""
    federation, model = Entity("federation", "f1", digest="aa" * 32), Entity("model", "mri", "1", "bb" * 32)
    named = ("renji", "ruijin")
    await log(
        world,
        AuditEntry("federation.create", "C", entities=(federation, Entity("package", "cnn")), hospitals=named),
        AuditEntry("approval.decide", "U", entities=(Entity("federation.start", "f1"),)),
        AuditEntry("federation.approved", "E", entities=(federation,), approval={"id": "a1"}, hospitals=named),
        AuditEntry("edge.ingest", "C", entities=(Entity("dataset", "renji/scans"),), hospitals=("renji",)),
        AuditEntry("federation.train", "E", entities=(federation, Entity("dataset", "renji/scans")), hospitals=("renji",)),
        AuditEntry("federation.train", "E", entities=(federation, Entity("dataset", "ruijin/scans")), hospitals=("ruijin",)),
        AuditEntry("federation.round", "E", entities=(federation,), hospitals=named),
        AuditEntry("federation.evaluation", "C", entities=(federation,), hospitals=named),
        AuditEntry("model.register", "C", entities=(model, federation), hospitals=named),
        AuditEntry("model.convert", "C", entities=(model,), detail={"parity": "2.000e-06"}),
        AuditEntry("model.prepare-release", "C", entities=(model, Entity("release", "r1")), hospitals=named),
        AuditEntry("model.release", "E", entities=(model, Entity("release", "r1")), approval={"id": "a2"}, hospitals=named),
        AuditEntry("model.install", "E", entities=(model,), hospitals=("renji",)),
        AuditEntry("inference.infer", "E", entities=(model,), hospitals=("renji",)),
        AuditEntry("model.register", "C", entities=(Entity("model", "other", "1"), Entity("federation", "f2"))),
        AuditEntry("federation.round", "E", entities=(Entity("federation", "f2"),)),
    )


async def test_a_models_lineage_is_answered_from_the_log_with_proofs(world: World) -> None:
    await history(world)
    async with door(world) as auditor:
        found = cells(await auditor.request("GET", "/v1/lineage/model/mri"))
        one = {"plan": 2, "data": 1, "training": 3, "evaluation": 1, "registration": 1, "conversion": 1, "release": 3}
        assert {name: found[name]["count"] for name in one} == one
        assert (found["installation"]["count"], found["inference"]["count"], found["withdrawal"]["count"]) == (1, 1, 0)
        assert found["conversion"]["proofs"][0]["detail"] == {"parity": "2.000e-06"}
        assert [proof.get("approval") for proof in found["release"]["proofs"]] == [None, None, "a2"]
        # A cell's number is the record's: it leads to the proof.
        seq = found["registration"]["proofs"][0]["seq"]
        assert (await auditor.request("GET", f"/v1/events/{seq}"))["record"]["sub"] == "model.register"
        data = cells(await auditor.request("GET", "/v1/lineage/dataset/renji/scans"))
        assert (data["data"]["count"], data["registration"]["count"], data["inference"]["count"]) == (1, 1, 1)
    async with door(world, "ma", "ruijin") as other:
        theirs = cells(await other.request("GET", "/v1/lineage/model/mri"))
        assert (theirs["training"]["count"], theirs["data"]["count"], theirs["inference"]["count"]) == (2, 0, 0)


async def mlps(world: World) -> dict[str, dict[str, Any]]:
    async with door(world) as auditor:
        found = await auditor.request("GET", "/v1/mlps/evidence")
    return {one["clause"]: one for one in found["clauses"]}


async def altered(world: World, servers: RunningServers, statement: str) -> None:
    """As a superuser can, who switches the triggers off first."""
    async with connected(servers, world.p, superuser=True) as sql:
        await sql.execute("ALTER TABLE entries DISABLE TRIGGER USER")
        await sql.execute(statement)
        await sql.execute("ALTER TABLE entries ENABLE TRIGGER USER")


async def test_mlps_evidence_follows_what_happens(world: World, servers: RunningServers) -> None:
    admin = await world.admin()
    before = await mlps(world)
    assert before["8.1.4.1 b)"]["state"] == "not_met"
    await world.user(admin, "li", "researcher")
    for _ in range(6):
        with pytest.raises(Problem):
            await world.anybody.request("POST", "/v1/sessions", {"name": "li", "password": "Wrong-Horse-7-Battery"})
    await history(world)
    await log(world, service="audit")
    after = await mlps(world)
    assert after["8.1.4.1 b)"]["state"] == "part"
    assert after["8.1.10.6 变更性运维"]["state"] == "met"
    assert after["8.1.4.2 b)"]["state"] == after["8.1.4.2 d)"]["state"] == "met"
    assert after["8.1.4.8 b)"]["state"] == after["8.1.4.10 b)"]["state"] == "part", "tried just now"
    assert after["8.1.4.10 a)"]["state"] == "not_met", "in a test it is not a process of its own that locked itself"
    # The links lead to the records that show it.
    async with door(world) as auditor:
        for link in after["8.1.4.1 b)"]["links"]:
            assert (await auditor.request("GET", link))["record"]["sub"] in ("session.open", "user.locked")
        page = await auditor.raw("GET", "/v1/mlps/evidence", headers={"Accept": "text/html", "Accept-Language": "zh-CN"})
    assert "网络安全等级保护三级" in page.text
    await altered(world, servers, "UPDATE entries SET body = overlay(body placing 'x'::bytea from 20) WHERE seq = 3")
    broken = await mlps(world)
    assert broken["8.1.4.7 b)"]["state"] == broken["8.1.10.6 变更性运维"]["state"] == "not_met"
    async with door(world, "li", role="researcher") as nobody:
        with pytest.raises(Problem) as caught:
            await nobody.request("GET", "/v1/mlps/evidence")
        assert caught.value.code == "access.denied"


async def raised(world: World, rule: str) -> AlertRaised:
    """The fact, once its record is there too."""
    told = (await world.p.wait(AlertRaised, lambda found: found.data.rule == rule, timeout=30)).data
    async with asyncio.timeout(30):
        while not (found := [r for r in await left(world.p, "audit.alert") if r["detail"]["alert"] == told.alert]):
            await asyncio.sleep(0.1)
    (record,) = found
    expected = (8 if told.severity == "critical" else 4, f"alert.{rule}", told.about)
    assert (record["out"], record["why"], record["detail"]["about"]) == expected
    return told


async def test_failed_sign_ins_raise_one_alert(world: World) -> None:
    admin = await world.admin()
    await world.user(admin, "li", "researcher")
    for _ in range(5):
        with pytest.raises(Problem):
            await world.anybody.request("POST", "/v1/sessions", {"name": "li", "password": "Wrong-Horse-7-Battery"})
    alert = await raised(world, "auth_failures")
    assert len(alert.trace) == 32
    assert alert.seq is not None
    async with door(world) as auditor:
        shown = await auditor.request("GET", f"/v1/events/{alert.seq}")
        assert (shown["record"]["sub"], shown["record"]["out"]) == ("session.open", 4)
        async with asyncio.timeout(20):
            while not (told := (await auditor.request("GET", "/v1/events", query={"verb": "audit.alert"}))["events"]):
                await asyncio.sleep(0.1)
    assert [event["record"]["why"] for event in told] == ["alert.auth_failures"]
    assert told[0]["record"]["detail"]["trace"] == alert.trace
    assert len(world.p.emitted(AlertRaised)) == 1


async def test_a_changed_role_table_is_told_of_and_so_is_a_clock_ahead(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import UTC, datetime, timedelta

    from medmesh.service import recording

    await log(world, about("renji", "mri"))
    policies = world.p.runtimes["governance"].policies
    policies.rules = Rules('@id("nobody.approved") forbid (principal, action == Action::"inbox.read", resource);')
    await log(world, about("renji", "ct"), trace="ab" * 16)
    alert = await raised(world, "policy_changed")
    assert (alert.about, alert.severity, alert.trace) == ("governance", "critical", "ab" * 16)
    policies.rules = Rules()

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(UTC) + timedelta(seconds=30)

    monkeypatch.setattr(recording, "datetime", Ahead)
    await log(world, about("renji", "x-ray"))
    assert (await raised(world, "clock_skew")).about == "governance"


async def test_a_gap_of_an_emitter_a_silent_hospital_and_an_altered_tree_are_told_of(
    world: World, servers: RunningServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log(world, about("renji", "mri"))
    runtime = world.p.runtimes["gateway"]
    async with runtime.unit() as uow:
        await uow.execute(text("UPDATE audit_counter SET n = n + 3"))
        uow.audit(AuditEntry("access.denied", "E", 8, "access.denied"))
    alert = await raised(world, "emitter_gap")
    assert (alert.about, alert.severity, len(alert.trace)) == ("gateway", "critical", 32)
    await runtime.signal(HospitalAlive(hospital="renji"))
    monkeypatch.setattr(anomalies, "SILENT_SECONDS", 0.5)
    assert (await raised(world, "heartbeat")).about == "hospital:renji"
    await log(world, service="audit")  # what is being appended would write the tile again
    await altered(world, servers, "UPDATE entries SET hash = overlay(hash placing 'x'::bytea from 1) WHERE seq = 0")
    assert (await raised(world, "root_mismatch")).about == "log"


async def test_a_record_altered_in_the_database_is_told_of_by_its_number(world: World, servers: RunningServers) -> None:
    await log(world, about("renji", "mri"), about("ruijin", "ct"))
    await altered(world, servers, "UPDATE entries SET body = overlay(body placing 'x'::bytea from 20) WHERE seq = 1")
    assert (await raised(world, "record_altered")).seq == 1


async def test_a_record_rewritten_with_its_leaf_and_hash_does_not_fit_the_tile_above_it(world: World, servers: RunningServers) -> None:
    await log(world, *(about("renji", "mri") for _ in range(260)))
    other = "overlay(body placing 'x'::bytea from 20)"
    leaf = f"replace(convert_from(leaf, 'UTF8'), encode(sha256(salt || body), 'hex'), encode(sha256(salt || {other}), 'hex'))"
    forged = f"UPDATE entries SET body = {other}, leaf = convert_to({leaf}, 'UTF8') WHERE seq = 9"
    await altered(world, servers, f"{forged}; UPDATE entries SET hash = sha256('\\x00'::bytea || leaf) WHERE seq = 9")
    assert (await raised(world, "record_altered")).seq == 9


PEOPLE = {
    "audit": {
        "working_hours": {"annotator": ("00:00", "00:00"), "clinician": ("00:00", "23:59:59.999999")},
        "working_purposes": {"clinician": ("TREAT",)},
    },
    "gateway": {"administrator_networks": ("10.0.0.0/8", "::1/128"), "administrators_elsewhere": "record"},
}


@pytest.mark.parametrize("world", [PEOPLE], indirect=True)
async def test_people_where_when_and_for_what_they_do_not_work_are_told_of_with_the_trace_of_what_they_did(world: World) -> None:
    at_night = Actor("person", "yan", "platform", frozenset(("annotator",)))
    await log(world, AuditEntry("annotation.label", "U"), actor=at_night, trace="ab" * 16)
    alert = await raised(world, "outside_hours")
    assert (alert.about, alert.severity, alert.trace) == ("person:yan", "warning", "ab" * 16)
    doctor = Actor("person", "hua", "platform", frozenset(("clinician",)))
    await log(world, AuditEntry("inference.infer", "E"), actor=doctor)  # to treat: that is what they work for
    await log(world, AuditEntry("inference.infer", "E", purpose="HRESCH"), actor=doctor, trace="cd" * 16)
    alert = await raised(world, "outside_purpose")
    assert (alert.about, alert.trace) == ("person:hua", "cd" * 16)
    both = Actor("person", "shi", "platform", frozenset(("annotator", "researcher")))
    await log(world, AuditEntry("annotation.label", "U"), actor=both)  # a researcher has no hours
    admin = await world.admin()
    await admin.request("GET", "/v1/users")
    alert = await raised(world, "admin_elsewhere")
    assert (alert.about, alert.severity, len(alert.trace)) == ("person:sun", "critical", 32)
    told = {found.data.rule: found.data.about for found in world.p.emitted(AlertRaised)}
    assert told == {"outside_hours": "person:yan", "outside_purpose": "person:hua", "admin_elsewhere": "person:sun"}
    async with door(world) as auditor:
        shown = await auditor.request("GET", f"/v1/events/{alert.seq}")
    assert shown["record"]["detail"] == {"address": "127.0.0.1", "refused": False}


@pytest.mark.parametrize("world", [{"gateway": {"administrator_networks": ("10.0.0.0/8",)}}], indirect=True)
async def test_an_administrator_from_elsewhere_is_refused_and_told_of(world: World) -> None:
    with pytest.raises(Problem) as caught:
        await (await world.admin()).request("GET", "/v1/users")
    assert (caught.value.code, caught.value.status) == ("security.address", 403)
    assert (await raised(world, "admin_elsewhere")).about == "person:sun"


async def test_many_exports_of_one_actor_are_told_of(world: World) -> None:
    actor = Actor("person", "sun", "platform", frozenset(("researcher",)))
    await log(world, *(AuditEntry("annotation.export", "E") for _ in range(rules.FEWEST_EXPORTS + 1)), actor=actor)
    assert (await raised(world, "export_volume")).about == "person:sun"
