"""Chapter 4: the auditor, who trusts nobody: a key and three witnesses on paper, everything else from the platform."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from medmesh.auditing.signatures import Signatures
from medmesh.client.audit import at_the_door, export_log, fetch_export
from medmesh.client.doors import open_door
from medmesh.client.gateway import Gateway
from medmesh.contracts.data import pipeline_of
from medmesh.contracts.registry import ModelList
from medmesh.demo.chapters import witnessing
from medmesh.demo.evidence import alter_record, restore_record
from medmesh.demo.processes import checker, medmesh
from medmesh.demo.stage import MODEL, Stage
from medmesh.errors import Problem
from medmesh.ledger.copies import Folder
from medmesh.ledger.proof import read_evidence, verify_evidence
from medmesh.ledger.report import Report
from medmesh.ledger.verify import Wanted, verify_log


async def audit(stage: Stage, federation: str) -> None:
    stage.say("an auditor asks who did what, and verifies offline", "审计员查询并离线验证")
    roster = stage.keepers.roster
    wanted = Wanted(roster.log_policy())
    async with _door(stage) as door:
        await _settled(stage, door)
        await _ask(stage, door, federation, wanted)
        await export_log(at_the_door(door), stage.folder / "log")
        report, verified = await _verify(stage, stage.folder / "log", replace(wanted, inspect=Signatures(roster).inspect))
        size = report.size
        stage.summary |= {"audit_entries": size, "audit_verified": verified == [], "own_signatures": report.signatures}
        stage.summary["own_signatures_verified"] = report.verified and report.signatures > len(stage.nodes)
        stage.happened("log verified offline", entries=size)
        stage.summary["pipeline_verified"] = await _pipeline(stage)
        stage.summary["export_verified"] = await _export(stage)
        stage.summary["hospital_view_verified"] = await _own_view(stage, "xiehe")
        stage.summary["fork_refused"] = await witnessing.fork(stage, size)
        stage.happened("another history, signed with the log's own key, refused by every witness")
        altered = await _alter(stage, door)
    _, faults = await _verify(stage, stage.folder / "log-altered", wanted)
    stage.summary["tamper_detected"] = altered in faults
    stage.happened("altered record found", seq=altered)


@asynccontextmanager
async def _door(stage: Stage) -> AsyncIterator[Gateway]:
    """The auditors' door, for the auditor."""
    async with await open_door(stage.people["qian"], "audit", stage.urls["audit"]) as door:
        yield door


async def _settled(stage: Stage, door: Gateway) -> None:
    """Every emitter's records have arrived when the log stops growing, and witnesses have seen it."""

    async def quiet() -> bool:
        before = await door.raw("GET", "/log/checkpoint")
        await asyncio.sleep(1.5)
        after = await door.raw("GET", "/log/checkpoint")
        return before.text.split("\n")[1] == after.text.split("\n")[1] and after.headers["Medmesh-Witnesses"] == "witnessed"

    with suppress(Problem):
        await stage.until("the log to settle", quiet, 20)


async def _ask(stage: Stage, door: Gateway, federation: str, wanted: Wanted) -> None:
    """Who did what to the federation; one record with its proof; where the model comes from; the checklist of MLPS Level 3."""
    found = await door.request("GET", "/v1/events", query={"entity": f"federation:{federation}", "limit": 1000})
    who: dict[str, set[str]] = {}
    for entry in found["events"]:
        record = entry["record"]
        who.setdefault(record["sub"], set()).add(record["agents"][0]["who"] + "@" + record["src"]["service"])
    evidence = await door.request("GET", f"/v1/events/{found['events'][0]['seq']}/proof")
    record, _ = verify_evidence(read_evidence(json.dumps(evidence)), wanted.policy)
    lineage = await door.request("GET", f"/v1/lineage/model/{MODEL}")
    checklist = await door.request("GET", "/v1/mlps/evidence")
    page = await door.raw("GET", "/v1/mlps/evidence", headers={"Accept": "text/html"})
    stage.proof = {
        "who": {verb: sorted(names) for verb, names in who.items()},
        "evidence": evidence,
        "record": record,
        "lineage": lineage,
        "mlps": page.text,
    }
    stage.summary["mlps"] = checklist["counts"]


async def _verify(stage: Stage, copy: Path, wanted: Wanted) -> tuple[Report, list[int | None]]:
    """By our verifier and by a checker that shares no code with it; answers the report, and which records are accused by both."""
    report = await asyncio.to_thread(verify_log, Folder(copy), wanted)
    code, theirs = await checker("verify-log", "--log", str(copy), "--key", stage.log_key, codes=(0, 1))
    if report.verified and code == 0 and theirs["bodies"] == report.size:
        return report, []
    return report, [fault.seq for fault in report.faults if code == 1 and not report.verified]


async def _pipeline(stage: Stage) -> bool:
    """What the plan states of the data's pipeline, held by the checker against every training and registration in the log, and against
    the lineage that the release was signed with."""
    assert stage.view is not None
    stated = pipeline_of(stage.view.plan.data)
    assert stated is not None
    declared = stage.folder / "pipeline.json"
    declared.write_text(stated.model_dump_json())
    hospitals = ",".join(stage.nodes)
    code, found = await checker(
        "pipeline", "--log", str(stage.folder / "log"), "--pipeline", str(declared), "--hospitals", hospitals, codes=(0, 1)
    )
    models = (await stage.people["li"].ask("/v1/models", ModelList)).models
    (lineage,) = [one.lineage for one in models if f"{one.model}:{one.version}" == stage.summary["released_model"]]
    stage.happened("the pipeline of the data found in every training's record", pipeline=found["hash"])
    return code == 0 and found["hash"] == lineage.pipeline == stage.summary["pipeline"]["hash"]


async def _export(stage: Stage) -> bool:
    """The auditor asks for everything as a table with Chinese headings; a second person approves exactly that; it verifies offline."""
    stage.say("an export is asked for, approved by somebody else, and verified offline", "申请导出审计日志，经他人审批后离线验证")
    qian = stage.people["qian"]
    made = await qian.command("POST", "/v1/audit/exports", {"format": "csv", "filter": {}})
    asked = {"action": "audit.export", "target": made["export"], "digest": made["digest"], "summary": {"format": "csv"}}
    await qian.command("POST", "/v1/approvals", asked)
    await stage.approve("audit.export")
    file = stage.folder / "export.zip"
    async with _door(stage) as door:  # the second factor was shown just now, for the request
        await fetch_export(door, made["export"], file)
    answer = json.loads(await medmesh("audit", "verify", "export", "--policy", str(stage.policy), "--json", str(file)))
    stage.happened("export verified offline")
    return bool(answer["verified"])


async def _own_view(stage: Stage, hospital: str) -> bool:
    """A hospital copies what is about it, over its node, and verifies that nothing was altered or withheld."""
    copy, folder = str(stage.folder / "hospitals" / hospital / "log"), str(stage.nodes[hospital].folder)
    await medmesh("edge", "audit", "export", "--folder", folder, copy)
    await medmesh("edge", "audit", "verify", "--folder", folder, copy)
    return True


async def _alter(stage: Stage, door: Gateway) -> int:
    """One stored record is altered behind everybody's back, by somebody who owns the database; answers which."""
    altered = await alter_record(stage.data, bytes.fromhex(stage.choice["tamper_random"]))
    try:
        await export_log(at_the_door(door), stage.folder / "log-altered")
    finally:
        await restore_record(stage.data, altered)
    return altered.seq
