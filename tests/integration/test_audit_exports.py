"""Exports: nothing without an approval of exactly this request, and a file that proves itself offline."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
import re
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.aics import environment
from tests.architecture.sources import ROOT
from tests.integration.test_audit_door import about, door, log
from tests.records import left
from tests.world import World

from medmesh.auditing.package import check, unpack
from medmesh.cli.audit import audit
from medmesh.client.audit import fetch_export
from medmesh.contracts.audit import ExportFinished, RequestExport
from medmesh.contracts.governance import ApprovalGranted, ApprovalRefused
from medmesh.errors import Problem
from medmesh.ledger.copies import Folder
from medmesh.ledger.policy import demanding
from medmesh.ledger.verify import Wanted, verify_log
from medmesh.security import approvals
from medmesh.security.tokens import Actor
from medmesh.store.unit import AuditEntry, Entity


async def requested(world: World, format: str = "jsonl", **given: Any) -> dict[str, Any]:
    done = await world.p.send(RequestExport.model_validate({"format": format, "filter": given}), world.p.person("qian", "auditor"))
    assert done.succeeded, done.problem
    assert done.result
    return done.result


async def granted(world: World, made: dict[str, Any], *, digest: str = "", approval: str = "approval-1") -> None:
    token = world.p.approval("audit.export", made["export"], digest or made["digest"], approval=approval)
    event = ApprovalGranted(approval=approval, action="audit.export", target=made["export"], digest=made["digest"], token=token)
    await world.p.publish(event, source="governance")


async def finished(world: World, made: dict[str, Any]) -> ExportFinished:
    return (await world.p.wait(ExportFinished, lambda found: found.data.export == made["export"])).data


def verified(key: str, file: Path) -> int:
    """What `medmesh audit verify` ends with."""
    return int(CliRunner().invoke(audit, ["verify", "export", "--key", key, str(file)], standalone_mode=False).return_value)


@pytest.mark.parametrize("format", ["jsonl", "fhir", "dicom", "ocsf", "csv"])
async def test_every_format_verifies_offline_and_holds_what_was_asked_for(world: World, private: Path, format: str) -> None:
    await log(world, *(about("renji", f"d{n}") for n in range(300)), about("ruijin", "ct"))
    made = await requested(world, format, org="renji", verb="catalogue.publish")
    await granted(world, made)
    assert (await finished(world, made)).records == 300
    key = world.p.runtimes["audit"].ports.sequencer.vkey
    async with door(world) as auditor:
        fetched = await fetch_export(auditor, made["export"], private / "export.zip", seconds=20)
    assert fetched.media_type == "application/zip"
    folder = unpack(private / "export.zip", private / "export")
    report = verify_log(Folder(folder), Wanted(demanding(key), partial=True))
    check(folder, report)
    assert report.faults == []
    assert report.bodies == 300
    assert json.loads((folder / "request.json").read_bytes())["digest"] == approvals.request_digest(made["request"])
    assert json.loads((folder / "emitters.json").read_bytes())["governance"]["entries"] == 301
    assert key in (folder / "vkeys").read_text()
    assert "请以安装时交付的纸质文件为准" in (folder / "verify.txt").read_text()
    if format == "csv":
        rows = list(csv.DictReader(io.StringIO((folder / "records.csv").read_text(encoding="utf-8-sig"))))
        assert {row["操作"] for row in rows} == {"发布数据目录"}
        assert len(rows) == 300
    elif format == "dicom":
        assert len(list((folder / "dicom").glob("*.xml"))) == 300
    elif format != "jsonl":
        lines = (folder / f"records.{format}.ndjson").read_text().splitlines()
        assert len(lines) == 300
        assert all(json.loads(line) for line in lines)
    assert not any(b"ruijin/ct" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    # The program that shares no code with ours agrees.
    arguments = [sys.executable, "-I", str(ROOT / "libs/medmesh/demo/checker.py"), "verify-log", "--log", str(folder), "--key", key]
    other = await asyncio.to_thread(subprocess.run, arguments, capture_output=True, check=False)
    assert other.returncode == 0, other.stdout


async def exported(world: World, folder: Path, *, complete: bool, approval: str, **given: Any) -> tuple[Path, list[str], list[str]]:
    """The files of an export, the faults, and the notices."""
    command = RequestExport.model_validate({"format": "jsonl", "filter": given, "complete": complete})
    done = await world.p.send(command, world.p.person("qian", "auditor"))
    assert done.result, done.problem
    await granted(world, done.result, approval=approval)
    await finished(world, done.result)
    async with door(world) as auditor:
        await fetch_export(auditor, done.result["export"], folder.with_suffix(".zip"), seconds=20)
    return folder, *judged(world, unpack(folder.with_suffix(".zip"), folder))


def judged(world: World, folder: Path) -> tuple[list[str], list[str]]:
    key = world.p.runtimes["audit"].ports.sequencer.vkey
    report = verify_log(Folder(folder), Wanted(demanding(key), partial=True))
    check(folder, report)
    return [fault.problem.code for fault in report.faults], [notice.code for notice in report.notices]


FILTERS: list[dict[str, Any]] = [
    {"org": "renji"},
    {"verb": "catalogue.publish"},
    {"verb": "session.*"},
    {"entity": "descriptor:renji/d1"},
    {"actor": "person:li"},
    {"outcome": "4"},
    {"outcome": "0"},
    {"type": "110114", "outcome": "4"},
    {"patient": "p-77"},
    {"purpose": "TREAT"},
    {"since": "2020-01-01T00:00:00Z", "until": "2020-02-01T00:00:00Z"},
    {"since": "2999-01-01T00:00:00Z"},
    {},
]


async def test_whatever_it_is_narrowed_by_a_complete_export_proves_that_nothing_was_left_out(world: World, private: Path) -> None:
    li = Actor("person", "li", "platform", frozenset(("researcher",)))
    await log(world, *(about("renji", f"d{n}") for n in range(20)), about("ruijin", "ct"))
    await log(world, AuditEntry("session.open", "E", 4, "governance.sign_in_refused"), actor=li)
    await log(world, AuditEntry("inference.infer", "E", entities=(Entity("patient", "p-77"),)))
    for number, given in enumerate(FILTERS):
        _, faults, notices = await exported(world, private / f"c{number}", complete=True, approval=f"c-{number}", **given)
        assert (faults, notices) == ([], []), given

    folder, faults, notices = await exported(world, private / "some", complete=False, approval="some", actor="person:li")
    assert (faults, notices) == ([], ["audit.export_undecided"]), "what it cannot prove is said"
    said = json.loads((folder / "completeness.json").read_bytes())
    assert not said["complete"]
    assert said["emitters"]["governance"]["exported"] == 1
    counts = [sum(one[name] for one in said["emitters"].values()) for name in ("entries", "exported", "excluded", "undecided")]
    assert counts[0] == sum(counts[1:]) > 20
    _, faults, notices = await exported(world, private / "org", complete=False, approval="org", org="renji")
    assert (faults, notices) == ([], []), "headers name organisations: nothing has to be opened"


async def test_a_record_that_was_left_out_is_found(world: World, private: Path) -> None:
    await log(world, *(about("renji", f"d{n}") for n in range(5)), about("ruijin", "ct"))
    folder, faults, _ = await exported(world, private / "whole", complete=True, approval="a-1", entity="descriptor:renji/d3")
    assert faults == []
    line = (folder / "bodies.jsonl").read_text()
    (folder / "bodies.jsonl").write_text("")
    assert judged(world, folder)[0] == ["audit.export_statement"]
    # Whoever leaves it out and says so in the statement has to open it, and then it fits.
    said = json.loads((folder / "completeness.json").read_bytes())
    seq = json.loads(line)["seq"]
    said["emitters"]["governance"] |= {"exported": 0, "undecided": 1}
    (folder / "completeness.json").write_text(json.dumps(said | {"complete": False, "undecided": [[seq, seq]]}))
    assert judged(world, folder) == ([], ["audit.export_undecided"])
    said["emitters"]["governance"]["undecided"] = 0
    said["emitters"]["governance"]["opened"] += 1
    (folder / "completeness.json").write_text(json.dumps(said))
    with (folder / "others.jsonl").open("a") as others:
        others.write(line)
    assert judged(world, folder)[0] == ["audit.export_filter"]


@pytest.mark.slow
async def test_somebody_with_the_export_and_the_key_verifies_it_without_anything_of_ours(world: World, private: Path) -> None:
    """The page for strangers, as it stands there: its commands and its script, with a program we did not write."""
    python = environment()
    await log(world, *(about("renji", f"d{n}") for n in range(300)))
    made = await requested(world, "csv", org="renji")
    await granted(world, made)
    await finished(world, made)
    async with door(world) as auditor:
        await fetch_export(auditor, made["export"], private / "export.zip", seconds=20)
    (private / "key.txt").write_text(world.p.runtimes["audit"].ports.sequencer.vkey + "\n")
    page = (ROOT / "docs/security/elsewhere.md").read_text(encoding="utf-8")
    commands, script = re.search(r"```sh\n(.*?)```", page, re.DOTALL), re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert commands is not None
    assert script is not None
    here: Any = {"cwd": private, "env": {"PATH": f"{python.parent}:/usr/bin:/bin"}, "capture_output": True, "text": True, "check": False}
    said = await asyncio.to_thread(subprocess.run, ["/bin/sh", "-ec", commands[1]], **here)
    assert (said.returncode, json.loads(said.stdout)["ok"]) == (0, True), said.stderr

    async def run() -> Any:
        return await asyncio.to_thread(subprocess.run, [python, "-I", "-c", script[1]], **here)

    read = await run()
    assert read.returncode == 0, read.stderr
    records = [line.split(" ", 1) for line in read.stdout.splitlines()]
    assert sum(json.loads(body)["sub"] == "catalogue.publish" for _, body in records) == 300
    evidence = private / "export" / "bodies.jsonl"
    whole = evidence.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    altered = base64.b64encode(base64.b64decode(lines[7]["body"]).replace(b'"out":0', b'"out":8')).decode()
    evidence.write_text("".join(json.dumps(line | ({"body": altered} if n == 7 else {})) + "\n" for n, line in enumerate(lines)))
    assert "is not the one that was logged" in (await run()).stderr
    evidence.write_text(whole)
    headers = next((private / "export" / "tile" / "entries").rglob("*"))
    headers = headers if headers.is_file() else next(path for path in headers.rglob("*") if path.is_file())
    headers.write_bytes(headers.read_bytes().replace(b'"c":"renji"', b'"c":"reNji"', 1))
    assert (await run()).returncode != 0


@pytest.mark.parametrize("format", ["fhir", "dicom", "ocsf", "csv"])
async def test_what_people_read_is_held_against_the_evidence(world: World, private: Path, format: str) -> None:
    """The table is altered and the evidence is not: whoever reads the table only would be deceived."""
    await log(world, *(about("renji", f"d{n}") for n in range(3)))
    made = await requested(world, format, org="renji")
    await granted(world, made)
    await finished(world, made)
    key = world.p.runtimes["audit"].ports.sequencer.vkey
    async with door(world) as auditor:
        await fetch_export(auditor, made["export"], private / "export.zip", seconds=20)
    folder = unpack(private / "export.zip", private / "export")
    assert verified(key, folder) == 0  # unpacked it verifies as well
    readable = sorted((folder / "dicom").iterdir())[1] if format == "dicom" else next(folder.glob("records.*"))
    before = readable.read_bytes()
    middle = len(before) // 2
    altered = (before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :], before + before[-40:], before[:-1], b"")
    for content in altered:
        readable.write_bytes(content)
        assert verified(key, folder) == 1
    # The evidence is whole, but another version wrote the table: nothing is proven about it, nobody is accused.
    asked = json.loads((folder / "request.json").read_bytes())
    (folder / "request.json").write_text(json.dumps(asked | {"written_by": "9.9"}))
    assert verified(key, folder) == 2
    readable.write_bytes(before)
    assert verified(key, folder) == 0
    if format == "dicom":
        (folder / "dicom" / "000000000999.xml").write_bytes(before)
        (folder / "request.json").write_text(json.dumps(asked))
        assert verified(key, folder) == 1


async def test_an_altered_export_is_found_whichever_part_was_touched(world: World, private: Path) -> None:
    await log(world, *(about("renji", f"d{n}") for n in range(3)))
    made = await requested(world, org="renji")
    await granted(world, made)
    await finished(world, made)
    key = world.p.runtimes["audit"].ports.sequencer.vkey
    async with door(world) as auditor:
        await fetch_export(auditor, made["export"], private / "export.zip", seconds=20)

    def verdict(name: str, change: Any) -> int:
        with zipfile.ZipFile(private / "export.zip") as source, zipfile.ZipFile(private / "altered.zip", "w") as target:
            for info in source.infolist():
                content = source.read(info)
                target.writestr(info.filename, change(content) if info.filename.startswith(name) else content)
        return verified(key, private / "altered.zip")

    def turned(field: str) -> Any:
        def change(content: bytes) -> bytes:
            lines = [json.loads(line) for line in content.splitlines()]
            value = lines[1][field]
            first = value[0] if field == "proof" else value
            other = ("B" if first[4] == "A" else "A").join((first[:4], first[5:]))
            lines[1][field] = [other, *value[1:]] if field == "proof" else other
            return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

        return change

    assert verdict("nothing", bytes) == 0
    for field in ("body", "salt", "leaf", "proof"):
        assert verdict("bodies.jsonl", turned(field)) == 1, field
    assert verdict("checkpoint", lambda content: content.replace(b"\n", b"\n1", 1)) == 1
    assert verdict("tile/0", lambda content: content[:-1] + bytes([content[-1] ^ 1])) == 1
    assert verdict("tile/entries", lambda content: content[:-1] + bytes([content[-1] ^ 1])) == 1
    assert verdict("emitters.json", lambda content: content.replace(b'"entries":', b'"entries":1')) == 1
    assert verdict("request.json", lambda content: content.replace(b"renji", b"ruijin")) == 1
    (private / "cut.zip").write_bytes((private / "export.zip").read_bytes()[:200])
    assert verified(key, private / "cut.zip") == 2
    with zipfile.ZipFile(private / "slip.zip", "w") as target:
        target.writestr("../outside", b"x")
    assert verified(key, private / "slip.zip") == 2
    assert not (private.parent / "outside").exists()


async def test_without_an_approval_of_exactly_this_request_nothing_is_built(world: World, private: Path) -> None:
    await log(world, about("renji", "mri"))
    made, other = await requested(world, org="renji"), await requested(world, org="ruijin")
    await granted(world, made, digest=other["digest"])  # of another request
    await granted(world, {**other, "export": made["export"]}, approval="approval-2")
    async with door(world) as auditor:
        with pytest.raises(Problem) as caught:
            await fetch_export(auditor, made["export"], private / "export.zip", seconds=1)
        assert caught.value.code == "audit.export_pending"
        await granted(world, made, approval="approval-3")
        await finished(world, made)
        await fetch_export(auditor, made["export"], private / "export.zip", seconds=5)
    # The same approval opens nothing else, and a second one does not open it again.
    again = await requested(world, org="renji")
    await granted(world, again, approval="approval-3")
    await granted(world, made, approval="approval-4")
    # One that an approver refused stays closed; a refusal of another request closes nothing.
    closed = await requested(world, org="renji")
    for export, digest in ((again["export"], closed["digest"]), (closed["export"], closed["digest"])):
        said = ApprovalRefused(approval="approval-5", action="audit.export", target=export, digest=digest)
        await world.p.publish(said, source="governance")
    async with door(world) as auditor, asyncio.timeout(20):
        while (await auditor.request("GET", f"/v1/exports/{closed['export']}"))["state"] != "refused":
            await asyncio.sleep(0.05)
    await log(world, service="audit")
    async with door(world) as auditor:
        assert (await auditor.request("GET", f"/v1/exports/{again['export']}"))["state"] == "waiting"
        records = [event["record"] for event in (await auditor.request("GET", "/v1/events", query={"verb": "audit.export"}))["events"]]
    spent = [record["approval"]["id"] for record in records if record["approval"]]
    assert spent == ["approval-3", "approval-5"]
    told = {made["export"]: [], closed["export"]: []}
    for record in records:
        if (steps := told.get(record["entities"][0]["id"])) is not None:
            steps.append((record["act"], record["out"], record["why"], record["detail"].get("state", "")))
    assert told[made["export"]] == [("C", 0, "", "waiting"), ("U", 0, "", "approved"), ("E", 0, "", "ready")]
    assert told[closed["export"]] == [("C", 0, "", "waiting"), ("U", 4, "audit.export_refused", "")]


async def test_only_who_asked_fetches_it_and_an_organisations_auditor_gets_no_more_than_they_may_see(world: World, private: Path) -> None:
    from medmesh.security.tokens import Actor, person_token

    await log(world, about("renji", "mri"), about("ruijin", "ct"))
    ma = person_token(
        world.p.identities["governance"], Actor("person", "ma", "ruijin", frozenset(("auditor",)), "pwd+otp", datetime.now(UTC))
    )
    done = await world.p.send(RequestExport(format="jsonl"), ma)
    assert done.result
    await granted(world, done.result)
    await finished(world, done.result)
    export = done.result["export"]
    async with door(world, "ma", "ruijin") as auditor:
        await fetch_export(auditor, export, private / "export.zip", seconds=5)
    (fetched,) = await left(world.p, "audit.download")
    assert (fetched["agents"][0]["who"], fetched["entities"][0]["id"], fetched["orgs"]) == ("person:ma", export, ["ruijin"])
    folder = unpack(private / "export.zip", private / "export")
    lines = [json.loads(line) for line in (folder / "bodies.jsonl").read_text().splitlines()]
    import base64

    assert lines
    assert all("ruijin" in json.loads(base64.b64decode(line["body"]))["orgs"] for line in lines)
    async with door(world, "zhou", "renji") as other:
        with pytest.raises(Problem) as caught:
            await other.request("GET", f"/v1/exports/{export}")
        assert caught.value.code == "request.not_found"
    async with door(world) as qian:
        assert (await qian.request("GET", f"/v1/exports/{export}"))["state"] == "ready"
        with pytest.raises(Problem) as caught:
            await qian.raw("GET", f"/v1/exports/{export}/content")
        assert caught.value.code == "request.not_found"
