"""`medmesh edge`: the hospital's node. Everything it does for people works on its folder, also while the node runs.  医院边缘节点。"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.edge.audit import own_audit
from medmesh.cli.edge.dicom import dicom
from medmesh.cli.edge.dicomweb import dicomweb
from medmesh.cli.edge.escrow import escrow
from medmesh.cli.edge.ethics import ethics
from medmesh.cli.edge.federation import approve, decline, list_federations, open_invitation, show_plan, withdraw
from medmesh.cli.edge.ingest import ingest
from medmesh.cli.edge.patients import forget, forget_approve, forgettings, readmit, trace
from medmesh.cli.edge.pipelines import pipelines
from medmesh.cli.edge.policy import site_policy
from medmesh.cli.edge.privacy import ledger
from medmesh.cli.edge.quality import quality
from medmesh.cli.edge.roster import own_key, own_roster, tell_key
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.edge.text import text
from medmesh.cli.edge.timeline import timeline
from medmesh.cli.session import show
from medmesh.errors import Problem


@click.group()
def edge() -> None:
    """The hospital's node: data stay here.  医院边缘节点：数据不出院。

    Everything works on the node's folder (--folder, or $MEDMESH_EDGE), also while the node runs. docs/hospital/node.md goes through it.

    所有命令均作用于节点目录（--folder 或 $MEDMESH_EDGE），节点运行时亦可使用。全过程见 docs/hospital/node.md。

    \b
    medmesh edge enrol --gateway URL --ca ca.pem --hospital renji    once
    medmesh edge ingest /data/mri --dataset brain-mri --ethics N     take data in, de-identified
    medmesh edge publish brain-mri                                   tell rounded counts, nothing else
    medmesh edge run                                                 serve federations; give it to systemd
    medmesh edge federations                                         who invites, and what became of it
    medmesh edge show FEDERATION                                     what would run, and what would leave
    medmesh edge approve FEDERATION                                  or decline; at any moment: withdraw
    medmesh edge doctor                                              what is amiss, and whom to ask

    \b
    medmesh edge enrol --gateway URL --ca ca.pem --hospital renji    注册，一次
    medmesh edge ingest /data/mri --dataset brain-mri --ethics N     导入数据并去标识
    medmesh edge publish brain-mri                                   仅公布取整后的数量
    medmesh edge run                                                 参与联邦；建议交给 systemd
    medmesh edge federations                                         谁发来邀请，结果如何
    medmesh edge show FEDERATION                                     会运行什么、什么会离开医院
    medmesh edge approve FEDERATION                                  或 decline；任何时刻：withdraw
    medmesh edge doctor                                              有何异常，该找谁
    """


edge.add_command(dicomweb)
edge.add_command(own_key)
edge.add_command(own_roster)
edge.add_command(ledger)
edge.add_command(site_policy)
edge.add_command(ingest)
edge.add_command(quality)
edge.add_command(pipelines)
edge.add_command(ethics)
edge.add_command(text)
edge.add_command(timeline)


@edge.command()
@FOLDER
@click.option(
    "--wait",
    default=0.0,
    show_default=True,
    help="Seconds to wait for approval, which an expired certificate needs.  等待审批的秒数；证书过期时须审批。",
)
def renew(folder: Path, wait: float) -> int:
    """Renew this node's certificate now; a running node does so by itself.

    立即更新本节点的证书；运行中的节点会自动更新。
    """
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
@click.option(
    "--ca",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Handed over with the code, not downloaded.  与注册码一同交付的 CA 文件，不得下载。",
)
@click.option("--hospital", required=True)
@click.option("--node", default="node-1", show_default=True)
@click.option("--code", prompt=True, help="The one-time code from the platform.  平台发放的一次性注册码。")
@click.option("--proxy", metavar="URL", help="HTTP proxy for everything that goes out.  所有外发连接使用的 HTTP 代理。")
@click.option("--port", default=0, help="Port of the local page; 0 takes a free one.  本地页面端口；0 为任意空闲端口。")
@click.option("--wait", default=86_400.0, show_default=True, help="Seconds to wait for approval.  等待审批的秒数。")
@click.option(
    "--roster",
    metavar="DIGITS|FILE",
    help="The roster's fingerprint, as read to you, or its file. Later: edge roster."
    "  名册的指纹（经口头核对）或其文件。之后可用 edge roster。",
)
@click.option(
    "--organisation-key",
    type=click.Path(exists=True, path_type=Path),
    help="The hospital's, for a further node.  医院自己的密钥，用于增设节点。",
)
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
    """Enrol this node: keys and request are made here, a second person approves at the platform.

    注册本节点：密钥与证书申请在本机生成，由平台的第二人批准。

    Two keys are made: the node's, for its certificate, which renews; and the hospital's own, which signs what it accepts. Read the
    fingerprint of the second to the keepers of the roster.

    将生成两把密钥：节点密钥用于证书，会自动更新；医院自己的密钥用于签署其接受的内容。请将后者的指纹读给名册保管人核对。
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
@click.option(
    "--host",
    help="Where the local page listens; 127.0.0.1 unless the settings say otherwise.  本地页面监听地址；默认 127.0.0.1，可由设置更改。",
)
@click.option("--port", type=int, help="Its port.  其端口。")
def run(folder: Path, host: str | None, port: int | None) -> int:
    """Run the node in the foreground, until Ctrl-C.

    在前台运行本节点，直至 Ctrl-C。

    It dials out to the platform, answers invitations as policy.toml and people here decided, trains when a round opens, and shows a page at
    http://127.0.0.1:PORT (PORT is in edge.port of its folder). It may be stopped at any moment: what was trained is on the disk and goes on
    from there.

    节点主动连接平台，按 policy.toml 与本院人员的决定答复邀请，轮次开始时训练，并在 http://127.0.0.1:端口 显示页面
    （端口见目录中的 edge.port）。可随时停止：训练结果已存盘，重启后继续。
    """
    import uvloop

    from medmesh_edge.node import run as run_node

    uvloop.run(run_node(folder.absolute(), host, port))
    return 0


@edge.command()
@FOLDER
@click.argument("dataset")
@click.option(
    "--within",
    is_flag=True,
    help="Only people of this hospital see it; everybody on the platform does otherwise.  仅本院人员可见；默认平台上所有人可见。",
)
@click.option(
    "--timeline",
    "project",
    default="",
    help="Also how many are ill with what, from this project's timelines.  另附该项目时间轴中各病种的患者数。",
)
def publish(folder: Path, dataset: str, within: bool, project: str) -> int:
    """Tell the platform how much of what is there: rounded counts only, and none of few patients.

    告知平台各类数据有多少：只含取整后的计数，患者过少的不公布。

    Others find it with medmesh dataset catalogue. Published again, what the patients are ill with is told anew.

    他人可用 medmesh dataset catalogue 查到。再次发布时，患者的病种会重新公布。
    """
    from medmesh_edge import described

    show(on_site(folder, lambda site: described.publish(site, dataset, within=within, project=project)).model_dump())
    return 0


@edge.command()
@FOLDER
@click.argument("model")
@click.option(
    "--held-out/--everything",
    default=True,
    show_default=True,
    help="Only the samples that were never trained on.  仅限从未用于训练的样本。",
)
def classify(folder: Path, model: str, held_out: bool) -> int:
    """Classify the hospital's own images with the installed MODEL; results stay here.

    用已安装的模型 MODEL 对本院影像分类，结果不出院。
    """
    from medmesh.serving.repository import Repository
    from medmesh_edge.models import classify

    async def work(site: Any) -> Any:
        return await classify(site, Repository(site.layout.models), model, held_out=True if held_out else None)

    show(on_site(folder, work))
    return 0


@edge.command()
@FOLDER
def status(folder: Path) -> int:
    """What the running node says of itself, as JSON: connection, data sets, federations, rounds, models.

    运行中的节点对自身状态的报告（JSON）：连接、数据集、联邦、轮次、模型。
    """
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
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen, when the witness is made.  创建见证方时的监听地址。")
@click.option("--port", default=8460, show_default=True, help="At which port, when it is made.  创建时监听的端口。")
@click.option("--key-only", is_flag=True, help="Make it, print its key and end.  仅创建并打印其公钥。")
def witness(folder: Path, host: str, port: int, key_only: bool) -> int:
    """Be a witness of the platform's audit log, beside the node and in its folder.

    担任平台审计日志的见证方，与节点并行运行，使用其文件夹。
    """
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
    """Look for what is amiss and say whom to ask.

    检查有何异常，并说明应联系谁。
    """
    from medmesh_edge.doctor import examine

    worst = 0
    for finding in asyncio.run(examine(folder.absolute())):
        mark, colour = {0: ("ok", "green"), 1: ("--", "yellow"), 2: ("!!", "red")}[finding.level]
        click.secho(f" {mark} ", fg=colour, nl=False)
        click.echo(say(finding.en, finding.zh))
        worst = max(worst, finding.level)
    return 1 if worst == 2 else 0


_FEDERATIONS = (list_federations, open_invitation, show_plan, approve, decline, withdraw)
for command in (*_FEDERATIONS, own_audit, forget, forget_approve, forgettings, readmit, trace, escrow, dicom):
    edge.add_command(command)
