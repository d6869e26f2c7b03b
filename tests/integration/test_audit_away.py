"""What goes on and what is refused while the log is away, through the whole of a service; and that all of it arrives afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.platform import Platform, platform

from medmesh.contracts.audit import AuditBatch, Receipt, Receipts, record_subject
from medmesh.contracts.governance import ApprovalRequested, RequestApproval
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security.keyring.file import FileKeys
from medmesh.service.http import problem_response
from medmesh_governance.service import SERVICE as GOVERNANCE


async def answer(p: Platform, kept: list[str]) -> Any:
    """A log that gives receipts."""

    async def receive(body: bytes) -> bytes:
        batch = AuditBatch.model_validate_json(body)
        kept.extend(record.id for record in batch.records)
        receipts = tuple(Receipt(id=r.id, seq=n, leaf="0" * 64) for n, r in enumerate(batch.records))
        return Receipts(receipts=receipts).model_dump_json().encode()

    return await p.bus.serve(record_subject("governance"), receive, queue="audit")


def wish(n: int) -> RequestApproval:
    return RequestApproval(action="federation.start", target=f"f-{n}", digest=f"{n:064d}")


async def test_privileged_commands_are_refused_until_the_log_is_back(servers: RunningServers, private: Path) -> None:
    (private / "ca").mkdir(exist_ok=True)
    (private / "bootstrap").write_text("0" * 64)
    FileKeys(private / "seal").ensure("seal")
    keys = {"authority": private / "ca", "bootstrap_token": private / "bootstrap", "seal_keys": str(private / "seal")}
    async with platform(servers, private, GOVERNANCE, settings={"governance": {"audit_lag_seconds": 1.5, **keys}}) as p:
        li = p.person("li", "researcher")
        first = await p.send(wish(1), li)
        assert first.succeeded, "its record is durable, and has not waited long"
        runtime = p.runtimes["governance"]
        async with asyncio.timeout(20):
            while runtime.emission.lag() < 1.5:
                await asyncio.sleep(0.05)
        refused = await p.send(wish(2), li)
        assert not refused.succeeded and refused.problem is not None
        assert (refused.problem["code"], refused.problem["status"]) == ("audit.behind", 503)
        assert [made.data.target for made in p.emitted(ApprovalRequested)] == ["f-1"], "nothing was done"

        kept: list[str] = []
        log = await answer(p, kept)
        async with asyncio.timeout(20):
            while runtime.emission.lag():
                await asyncio.sleep(0.05)
        assert (await p.send(wish(3), li)).succeeded
        async with asyncio.timeout(10):
            while len(kept) < 3:
                await asyncio.sleep(0.05)
        assert len(set(kept)) == len(kept) == 3, "the action, the refusal and the action after: none dropped, none doubled"
        await log.stop()


def test_who_is_refused_is_told_when_to_come_again() -> None:
    response = problem_response(Problem("audit.behind", action="model.release", seconds=61, retry=30), "zh")
    assert (response.status_code, response.headers["retry-after"]) == (503, "30")
    assert "审计日志" in bytes(response.body).decode()
