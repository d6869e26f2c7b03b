"""Trusted verification on real servers: what a service has loaded is in the log, and what nobody signed for is an alert."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_audit_pulse import raised
from tests.logs import audit_service
from tests.platform import Platform
from tests.records import Records
from tests.rosters import Rosters

from medmesh.client import Gateway
from medmesh.embedded import files
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security import programs
from medmesh.security.signing import Signer
from medmesh.security.tokens import TrustBundle
from medmesh_audit.evidence import collect
from medmesh_edge.api import status
from medmesh_edge.doctor import examine
from medmesh_edge.node import Node, running
from medmesh_edge.ports import site
from medmesh_edge.settings import Layout, Settings

LOADED = "medmesh/errors.py"


def lay_down(p: Platform, files: dict[str, str], signer: str = "person:wu@platform") -> None:
    note = programs.sign(files, "0.1.0", datetime.now(UTC), p.rosters.signer(signer))
    programs.save(p.folder / programs.NAME, files, note)


async def test_a_service_records_what_it_verified_and_an_intruder_is_an_alert(servers: RunningServers, private: Path) -> None:
    async with audit_service(servers, private, anomaly_seconds=0.3) as p:
        runtime, records = p.runtimes["audit"], Records(p)

        async def verified() -> list[dict[str, Any]]:
            return [r for r in await records.new() if r["sub"] == "program.verify"]

        files = programs.measured()
        lay_down(p, files)
        for _ in range(2):
            await runtime.programs.look()
        (told,) = await verified()
        assert (told["out"], told["detail"]["signer"], told["detail"]["changed"]) == (0, "person:wu@platform", 0)
        assert told["entities"][0]["digest"] == programs.digest_of(files)

        lay_down(p, {**files, LOADED: "0" * 64})
        await runtime.programs.look()
        await raised(p, "program_changed", "audit")
        assert [(r["why"], r["detail"]["first"]) for r in await verified()] == [("program.changed", f"~{LOADED}")]
        async with runtime.unit() as uow:
            assert (await collect(uow, runtime.ports)).unverified == {"audit"}

        p.rosters.end("person:wu@platform", datetime.now(UTC), compromised=True)
        lay_down(p, files, "person:wu@platform")
        await runtime.programs.look()
        assert [r["why"] for r in await verified()] == ["program.unvouched"]


async def test_a_service_that_must_be_vouched_for_does_not_start_otherwise(servers: RunningServers, private: Path) -> None:
    with pytest.raises(Problem) as caught:
        async with audit_service(servers, private, require_programs=True):
            pass
    assert caught.value.code == "program.none"


async def test_a_hospitals_node_records_what_it_verified_and_says_what_was_changed(private: Path) -> None:
    layout = Layout(files.folder(private / "node"))
    Settings(hospital="renji", node="node-1", gateway="https://127.0.0.1:1").save(layout.folder)
    TrustBundle(platform="medmesh", log_key=Signer.create("medmesh/log").vkey).save(layout.trust)
    rosters = Rosters.create(layout.roster)

    def sign(found: dict[str, str]) -> None:
        note = programs.sign(found, "0.1.0", datetime.now(UTC), rosters.signer("person:wu@platform"))
        programs.save(layout.folder / programs.NAME, found, note)

    async with site(layout.folder) as opened, Gateway("https://127.0.0.1:1") as nowhere:
        node = Node(opened, nowhere)

        async def told() -> list[tuple[str, int, str]]:
            found = [json.loads(body) for _, _, body in await opened.database.unreceipted(100)]
            return [(r["src"]["service"], r["out"], r["why"]) for r in found if r["sub"] == "program.verify"]

        await node.programs.tick()
        assert (await told(), (await status(node))["programs"]) == ([], None)
        whole = programs.measured()
        sign(whole)
        await node.programs.tick()
        assert await told() == [("edge:renji", 0, "")]
        assert (await status(node))["programs"] == {"code": "", "by": "person:wu@platform", "changed": 0}
        sign({**whole, LOADED: "0" * 64})
        await node.programs.tick()
        assert (await told())[1:] == [("edge:renji", 8, "program.changed")]
        assert (await status(node))["programs"]["changed"] == 1
        told_by_doctor = [finding for finding in await examine(layout.folder) if LOADED in finding.en]
        assert [finding.level for finding in told_by_doctor] == [2]
    Settings(hospital="renji", node="node-1", gateway="https://127.0.0.1:1", require_programs=True).save(layout.folder)
    with pytest.raises(Problem) as caught:
        async with running(layout.folder):
            raise AssertionError("it must not start")
    assert caught.value.code == "program.changed"
    async with site(layout.folder) as again:
        found = [json.loads(body) for _, _, body in await again.database.unreceipted(100)]
    assert [r["why"] for r in found if r["sub"] == "program.verify"] == ["", "program.changed", "program.changed"], (
        "also why it did not start"
    )
