"""`medmesh audit`: search the log, copy it, and verify it without trusting anybody.  审计。"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from medmesh.cli import language, say
from medmesh.cli.session import show, with_gateway
from medmesh.client.audit import at_the_door, export_log, fetch_export, verify_evidence
from medmesh.client.credentials import Person
from medmesh.client.gateway import Gateway
from medmesh.errors import Problem
from medmesh.ledger.verify import Report

T = TypeVar("T")
AUDIT = click.option("--audit", "url", required=True, envvar="MEDMESH_AUDIT", metavar="URL", help="Address of the audit service.")
KEY = click.option("--key", required=True, help="The log's verifier key, as handed over at installation (or a file holding it).")


def visit(url: str, work: Callable[[Gateway], Awaitable[T]]) -> T:
    """Run `work` with a client of the audit service for the signed-in person."""

    async def run(gateway: Gateway) -> T:
        from medmesh.cli.session import load

        token = await gateway.request("POST", "/v1/tokens/audit")
        async with Gateway(url, ca=Path(load()["ca"]), credentials=Person(token["token"])) as door:
            return await work(door)

    return with_gateway(run)


def key_of(text: str) -> str:
    """A verifier key, or the one in a file or a trust bundle."""
    path = Path(text)
    if not path.is_file():
        return text
    content = path.read_text().strip()
    return str(json.loads(content)["log_key"]) if content.startswith("{") else content


@click.group()
def audit() -> None:
    """The log of every sensitive action.  审计日志。"""


@audit.command()
@AUDIT
@click.option("--from", "from", metavar="TIME", help="Not before this instant (ISO 8601).")
@click.option("--to", metavar="TIME", help="Before this instant.")
@click.option("--actor", help="For example person:li")
@click.option("--org", help="Whose data it is about.")
@click.option("--patient", help="A patient's pseudonym.")
@click.option("--entity", help="KIND:ID, for example model:mri-cnn")
@click.option("--verb", help="A verb, or the beginning of one with *")
@click.option("--type", help="DICOM event id such as 110114, or rest")
@click.option("--outcome", type=click.Choice(["0", "4", "8", "12"]))
@click.option("--purpose", help="HL7 v3 PurposeOfUse such as HRESCH")
@click.option("--correlation", help="Everything that came of one request.")
@click.option("--cursor", help="`next` of the page before.")
@click.option("--limit", default=100, show_default=True)
def search(url: str, **filters: Any) -> int:
    """Who did what to what, and when; the search itself is logged.  查询。"""
    query = {name: value for name, value in filters.items() if value is not None}
    show(visit(url, lambda door: door.request("GET", "/v1/events", query=query)))
    return 0


@audit.command()
@AUDIT
@click.argument("event")
@click.option("--out", type=click.Path(path_type=Path), help="Write the evidence here.")
def prove(url: str, event: str, out: Path | None) -> int:
    """Get the record EVENT (its id or number) with everything needed to verify it offline.  获取证明。"""
    evidence = visit(url, lambda door: door.request("GET", f"/v1/events/{event}/proof"))
    if out:
        out.write_text(json.dumps(evidence, indent=1))
    else:
        show(evidence)
    return 0


@audit.command()
@AUDIT
@click.argument("folder", type=click.Path(path_type=Path))
def export(url: str, folder: Path) -> int:
    """Copy the whole log into FOLDER.  导出日志。"""
    size = visit(url, lambda door: export_log(at_the_door(door), folder))
    click.echo(say(f"{size} records", f"共 {size} 条记录"))
    return 0


@audit.command(name="request-export")
@click.option("--format", "kind", type=click.Choice(["jsonl", "fhir", "dicom", "ocsf", "csv"]), default="jsonl", show_default=True)
@click.option("--from", "since", metavar="TIME", help="Not before this instant (ISO 8601).")
@click.option("--to", "until", metavar="TIME", help="Before this instant.")
@click.option("--actor", help="For example person:li")
@click.option("--org", help="Whose data it is about.")
@click.option("--patient", help="A patient's pseudonym.")
@click.option("--entity", help="KIND:ID, for example model:mri-cnn")
@click.option("--verb", help="A verb, or the beginning of one with *")
@click.option("--type", help="DICOM event id such as 110114, or rest")
@click.option("--outcome", type=click.Choice(["0", "4", "8", "12"]))
@click.option("--purpose", help="HL7 v3 PurposeOfUse such as HRESCH")
@click.option("--correlation", help="Everything that came of one request.")
def request_export(kind: str, **filters: Any) -> int:
    """Ask for an export; somebody else approves exactly this request ('medmesh approve').  申请导出。"""
    given = {name: value for name, value in filters.items() if value is not None}

    async def work(gateway: Gateway) -> Any:
        made = await gateway.command("POST", "/v1/audit/exports", {"format": kind, "filter": given})
        body = {"action": "audit.export", "target": made["export"], "digest": made["digest"], "summary": {"format": kind, **given}}
        asked = await gateway.command("POST", "/v1/approvals", body)
        return {**made, "approval": asked["approval"]}

    show(with_gateway(work))
    return 0


@audit.command()
@AUDIT
@click.argument("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--wait", default=600.0, show_default=True, help="Seconds to wait until it was approved and built.")
def download(url: str, export: str, file: Path, wait: float) -> int:
    """Fetch the approved EXPORT into FILE, a ZIP that verifies offline.  下载导出。"""
    found = visit(url, lambda door: fetch_export(door, export, file, seconds=wait))
    click.echo(say(f"{found.bytes} bytes, SHA-256 {found.sha256}", f"{found.bytes} 字节，SHA-256 {found.sha256}"))
    return 0


@audit.command()
@AUDIT
@click.argument("kind", type=click.Choice(["model", "dataset"]))
@click.argument("name")
def lineage(url: str, kind: str, name: str) -> int:
    """Where a model or data set comes from and where it went (YY/T 1833.4), with the records that prove it.  追溯。"""
    show(visit(url, lambda door: door.request("GET", f"/v1/lineage/{kind}/{name}")))
    return 0


@audit.command()
@AUDIT
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write a page to print.")
@click.option("--json", "as_json", is_flag=True)
def mlps(url: str, page: Path | None, as_json: bool) -> int:
    """Evidence for MLPS Level 3, clause by clause.  等保三级证据。"""
    if page is not None:
        headers = {"Accept": "text/html"}
        page.write_bytes(visit(url, lambda door: door.raw("GET", "/v1/mlps/evidence", headers=headers)).content)
        return 0
    found = visit(url, lambda door: door.request("GET", "/v1/mlps/evidence"))
    if as_json:
        show(found)
        return 0
    tongue = language()
    colours = {"met": "green", "part": "yellow", "procedural": "blue", "not_met": "red"}
    for clause in found["clauses"]:
        click.secho(f"{clause['state']:<11}", fg=colours[clause["state"]], nl=False)
        click.echo(f"{clause['clause']}  {clause['item'][tongue]}\n{'':11}{clause['proof'][tongue]}")
    click.echo("  ".join(f"{name} {number}" for name, number in found["counts"].items()))
    return 0


@audit.command()
@KEY
@click.argument("what", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True)
def verify(key: str, what: Path, as_json: bool) -> int:
    """Verify a copy of the log, an export, or one piece of evidence, offline.  离线验证。

    Ends with 0 when it is whole, 1 when it was altered, 2 when it cannot be read.
    """
    from medmesh.auditing.package import unpack, verify_export
    from medmesh.ledger.verify import verify_folder

    if what.suffix == ".zip":
        with tempfile.TemporaryDirectory(dir=what.absolute().parent) as opened:
            try:
                return _tell(verify_export(unpack(what, Path(opened)), key_of(key)), as_json)
            except Problem as problem:
                click.secho(str(problem), fg="red", err=True)
                return 2
    if what.is_file():
        try:
            record = verify_evidence(json.loads(what.read_text()), key_of(key))
        except Problem as problem:
            click.secho(str(problem), fg="red")
            return 1
        show(record)
        return 0
    try:
        report = verify_folder(what, key_of(key))
    except Problem as problem:
        click.secho(str(problem), fg="red", err=True)
        return 2
    return _tell(report, as_json)


def _tell(report: Report, as_json: bool) -> int:
    if as_json:
        show(report.__dict__)
    elif report.verified:
        click.secho(say(f"whole and unaltered: {report.size} records", f"完整且未被篡改：{report.size} 条记录"), fg="green")
    else:
        for fault in report.faults:
            click.secho(json.dumps(fault, ensure_ascii=False), fg="red")
    return 0 if report.verified else 1
