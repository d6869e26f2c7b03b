"""Chapter 4: the auditor."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from medmesh.client.audit import at_the_door, export_log
from medmesh.client.credentials import Person
from medmesh.client.gateway import Gateway
from medmesh.demo.evidence import alter_record, restore_record
from medmesh.demo.processes import checker
from medmesh.demo.stage import Stage
from medmesh.errors import Problem
from medmesh.ledger.copies import Folder
from medmesh.ledger.policy import demanding
from medmesh.ledger.proof import read_evidence, verify_evidence
from medmesh.ledger.verify import Wanted, verify_log


async def audit(stage: Stage, federation: str) -> None:
    stage.say("an auditor asks who did what, and verifies offline", "审计员查询并离线验证")
    token = (await stage.people["qian"].request("POST", "/v1/tokens/audit"))["token"]
    async with Gateway(stage.urls["audit"], ca=stage.ca, credentials=Person(token)) as door:

        async def quiet() -> bool:
            """Every emitter's records have arrived when the log stops growing."""
            before = await door.raw("GET", "/log/checkpoint")
            await asyncio.sleep(1.5)
            return before.text.split("\n")[1] == (await door.raw("GET", "/log/checkpoint")).text.split("\n")[1]

        with suppress(Problem):
            await stage.until("the log to settle", quiet, 20)
        found = await door.request("GET", "/v1/events", query={"entity": f"federation:{federation}", "limit": 1000})
        who: dict[str, set[str]] = {}
        for entry in found["events"]:
            record = entry["record"]
            who.setdefault(record["sub"], set()).add(record["agents"][0]["who"] + "@" + record["src"]["service"])
        evidence = await door.request("GET", f"/v1/events/{found['events'][0]['seq']}/proof")
        log = Wanted(demanding(stage.log_key))
        record, _ = verify_evidence(read_evidence(json.dumps(evidence)), log.policy)
        stage.proof = {"who": {verb: sorted(names) for verb, names in who.items()}, "evidence": evidence, "record": record}
        await export_log(at_the_door(door), stage.folder / "log")
        report = await asyncio.to_thread(verify_log, Folder(stage.folder / "log"), log)
        code, ours = await checker("verify-log", "--log", str(stage.folder / "log"), "--key", stage.log_key, codes=(0, 1))
        stage.summary |= {
            "audit_entries": report.size,
            "audit_verified": report.verified and code == 0 and ours["bodies"] == report.size,
        }
        stage.happened("log verified offline", entries=report.size)
        # One stored record is altered behind everybody's back, by somebody who owns the database.
        altered = await alter_record(stage.data, bytes.fromhex(stage.choice["tamper_random"]))
        try:
            await export_log(at_the_door(door), stage.folder / "log-altered")
        finally:
            await restore_record(stage.data, altered)
    again = await asyncio.to_thread(verify_log, Folder(stage.folder / "log-altered"), log)
    code, _ = await checker("verify-log", "--log", str(stage.folder / "log-altered"), "--key", stage.log_key, codes=(0, 1))
    named = [fault.seq for fault in again.faults]
    stage.summary["tamper_detected"] = not again.verified and code == 1 and altered.seq in named
    stage.happened("altered record found", seq=altered.seq)
