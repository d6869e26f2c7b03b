"""`medmesh audit`: search the log, copy it, and verify it without trusting anybody.  审计。"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from medmesh.cli import say
from medmesh.cli.session import show, with_gateway
from medmesh.client.audit import at_the_door, export_log, verify_evidence
from medmesh.client.credentials import Person
from medmesh.client.gateway import Gateway
from medmesh.errors import Problem

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


@audit.command()
@KEY
@click.argument("what", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True)
def verify(key: str, what: Path, as_json: bool) -> int:
    """Verify a copy of the log, or one piece of evidence, offline.  离线验证。

    Ends with 0 when it is whole, 1 when it was altered, 2 when it cannot be read.
    """
    from medmesh.ledger.verify import verify_folder

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
    if as_json:
        show(report.__dict__)
    elif report.verified:
        click.secho(say(f"whole and unaltered: {report.size} records", f"完整且未被篡改：{report.size} 条记录"), fg="green")
    else:
        for fault in report.faults:
            click.secho(json.dumps(fault, ensure_ascii=False), fg="red")
    return 0 if report.verified else 1
