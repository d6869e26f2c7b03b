"""`medmesh edge audit`: this hospital's view of the platform's log, copied and verified.  本院审计。"""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import click

from medmesh.cli import language, say
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show
from medmesh.embedded import files
from medmesh.errors import Problem


@click.group(name="audit")
def own_audit() -> None:
    """What the platform's log holds about this hospital's data.  本院数据的审计记录。"""


@own_audit.command(name="list")
@FOLDER
@click.option("--entity", help="KIND:ID, for example model:mri-cnn  类型:标识，例如 model:mri-cnn。")
@click.option("--verb", help="A verb, or the beginning of one with *  动词，或以 * 结尾的动词开头。")
@click.option("--actor", help="For example person:li  例如 person:li。")
@click.option("--cursor", help="`next` of the page before.  上一页的 `next`。")
@click.option("--limit", default=100, show_default=True)
def list_own(folder: Path, **filters: Any) -> int:
    """Records about this hospital's data, whoever made them.

    查询与本院数据有关的记录，不论由谁产生。
    """
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
    """Copy the tree and this hospital's records into COPY.

    将日志树与本院的记录复制到 COPY。
    """
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
    """Verify COPY by the pinned roster: nothing altered, forked or forged, and nothing about this hospital withheld.

    按固定的名册验证 COPY：无篡改、分叉或伪造，且未隐瞒与本院有关的内容。

    The roster says which log and which witnesses; what is verified is kept, and the next copy must contain it. Ends with 0 when it is
    whole, 1 when something was altered or withheld, 2 when it cannot be read.

    名册指明是哪一日志、哪些见证方；已验证的内容会保存，下一份副本必须包含它。完整时退出码为 0，有篡改或隐瞒为 1，无法读取为 2。
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


@own_audit.command()
@FOLDER
@click.argument("file", type=click.File("w"), default="-")
def proof(folder: Path, file: Any) -> int:
    """The newest checkpoint this node saw, as the log signed it, and one that contradicts it: both are a proof.

    本节点所见的最新检查点（由日志签名），以及与之矛盾的检查点：二者合为证据。
    """
    from medmesh_edge import continuity

    row = on_site(folder, continuity.present)
    if row is None:
        raise Problem("edge.log_unseen")
    file.write("\n".join(filter(None, (row.note, row.shown))))
    return 1 if row.fault else 0


@own_audit.command()
@FOLDER
def forgive(folder: Path) -> int:
    """Go on with the platform's log as it is shown from now on, after somebody explained why it changed. Recorded.

    有人说明日志为何变化之后，以现在所示的平台日志继续。此操作留有记录。
    """
    from medmesh_edge import continuity

    async def work(site: Any) -> None:
        await continuity.forgive(site, getpass.getuser())

    on_site(folder, work)
    click.echo(say("recorded; the log as it is shown next is the beginning", "已记录；以下一次所示日志为起点"))
    return 0
