"""`medmesh edge`: the hospital's node. Everything it does for people works on its folder, also while the node runs.  医院边缘节点。"""

from __future__ import annotations

import asyncio
import getpass
import json
from pathlib import Path
from typing import Any

import click

from medmesh.cli import language, say
from medmesh.cli.edge.escrow import escrow
from medmesh.cli.edge.patients import forget, forget_approve, forgettings, trace
from medmesh.cli.edge.roster import own_key, own_roster, tell_key
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show
from medmesh.embedded import files
from medmesh.errors import Problem


@click.group()
def edge() -> None:
    """The hospital's node: data stay here.  医院边缘节点：数据不出院。"""


edge.add_command(own_key)
edge.add_command(own_roster)


@edge.command()
@FOLDER
@click.option("--wait", default=0.0, show_default=True, help="Seconds to wait for approval, which an expired certificate needs.")
def renew(folder: Path, wait: float) -> int:
    """Renew this node's certificate now; a running node does so by itself.  更新节点证书。"""
    from datetime import UTC, datetime

    from medmesh_edge.renewal import renew

    async def work(opened: Any) -> None:
        clock = asyncio.get_running_loop().time
        end = clock() + wait
        async with opened.gateway(attempts=1) as gateway:
            while True:
                try:
                    await renew(opened, gateway, datetime.now(UTC), at_once=True)
                    return
                except Problem as problem:
                    if problem.code != "edge.renewal_pending" or clock() > end:
                        raise
                await asyncio.sleep(1)

    on_site(folder, work)
    click.echo(say("renewed", "已更新"))
    return 0


@edge.command()
@FOLDER
@click.option("--gateway", required=True, metavar="URL")
@click.option("--ca", required=True, type=click.Path(exists=True, path_type=Path), help="Handed over with the code, not downloaded.")
@click.option("--hospital", required=True)
@click.option("--node", default="node-1", show_default=True)
@click.option("--code", prompt=True, help="The one-time code from the platform.")
@click.option("--proxy", metavar="URL", help="HTTP proxy for everything that goes out.")
@click.option("--port", default=0, help="Port of the local page; 0 takes a free one.")
@click.option("--wait", default=86_400.0, show_default=True, help="Seconds to wait for approval.")
@click.option("--roster", metavar="DIGITS|FILE", help="The roster's fingerprint, as read to you, or its file. Later: edge roster.")
@click.option("--organisation-key", type=click.Path(exists=True, path_type=Path), help="The hospital's, for a further node.")
def enrol(
    folder: Path,
    gateway: str,
    ca: Path,
    hospital: str,
    node: str,
    code: str,
    proxy: str | None,
    port: int,
    wait: float,
    roster: str | None,
    organisation_key: Path | None,
) -> int:
    """Enrol this node: keys and request are made here, a second person approves at the platform.  注册节点。

    Two keys are made: the node's, for its certificate, which renews; and the hospital's own, which signs what it accepts. Read the
    fingerprint of the second to the keepers of the roster.
    """
    from medmesh.security import signing
    from medmesh_edge.enrolment import ca_fingerprint, enrol
    from medmesh_edge.settings import Layout, Settings

    layout = Layout(folder.absolute())
    if organisation_key is not None and not layout.organisation_key.exists():
        signing.save(layout.organisation_key, signing.load(organisation_key), None)
    handed = Path(roster) if roster and len(roster) < 200 and Path(roster).is_file() else None

    pem = ca.read_bytes()
    click.echo(say(f"CA fingerprint {ca_fingerprint(pem)}: compare it by telephone", f"CA 指纹 {ca_fingerprint(pem)}：请电话核对"))
    settings = Settings(hospital=hospital, node=node, gateway=gateway, proxy=proxy, port=port)
    states = {"pending": say("waiting for approval…", "等待审批……"), "enrolled": say("enrolled", "注册完成")}
    asyncio.run(
        enrol(
            folder.absolute(),
            settings,
            pem,
            code,
            pin=None if handed else roster,
            roster=handed.read_bytes() if handed else None,
            say=lambda state: click.echo(states.get(state, state)),
            seconds=wait,
        )
    )
    tell_key(layout.organisation_key)
    if roster is None:
        click.secho(
            say("No roster is pinned yet: medmesh edge roster --pin DIGITS", "尚未固定名册：medmesh edge roster --pin 数字"), fg="yellow"
        )
    return 0


@edge.command()
@FOLDER
@click.option("--host", help="Where the local page listens; 127.0.0.1 unless the settings say otherwise.")
@click.option("--port", type=int, help="Its port.")
def run(folder: Path, host: str | None, port: int | None) -> int:
    """Run the node in the foreground.  运行节点。"""
    import uvloop

    from medmesh_edge.node import run as run_node

    uvloop.run(run_node(folder.absolute(), host, port))
    return 0


@edge.command()
@FOLDER
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--dataset", required=True)
@click.option("--table", type=click.Path(exists=True, path_type=Path), help="SOURCE is a CSV file, this package says of what.")
@click.option("--columns", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="What the columns of the CSV file mean.")
@click.option("--json", "as_json", is_flag=True)
def ingest(folder: Path, source: Path, dataset: str, table: Path | None, columns: Path | None, as_json: bool) -> int:
    """Take in the DICOM files below SOURCE, de-identified, with labels from its labels.csv; or a table.  导入 DICOM 或表格。

    Of a table only the columns that the hospital's own file names are read (docs/tutorial/heart-disease.md).
    """
    from medmesh_edge import tabular
    from medmesh_edge.intake import ingest

    if (table is None) != (columns is None) or (table is None) != source.is_dir():
        raise click.UsageError(say("a table needs --table, --columns and a file", "导入表格需同时给出 --table、--columns 和文件"))

    async def work(site: Any) -> Any:
        if table is not None and columns is not None:
            return await tabular.ingest(site, source, columns, tabular.schema_of(table), dataset)
        if as_json:
            return await ingest(site, source, dataset)
        with click.progressbar(length=1, label=dataset) as bar:

            def progress(done: int, total: int) -> None:
                bar.length = total
                bar.update(done - bar.pos)

            return await ingest(site, source, dataset, progress=progress)

    found = on_site(folder, work)
    show({"stored": found.stored, "known": found.known, "rejected": dict(found.rejected), "quality": dict(found.quality)})
    return 0


@edge.command()
@FOLDER
@click.argument("dataset")
@click.option("--within", is_flag=True, help="Only people of this hospital see it; everybody on the platform does otherwise.")
def publish(folder: Path, dataset: str, within: bool) -> int:
    """Tell the platform how much of what is there: counts only, small ones hidden.  发布数据描述。"""
    from medmesh_edge.outgoing import queue
    from medmesh_edge.samples import descriptor

    async def work(site: Any) -> Any:
        made = await descriptor(site, dataset)
        async with site.unit() as uow:
            await queue(uow, "/v1/catalogue", {"descriptor": made.model_dump(), "within": within})
        return made

    show(on_site(folder, work).model_dump())
    return 0


@edge.command(name="federations")
@FOLDER
def list_federations(folder: Path) -> int:
    """Invitations and what became of them.  联邦邀请。"""
    from sqlalchemy import select

    from medmesh_edge.tables import federations

    async def work(site: Any) -> Any:
        async with site.unit() as uow:
            return await uow.all(select(federations).order_by(federations.c.at))

    show([{"federation": r.federation, "name": r.plan["name"], "state": r.state, "reason": r.reason} for r in on_site(folder, work)])
    return 0


@edge.command(name="show")
@FOLDER
@click.argument("federation")
def show_plan(folder: Path, federation: str) -> int:
    """The plan in plain words: what code runs, what leaves, how often.  查看方案。"""
    from sqlalchemy import select

    from medmesh.contracts.plan import Plan
    from medmesh.federated.plan import explain
    from medmesh_edge.tables import federations

    async def work(site: Any) -> Any:
        async with site.unit() as uow:
            return await uow.first(select(federations).where(federations.c.federation == federation))

    row = on_site(folder, work)
    if row is None:
        raise Problem("request.not_found", kind="federation", id=federation)
    for line in explain(Plan.model_validate(row.plan), language()):
        click.echo(line)
    click.echo(say(f"Plan hash {row.plan_hash}", f"方案哈希 {row.plan_hash}"))
    return 0


@edge.command()
@FOLDER
@click.argument("federation")
def approve(folder: Path, federation: str) -> int:
    """Approve the code of FEDERATION by its hash; the node then signs the plan, if the policy allows.  批准代码。"""
    from medmesh_edge.consent import approve

    package = on_site(folder, lambda site: approve(site, federation, getpass.getuser()))
    click.echo(say(f"approved {package}", f"已批准 {package}"))
    return 0


@edge.command()
@FOLDER
@click.argument("federation")
@click.option("--reason", default="")
def decline(folder: Path, federation: str, reason: str) -> int:
    """Decline an invitation.  谢绝邀请。"""
    from medmesh_edge.consent import decline

    on_site(folder, lambda site: decline(site, federation, reason))
    click.echo(say("declined", "已谢绝"))
    return 0


@edge.command()
@FOLDER
@click.argument("federation")
@click.option("--reason", default="", help="Told to the initiator.")
@click.option("--yes", is_flag=True, help="Ask nothing.")
def withdraw(folder: Path, federation: str, reason: str, yes: bool) -> int:
    """Leave FEDERATION for good, also after its end.  退出联邦。

    From this moment nothing of this hospital leaves: no update, no count. What it gave to the open round is not used and is deleted.
    What cannot be undone: committed models were averaged with its updates, and models that were released are in use elsewhere; those
    only their owner can withdraw. 已提交的全局模型中已包含的贡献无法取出；已发布的模型须由其所有者撤回。
    """
    from medmesh_edge.consent import withdraw

    if not yes:
        click.confirm(say(f"leave {federation} for good?", f"确定永久退出 {federation}？"), abort=True)
    on_site(folder, lambda site: withdraw(site, federation, reason))
    click.echo(say("withdrawn; nothing of this federation leaves any more", "已退出；不再有任何内容离开本院"))
    return 0


@edge.command()
@FOLDER
@click.argument("model")
@click.option("--held-out/--everything", default=True, show_default=True, help="Only the samples that were never trained on.")
def classify(folder: Path, model: str, held_out: bool) -> int:
    """Classify the hospital's own images with the installed MODEL; results stay here.  本地推理。"""
    from medmesh.serving.repository import Repository
    from medmesh_edge.models import classify

    async def work(site: Any) -> Any:
        return await classify(site, Repository(site.layout.models), model, held_out=True if held_out else None)

    show(on_site(folder, work))
    return 0


@edge.group(name="audit")
def own_audit() -> None:
    """What the platform's log holds about this hospital's data.  本院数据的审计记录。"""


@own_audit.command(name="list")
@FOLDER
@click.option("--entity", help="KIND:ID, for example model:mri-cnn")
@click.option("--verb", help="A verb, or the beginning of one with *")
@click.option("--actor", help="For example person:li")
@click.option("--cursor", help="`next` of the page before.")
@click.option("--limit", default=100, show_default=True)
def list_own(folder: Path, **filters: Any) -> int:
    """Records about this hospital's data, whoever made them.  查询本院记录。"""
    query = {name: value for name, value in filters.items() if value is not None}

    async def work(site: Any) -> Any:
        async with site.gateway() as gateway:
            return await gateway.request("GET", "/v1/audit/events", query=query)

    show(on_site(folder, work))
    return 0


@own_audit.command(name="export")
@FOLDER
@click.argument("copy", type=click.Path(path_type=Path))
def export_own(folder: Path, copy: Path) -> int:
    """Copy the tree and this hospital's records into COPY.  导出本院记录。"""
    from medmesh.client.audit import export_log, of_a_hospital

    async def work(site: Any) -> int:
        async with site.gateway() as gateway:
            return await export_log(of_a_hospital(gateway), copy)

    size = on_site(folder, work)
    click.echo(say(f"copied a log of {size} entries", f"已复制，日志共 {size} 条"))
    return 0


@own_audit.command(name="verify")
@FOLDER
@click.argument("copy", type=click.Path(exists=True, file_okay=False, path_type=Path))
def verify_own(folder: Path, copy: Path) -> int:
    """Verify COPY by the pinned roster: nothing altered, forked or forged, and nothing about this hospital withheld.  验证。

    The roster says which log and which witnesses; what is verified is kept, and the next copy must contain it. Ends with 0 when it is
    whole, 1 when something was altered or withheld, 2 when it cannot be read.
    """
    from medmesh.auditing.signatures import Signatures
    from medmesh.client.audit import withheld
    from medmesh.ledger.copies import Folder
    from medmesh.ledger.verify import Wanted, verify_log

    async def work(site: Any) -> tuple[Any, str, Path]:
        return site.roster(), site.settings.hospital, site.layout.checkpoint

    roster, hospital, seen = on_site(folder, work)
    kept = seen.read_bytes() if seen.exists() else None
    signatures = Signatures(roster, whole=False)
    try:
        report = verify_log(Folder(copy), Wanted(roster.log_policy(), partial=True, kept=kept, inspect=signatures.inspect))
        if report.verified and (missing := withheld(copy, hospital)):
            report.fault("withheld", Problem("audit.withheld", seq=missing[0], records=len(missing), hospital=hospital))
    except (Problem, OSError, ValueError) as error:
        click.secho(str(error), fg="red", err=True)
        return 2
    for fault in report.faults:
        click.secho(f"{fault.check}: {fault.problem.detail(language())}", fg="red")
    if report.verified:
        shown = f"whole, unaltered, nothing withheld: {report.bodies} of {report.size} records are about this hospital"
        click.secho(say(shown, f"完整、未被篡改、无隐瞒：{report.size} 条记录中 {report.bodies} 条涉及本院"), fg="green")
        files.write(seen, report.note.decode())
    return report.code


@edge.command()
@FOLDER
def status(folder: Path) -> int:
    """What the running node says of itself.  节点状态。"""
    import httpx

    from medmesh_edge.settings import Layout

    try:
        port = Layout(folder.absolute()).port.read_text().strip()
        show(httpx.get(f"http://127.0.0.1:{port}/v1/status", trust_env=False, timeout=5).json())
    except (OSError, httpx.HTTPError, json.JSONDecodeError):
        raise Problem("edge.not_running", folder=folder) from None
    return 0


@edge.command()
@FOLDER
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen, when the witness is made.")
@click.option("--port", default=8460, show_default=True, help="At which port, when it is made.")
@click.option("--key-only", is_flag=True, help="Make it, print its key and end.")
def witness(folder: Path, host: str, port: int, key_only: bool) -> int:
    """Be a witness of the platform's audit log, beside the node and in its folder.  担任审计日志见证方。"""
    from medmesh.cli.witness import serve, tell
    from medmesh.witness.site import create, load
    from medmesh_edge.settings import Layout, Settings

    place = folder.absolute() / "witness"
    if not (place / "witness.key").exists():
        settings = Settings.load(folder.absolute())
        log = json.loads(Layout(folder.absolute()).trust.read_text())["log_key"]
        tell(create(place, f"{settings.hospital}/witness", [log], host=host, port=port))
    elif key_only:
        tell(load(place))
    return 0 if key_only else serve(load(place))


@edge.command()
@FOLDER
def doctor(folder: Path) -> int:
    """Look for what is amiss and say whom to ask.  诊断。"""
    from medmesh_edge.doctor import examine

    worst = 0
    for finding in asyncio.run(examine(folder.absolute())):
        mark, colour = {0: ("ok", "green"), 1: ("--", "yellow"), 2: ("!!", "red")}[finding.level]
        click.secho(f" {mark} ", fg=colour, nl=False)
        click.echo(say(finding.en, finding.zh))
        worst = max(worst, finding.level)
    return 1 if worst == 2 else 0


for command in (forget, forget_approve, forgettings, trace, escrow):
    edge.add_command(command)
