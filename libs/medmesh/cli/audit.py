"""`medmesh audit`: search the log, copy it, and verify it without trusting anybody.  审计。"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from medmesh.cli import language, say
from medmesh.cli.restore import restore
from medmesh.cli.verify import verify
from medmesh.errors import Problem
from medmesh.figures import size

if TYPE_CHECKING:
    from medmesh.client.credentials import Bound
    from medmesh.client.gateway import Gateway

T = TypeVar("T")


def here() -> str:
    """The audit service of the platform on this machine, if that is where the person is signed in. Raises `Problem` (`cli.*`)."""
    from medmesh.cli.platform import data_folder
    from medmesh.cli.session import load
    from medmesh.embedded.run import running

    signed_in, run = load()["url"], running(data_folder().absolute())
    if run is None or run.urls["gateway"] != signed_in:
        raise Problem("cli.no_audit")
    return run.urls["audit"]


WHERE = "Address of the audit service; found by itself on the platform's own machine."
AUDIT = click.option("--audit", "url", required=True, default=here, envvar="MEDMESH_AUDIT", metavar="URL", help=WHERE)


def visit(url: str, work: Callable[[Gateway], Awaitable[T]]) -> T:
    """Run `work` with a client of the audit service for the signed-in person."""
    from medmesh.cli.session import ask_code, with_gateway
    from medmesh.client.doors import open_door

    async def run(gateway: Gateway) -> T:
        async def try_once() -> T:
            async with await open_door(gateway, "audit", url) as door:
                return await work(door)

        try:
            return await try_once()
        except Problem as problem:
            if problem.code != "security.step_up":
                raise
        await gateway.request("POST", "/v1/sessions/step-up", {"code": await ask_code()})
        return await try_once()

    return with_gateway(run)


class DoorProof:
    """Headers for the auditors' door at `url`, of the signed-in person; a new token when the one before was refused."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._bound: Bound | None = None

    def __call__(self, address: str, refused: bool) -> Mapping[str, str]:
        from medmesh.cli.session import with_gateway
        from medmesh.client.doors import bound_token

        if self._bound is None or refused:
            self._bound = with_gateway(lambda gateway: bound_token(gateway, "audit", self._url))
        return self._bound.at(address)


def _show(document: Any) -> None:
    from medmesh.cli.session import show

    show(document)


FILTERS = (
    click.option("--actor", help="For example person:li"),
    click.option("--org", help="Whose data it is about."),
    click.option("--patient", help="A patient's pseudonym."),
    click.option("--entity", help="KIND:ID, for example model:mri-cnn"),
    click.option("--verb", help="A verb, or the beginning of one with *"),
    click.option("--type", help="DICOM event id such as 110114, or rest"),
    click.option("--outcome", type=click.Choice(["0", "4", "8", "12"])),
    click.option("--purpose", help="HL7 v3 PurposeOfUse such as HRESCH"),
    click.option("--correlation", help="Everything that came of one request."),
)


def narrowed(command: Callable[..., int]) -> Callable[..., int]:
    """A command that takes what a search and an export can be narrowed by, in this order."""
    for option in reversed(FILTERS):
        command = option(command)
    return command


@click.group()
def audit() -> None:
    """The log of every sensitive action.  审计日志。"""


@audit.command()
@AUDIT
@click.option("--from", "from", metavar="TIME", help="Not before this instant (ISO 8601).")
@click.option("--to", metavar="TIME", help="Before this instant.")
@narrowed
@click.option("--cursor", help="`next` of the page before.")
@click.option("--limit", default=100, show_default=True)
def search(url: str, **filters: Any) -> int:
    """Who did what to what, and when; the search itself is logged.  查询。"""
    query = {name: value for name, value in filters.items() if value is not None}
    _show(visit(url, lambda door: door.request("GET", "/v1/events", query=query)))
    return 0


@audit.command()
@AUDIT
@click.argument("event")
@click.option("--out", type=click.Path(path_type=Path), help="Write the evidence here; as one C2SP proof when it ends in .tlog-proof.")
def prove(url: str, event: str, out: Path | None) -> int:
    """Get the record EVENT (its id or number) with everything needed to verify it offline.  获取证明。"""
    from medmesh.ledger.proof import evidence_file, read_evidence

    evidence = visit(url, lambda door: door.request("GET", f"/v1/events/{event}/proof"))
    if out:
        text = json.dumps(evidence, indent=1)
        out.write_text(evidence_file(read_evidence(text)) if out.suffix == ".tlog-proof" else text)
    else:
        _show(evidence)
    return 0


@audit.command()
@AUDIT
@click.argument("folder", type=click.Path(path_type=Path))
def export(url: str, folder: Path) -> int:
    """Copy the whole log into FOLDER.  导出日志。"""
    from medmesh.client.audit import at_the_door, export_log

    size = visit(url, lambda door: export_log(at_the_door(door), folder))
    click.echo(say(f"{size} records", f"共 {size} 条记录"))
    return 0


@audit.command(name="request-export")
@click.option("--format", "kind", type=click.Choice(["jsonl", "fhir", "dicom", "ocsf", "csv"]), default="jsonl", show_default=True)
@click.option("--from", "since", metavar="TIME", help="Not before this instant (ISO 8601).")
@click.option("--to", "until", metavar="TIME", help="Before this instant.")
@click.option("--complete", is_flag=True, help="Open what does not fit too, where nothing else proves it: nothing can be left out unseen.")
@narrowed
def request_export(kind: str, complete: bool, **filters: Any) -> int:
    """Ask for an export; somebody else approves exactly this request.  申请导出。"""
    from medmesh.cli.asking import request_approval
    from medmesh.cli.session import with_gateway

    given = {name: value for name, value in filters.items() if value is not None}

    async def work(gateway: Gateway) -> Any:
        made = await gateway.command("POST", "/v1/audit/exports", {"format": kind, "filter": given, "complete": complete})
        body = {"action": "audit.export", "target": made["export"], "digest": made["digest"], "summary": {"format": kind, **given}}
        asked = await request_approval(gateway, body)
        return {**made, "approval": asked["approval"]}

    _show(with_gateway(work))
    return 0


@audit.command()
@AUDIT
@click.argument("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--wait", default=600.0, show_default=True, help="Seconds to wait until it was approved and built.")
def download(url: str, export: str, file: Path, wait: float) -> int:
    """Fetch the approved EXPORT into FILE, a ZIP that verifies offline.  下载导出。"""
    from medmesh.client.audit import fetch_export

    found = visit(url, lambda door: fetch_export(door, export, file, seconds=wait))
    click.echo(f"{size(found.bytes)}, SHA-256 {found.sha256}")
    return 0


@audit.command()
@AUDIT
@click.argument("kind", type=click.Choice(["model", "dataset"]))
@click.argument("name")
def lineage(url: str, kind: str, name: str) -> int:
    """Where a model or data set comes from and where it went (YY/T 1833.4), with the records that prove it.  追溯。"""
    _show(visit(url, lambda door: door.request("GET", f"/v1/lineage/{kind}/{name}")))
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
        _show(found)
        return 0
    tongue = language()
    findings = {
        "met": ("green", say("met", "符合")),
        "part": ("yellow", say("partly", "部分符合")),
        "procedural": ("blue", say("procedural", "制度要求")),
        "not_met": ("red", say("not met", "不符合")),
    }
    for clause in found["clauses"]:
        colour, finding = findings[clause["state"]]
        click.echo(f"{clause['clause']}  {clause['item'][tongue]}")
        click.secho(f"    {say('finding ', '判定')}  {finding}", fg=colour)
        click.echo(f"    {say('evidence', '证据')}  {'  '.join([clause['proof'][tongue], *clause['links']])}")
        if clause["repeat"]:
            click.echo(f"    {say('repeat  ', '复核')}  {clause['repeat']}")
    click.echo("  ".join(f"{finding} {found['counts'][name]}" for name, (_, finding) in findings.items()))
    return 0


def _asked(path: str, body: dict[str, Any], action: str) -> int:
    """Fix a change, and ask for the approval of exactly that."""
    from medmesh.cli.asking import request_approval
    from medmesh.cli.session import with_gateway

    async def work(gateway: Gateway) -> Any:
        made = await gateway.command("POST", path, body)
        summary = {name: value for name, value in made["request"].items() if name not in ("change", "requester", "action")}
        wanted = {"action": action, "target": made["change"], "digest": made["digest"], "summary": summary}
        return {**made, "approval": (await request_approval(gateway, wanted))["approval"]}

    _show(with_gateway(work))
    return 0


@audit.command()
@click.option("--below", type=int, help="Only records before this number; as far as policy, holds and locks allow by default.")
def prune(below: int | None) -> int:
    """Ask to let the bodies of old records go; somebody else approves it. Headers and tree stay: old proofs hold.  申请清理过期正文。"""
    return _asked("/v1/audit/prunings", {} if below is None else {"below": below}, "log.prune")


@audit.command()
@click.option("--change", nargs=2, metavar="CLASS DAYS", help="Ask to keep security, clinical or operations so many days (180 or more).")
def retention(change: tuple[str, str] | None) -> int:
    """How long bodies are kept, what keeps them longer, what has gone; or ask for a change.  保存期限。"""
    from medmesh.cli.session import with_gateway

    if change is None:
        _show(with_gateway(lambda gateway: gateway.request("GET", "/v1/audit/retention")))
        return 0
    kind, days = change
    if not days.isdecimal():
        raise click.BadParameter(days)
    return _asked("/v1/audit/retention", {"kind": kind, "days": int(days)}, "retention.change")


@audit.group()
def hold() -> None:
    """Legal holds: placed at once, lifted with a second person's approval.  法律保留。"""


@hold.command()
@click.argument("reason")
@click.option("--org", default="", help="Only what is about this organisation; everything by default.")
def place(reason: str, org: str) -> int:
    """Keep bodies until the hold is lifted, for REASON.  设置保留。"""
    from medmesh.cli.session import with_gateway

    _show(with_gateway(lambda gateway: gateway.command("POST", "/v1/audit/holds", {"org": org, "reason": reason})))
    return 0


@hold.command()
@click.argument("hold")
def lift(hold: str) -> int:
    """Ask to lift HOLD.  申请解除保留。"""
    return _asked(f"/v1/audit/holds/{hold}/lift", {}, "retention.change")


audit.add_command(restore)
audit.add_command(verify)
