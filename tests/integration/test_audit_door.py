"""The auditors' door on real servers: what is found, who sees what, and that reading is recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.capabilitystatement import CapabilityStatement
from tests.records import left
from tests.world import World

from medmesh.client import Gateway
from medmesh.client.audit import at_the_door, export_log, of_a_hospital, withheld
from medmesh.client.credentials import Anonymous, Bound
from medmesh.errors import Problem
from medmesh.ledger.copies import Folder
from medmesh.ledger.policy import demanding
from medmesh.ledger.proof import read_evidence, verify_evidence
from medmesh.ledger.verify import Wanted, verify_log
from medmesh.security import possession
from medmesh.security.tokens import Actor, person_token
from medmesh.store.unit import AuditEntry, Entity


@asynccontextmanager
async def door(world: World, name: str = "qian", organisation: str = "platform", role: str = "auditor") -> AsyncIterator[Gateway]:
    """The door with an auditor's token."""
    key = Ed25519PrivateKey.generate()
    roles = frozenset((role,))
    actor = Actor("person", name, organisation, roles, "pwd+otp", datetime.now(UTC), key=possession.thumbprint(key.public_key()))
    token = person_token(world.p.identities["governance"], actor, audience="audit")
    async with Gateway(world.audit, ca=world.ca, credentials=Bound(world.audit, token, key)) as opened:
        yield opened


async def log(world: World, *entries: AuditEntry, actor: Actor | None = None, service: str = "governance", trace: str = "") -> None:
    """Record entries as a service does, and wait until they are in the log."""
    runtime = world.p.runtimes[service]
    context = replace(runtime.context(actor=actor), traceparent=f"00-{trace}-00f067aa0ba902b7-01" if trace else None)
    async with runtime.unit(context) as uow:
        for entry in entries:
            uow.audit(entry)
    async with asyncio.timeout(20):
        while await runtime.database.unreceipted(1):
            await asyncio.sleep(0.02)


def about(hospital: str, dataset: str) -> AuditEntry:
    return AuditEntry("catalogue.publish", "C", entities=(Entity("descriptor", f"{hospital}/{dataset}"), Entity("hospital", hospital)))


async def found(door: Gateway, **query: Any) -> list[dict[str, Any]]:
    return list((await door.request("GET", "/v1/events", query=query))["events"])


async def test_each_filter_finds_what_fits_and_nothing_else(world: World) -> None:
    li = Actor("person", "li", "platform", frozenset(("researcher",)))
    patient = AuditEntry("inference.infer", "E", entities=(Entity("patient", "p-77"), Entity("model", "mri", "2")))
    await log(
        world, about("renji", "mri"), AuditEntry("model.register", "C", 8, "registry.lineage", (Entity("model", "mri", "2"),)), patient
    )
    await log(world, AuditEntry("session.open", "E", 4, "governance.sign_in_refused"), actor=li)
    async with door(world) as auditor:
        everything = await found(auditor)
        expected = {
            "actor=person:li": ["session.open"],
            "org=renji": ["catalogue.publish"],
            "patient=p-77": ["inference.infer"],
            "entity=model:mri": ["model.register", "inference.infer"],
            "type=110114": ["session.open"],
            "outcome=8": ["model.register"],
            "purpose=TREAT": ["inference.infer"],
            "verb=model.*": ["model.register"],
        }
        for query, verbs in expected.items():
            assert [e["record"]["sub"] for e in await found(auditor, **dict([query.split("=")]))] == verbs, query
        first = everything[0]["record"]
        await left(world.p, "audit.search", len(expected))
        correlated = await found(auditor, correlation=(await found(auditor, verb="audit.search"))[0]["record"]["ctx"]["correlation"] or "-")
        assert correlated == []
        assert await found(auditor, to=first["t"]) == []
        assert (await found(auditor, **{"from": first["t"]}))[0]["record"]["id"] == first["id"]
        for wrong in ({"outcome": "1"}, {"limit": 1001}, {"cursor": "x"}, {"from": "yesterday"}):
            with pytest.raises(Problem) as caught:
                await found(auditor, **wrong)
            assert caught.value.code == "request.invalid", wrong


async def test_pages_follow_each_other_without_doubles_or_gaps_while_the_log_grows(world: World) -> None:
    await log(world, *(about("renji", f"d{n}") for n in range(25)))
    async with door(world) as auditor:
        seen: list[int] = []
        cursor: int | None = None
        while True:
            page = await auditor.request(
                "GET", "/v1/events", query={"limit": 7, "org": "renji", **({} if cursor is None else {"cursor": cursor})}
            )
            seen += [event["seq"] for event in page["events"]]
            await log(world, about("ruijin", "other"))
            if (cursor := page.get("next")) is None:
                break
        assert len(seen) == 25
        assert seen == sorted(set(seen))


async def test_a_hospital_sees_and_verifies_its_own_records_and_no_others(world: World, private: Path) -> None:
    shared = AuditEntry("federation.round", "E", entities=(Entity("federation", "f1"),), hospitals=("renji", "ruijin"))
    await log(world, about("renji", "mri"), about("ruijin", "ct"), shared, AuditEntry("training.submit", "C"))
    key = world.p.runtimes["audit"].ports.sequencer.vkey
    async with world.node("renji") as renji:
        events = (await renji.request("GET", "/v1/audit/events"))["events"]
        assert [e["record"]["sub"] for e in events] == ["catalogue.publish", "federation.round"]
        assert all("renji" in e["record"]["orgs"] for e in events)
        evidence = await renji.request("GET", f"/v1/audit/events/{events[1]['seq']}/proof")
        assert verify_evidence(read_evidence(json.dumps(evidence)), demanding(key))[0]["sub"] == "federation.round"
        (foreign,) = [e for e in (await _all(world)) if e["record"]["orgs"] == ["ruijin"]]
        for name in (str(foreign["seq"]), foreign["record"]["id"]):
            with pytest.raises(Problem) as caught:
                await renji.request("GET", f"/v1/audit/events/{name}/proof")
            assert caught.value.code == "request.not_found"
        assert (await renji.request("GET", "/v1/audit/events", query={"org": "ruijin"}))["events"] == [events[1]]
        await log(world, about("renji", "late"))
        size = await export_log(of_a_hospital(renji), private / "copy")
    looked = {verb: await left(world.p, verb) for verb in ("audit.search", "audit.prove", "audit.copy")}
    own = {verb: [r for r in found if r["agents"][0]["who"] == "hospital:renji"] for verb, found in looked.items()}
    assert [record["entities"][0]["id"] for record in own["audit.prove"]] == [str(events[1]["seq"])], "what it looks at is recorded"
    assert [record["detail"]["found"] for record in own["audit.search"]] == [2, 1]
    assert len(own["audit.copy"]) == 1
    report = verify_log(Folder(private / "copy"), Wanted(demanding(key), partial=True))
    assert report.faults == []
    own = [json.loads(line)["seq"] for line in (private / "copy" / "bodies.jsonl").read_text().splitlines()]
    assert report.bodies == len(own) < size
    assert foreign["seq"] not in own
    assert withheld(private / "copy", "renji") == []
    # What the platform keeps back shows in the headers, which are under the signed root.
    lines = (private / "copy" / "bodies.jsonl").read_text().splitlines(keepends=True)
    (private / "copy" / "bodies.jsonl").write_text("".join(lines[1:]))
    assert withheld(private / "copy", "renji") == [own[0]]
    # Nothing of the other hospital's content is anywhere in the copy.
    assert not any(b"ruijin/ct" in path.read_bytes() for path in (private / "copy").rglob("*") if path.is_file())


async def _all(world: World) -> list[dict[str, Any]]:
    async with door(world) as auditor:
        return await found(auditor, limit=1000)


async def test_an_organisations_auditor_sees_that_organisation_only(world: World, private: Path) -> None:
    await log(world, about("renji", "mri"), about("ruijin", "ct"), AuditEntry("training.submit", "C"))
    async with door(world, "ma", "ruijin") as auditor:
        events = await found(auditor)
        assert {tuple(e["record"]["orgs"]) for e in events} == {("ruijin",)}
        assert await found(auditor, org="renji") == []
        await export_log(at_the_door(auditor), private / "copy")
    assert len((private / "copy" / "bodies.jsonl").read_text().splitlines()) >= 1
    assert withheld(private / "copy", "ruijin") == []


async def test_reading_the_log_is_itself_logged_with_who_and_what(world: World) -> None:
    await log(world, about("renji", "mri"))
    async with door(world) as auditor:
        (event,) = await found(auditor, entity="descriptor:renji/mri")
        await auditor.request("GET", f"/v1/events/{event['record']['id']}")
        await auditor.request("GET", f"/v1/events/{event['seq']}/proof")
        await log(world, service="audit")
        for verb in ("audit.search", "audit.read", "audit.prove"):
            (record,) = [e["record"] for e in await found(auditor, verb=verb, actor="person:qian")][:1]
            assert record["policy"]["decision"] == "permit"
            assert record["policy"]["rules"] == ["role:auditor", "object.permit"]
        assert {"type": "descriptor", "id": "renji/mri", "ver": "", "digest": ""} in (await found(auditor, verb="audit.search"))[0][
            "record"
        ]["entities"]
        nobody = auditor.acting_as(Anonymous())
        with pytest.raises(Problem) as caught:
            await nobody.request("GET", "/v1/events")
        assert caught.value.code == "actor.missing"
    async with door(world, "li", role="researcher") as researcher:
        with pytest.raises(Problem) as caught:
            await researcher.request("GET", "/v1/events")
        assert caught.value.code == "access.denied"
    await log(world, service="audit")
    (denied,) = [e["record"] for e in await _all(world) if e["record"]["sub"] == "access.denied"]
    assert (denied["agents"][0]["who"], denied["policy"]["decision"], denied["detail"]) == (
        "person:li",
        "deny",
        {"action": "audit.read", "rule": "default"},
    )


async def test_fhir_clients_search_audit_events(world: World) -> None:
    await log(world, *(about("renji", f"d{n}") for n in range(5)), AuditEntry("inference.infer", "E", entities=(Entity("patient", "p-1"),)))
    async with door(world) as auditor:

        async def bundle(**query: Any) -> Bundle:
            answer = await auditor.raw("GET", "/fhir/AuditEvent", query=query)
            assert answer.headers["content-type"] == "application/fhir+json"
            return Bundle.model_validate_json(answer.text)

        page = await bundle(entity="urn:medmesh:hospital|renji", type="rest", _count=2)
        seen = [entry.resource.id for entry in page.entry]
        while following := [link.url for link in page.link if link.relation == "next"]:
            target = httpx.URL(following[0])
            page = Bundle.model_validate_json((await auditor.raw("GET", target.path, query=dict(target.params))).text)
            seen += [entry.resource.id for entry in page.entry]
        assert len(seen) == len(set(seen)) == 5
        (match,) = (await bundle(patient="p-1")).entry
        assert match.resource.purposeOfEvent[0].coding[0].code == "TREAT"
        assert match.fullUrl.endswith(f"/fhir/AuditEvent/{match.resource.id}")
        day = (await _all(world))[0]["record"]["tr"][:10]
        assert len((await bundle(date=day, patient="p-1")).entry) == 1
        assert (await bundle(date=f"lt{day}")).entry is None
        assert (await bundle(date=f"gt{day}")).entry is None
        assert (await bundle(agent="person:nobody")).entry is None
        assert (await bundle(type="110100", outcome="0", patient="p-1")).entry
        assert (await bundle(entity="urn:other|renji")).entry is None
        for wrong in ({"date": "yesterday"}, {"_sort": "date"}, {"outcome": "5"}):
            with pytest.raises(Problem) as caught:
                await bundle(**wrong)
            assert caught.value.code == "request.invalid"
        one = await auditor.request("GET", f"/fhir/AuditEvent/{match.resource.id}")
        assert one["id"] == match.resource.id
        statement = CapabilityStatement.model_validate_json((await auditor.raw("GET", "/fhir/metadata")).text)
        offered = {parameter.name for parameter in statement.rest[0].resource[0].searchParam}
        assert offered == {"date", "agent", "entity", "patient", "outcome", "type"}


async def test_a_node_may_not_record_in_another_hospitals_name(world: World) -> None:
    from medmesh.contracts.audit import AuditBatch, AuditRecord
    from medmesh.ledger.record import record_bytes
    from medmesh.service.recording import recorder
    from medmesh.store.unit import Context

    def batch(**changed: Any) -> dict[str, Any]:
        import base64

        record = recorder(service="edge:renji", instance="node-1", organisation="renji", version="0", node=True)
        body = record(AuditEntry("edge.ingest", "C"), Context("edge:renji", actor=Actor("hospital", "renji", "renji")), "0190-x", 1, "")
        body = record_bytes({**json.loads(body), **changed})
        return AuditBatch(emitter="edge:renji", records=(AuditRecord(id="0190-x", n=1, body=base64.b64encode(body).decode()),)).model_dump()

    async with world.node("renji") as renji:
        for changed in ({"orgs": ["ruijin"]}, {"orgs": ["renji", "ruijin"]}, {"orgs": []}):
            answer = await renji.request("POST", "/v1/audit/records", batch(**changed))
            assert answer["problem"]["code"] == "audit.compartment", changed
        for changed in ({"sub": "model.steal"}, {"pou": "FUN"}, {"v": 1}, {"type": {}}):
            answer = await renji.request("POST", "/v1/audit/records", batch(**changed))
            assert answer["problem"]["code"] == "audit.vocabulary", changed
        assert (await renji.request("POST", "/v1/audit/records", batch()))["receipts"][0]["seq"] >= 0
