"""Trusted verification on real servers: what a service has loaded is in the log, and what nobody signed for is an alert."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_audit_pulse import raised
from tests.logs import audit_service
from tests.platform import Platform
from tests.records import Records

from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security import programs
from medmesh_audit.evidence import collect

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
