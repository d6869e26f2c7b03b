"""In `medmesh edge dicom`: what the node asks a PACS for, and sends to it.  查询、取回与发送。"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.edge.patients import asked_patient
from medmesh.cli.edge.site import FOLDER
from medmesh.cli.progress import progress
from medmesh.cli.session import show


def _peer(folder: Path, name: str) -> Any:
    from medmesh.dimse.scu import Peer
    from medmesh_edge.reception import Reception
    from medmesh_edge.settings import Layout

    layout = Layout(folder.absolute())
    reception = Reception.read(layout.dicom)
    found = reception.named(name)
    secured = None if found.tls is None else found.tls.context(layout.folder)
    return Peer(found.title, found.host, found.port, reception.title, secured, "" if found.tls is None else found.tls.name)


def _keys(pairs: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        keyword, sign, value = pair.partition("=")
        if not sign:
            raise click.UsageError(say(f"{pair}: KEYWORD=VALUE is needed", f"{pair}：应为 关键字=值"))
        found[keyword.strip()] = value.strip()
    return found


KEYS = click.option(
    "-k",
    "--key",
    "keys",
    multiple=True,
    metavar="KEYWORD=VALUE",
    help="A DICOM keyword; * and ? match, dates as A-B.  DICOM 关键字；可用 * 与 ? 通配，日期范围写作 A-B。",
)
PATIENT = click.option(
    "--patient",
    is_flag=True,
    help="Ask for the patient ID: on a command line every account could read it.  交互输入患者编号：写在命令行上会被其他账户看到。",
)


@click.command()
@FOLDER
@click.argument("peer")
def echo(folder: Path, peer: str) -> int:
    """C-ECHO: whether PEER, a name of dicom.toml, answers and knows us, and how it is spoken to.

    发送 C-ECHO：测试 PEER（dicom.toml 中的名称）是否应答、是否认识本院，以及以何种方式通信。

    With [peer.tls] in dicom.toml that is over TLS and never in the clear: what is wrong with a certificate is said here.

    若 dicom.toml 中有 [peer.tls]，则使用 TLS，绝不明文传输；证书的问题会在此说明。
    """
    from medmesh.dimse import scu

    asked = _peer(folder, peer)
    milliseconds = scu.echo(asked)
    way = say("in the clear", "明文")
    if asked.tls is not None and (seen := asked.tls.seen) is not None:
        way = say(
            f"over {seen.version}, its certificate ends on {seen.until:%Y-%m-%d}", f"{seen.version}，对方证书有效期至 {seen.until:%Y-%m-%d}"
        )
    click.echo(say(f"{peer} answers ({milliseconds:.0f} ms), {way}", f"{peer} 应答正常（{milliseconds:.0f} 毫秒），{way}"))
    return 0


@click.command()
@FOLDER
@click.argument("peer")
@click.option("--level", type=click.Choice(("study", "series", "image")), default="study", show_default=True)
@KEYS
@PATIENT
@click.option("--limit", default=200, show_default=True, help="Show no more than these.  最多显示条数。")
def find(folder: Path, peer: str, level: str, keys: tuple[str, ...], patient: bool, limit: int) -> int:
    """C-FIND: what PEER has, for the hospital's own eyes; nothing is kept.

    发送 C-FIND：查询 PEER 有哪些内容，仅供本院查看，不保存。

    \b
    medmesh edge dicom find pacs -k ModalitiesInStudy=MR -k StudyDate=20260101-20260131
    medmesh edge dicom find pacs --level series -k StudyInstanceUID=1.2.3
    """
    from itertools import islice

    from medmesh.dimse import scu

    wanted = _keys(keys) | ({"PatientID": asked_patient()} if patient else {})
    show(list(islice(scu.find(_peer(folder, peer), level.upper(), wanted), limit)))
    return 0


@click.command()
@FOLDER
@click.argument("peer")
@click.option("--study", "studies", multiple=True, metavar="UID", help="A study instance UID; may be given again.  检查实例 UID；可重复。")
@KEYS
@PATIENT
@click.option(
    "--to",
    "destination",
    help="The AE title to send to, as PEER knows it; `title` of dicom.toml by default."
    "  PEER 所知的接收端 AE 标题；默认为 dicom.toml 中的 `title`。",
)
@click.option(
    "--pause",
    default=1.0,
    show_default=True,
    help="Seconds between series: a PACS works for the wards first.  序列之间的间隔秒数：PACS 应优先服务临床。",
)
@click.option(
    "--waiting",
    default=2000,
    show_default=True,
    help="Ask for no more while so many objects wait for the pipeline.  待处理对象达到此数时暂停请求。",
)
def move(
    folder: Path,
    peer: str,
    studies: tuple[str, ...],
    keys: tuple[str, ...],
    patient: bool,
    destination: str | None,
    pause: float,
    waiting: int,
) -> int:
    """C-MOVE: have PEER send studies to this node, a series at a time.

    发送 C-MOVE：让 PEER 将检查发送到本节点，每次一个序列。

    Those named by --study, or all that --key and --patient find. What is here already is known and costs the transfer alone. PEER must
    know the destination's address and port (0xA801 else), and dicom.toml must accept it from there.

    发送 --study 指定的检查，或 --key 与 --patient 查到的全部检查。本院已有的只耗费传输。PEER 必须知道目的地的地址与端口（否则报
    0xA801），且 dicom.toml 必须允许其发送。
    """
    from medmesh.archive import states
    from medmesh.archive.tables import open_archive
    from medmesh.dimse import scu
    from medmesh_edge.settings import Layout

    asked = _peer(folder, peer)
    wanted = _keys(keys) | ({"PatientID": asked_patient()} if patient else {})
    if not studies and not wanted:
        raise click.UsageError(say("name studies by --study, --key or --patient", "请用 --study、--key 或 --patient 指定检查"))
    found = list(studies) or [one["StudyInstanceUID"] for one in scu.find(asked, "STUDY", wanted) if one.get("StudyInstanceUID")]
    archive = open_archive(Layout(folder.absolute()).archive, read_only=True)

    def ready() -> bool:
        return sum(state.get("received", 0) for state in states.counts(archive).values()) < waiting

    with progress(say(f"{len(found)} studies", f"{len(found)} 个检查")) as told:
        counts = scu.move_gently(asked, destination or asked.us, found, pause=pause, ready=ready, told=told)
    archive.close()
    show({"studies": len(found), "completed": counts.completed, "failed": counts.failed, "warning": counts.warning})
    return 1 if counts.failed else 0


@click.command()
@FOLDER
@click.argument("peer")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
def send(folder: Path, peer: str, source: Path) -> int:
    """C-STORE: send SOURCE, a DICOM file or a folder of them, to PEER.

    发送 C-STORE：将 SOURCE（DICOM 文件或文件夹）发送到 PEER。
    """
    from medmesh.dimse import scu

    asked = _peer(folder, peer)
    paths = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    with progress(say("sent", "已发送")) as told:
        counts = scu.send(asked, paths, told)
    show({"completed": counts.completed, "failed": counts.failed, "failures": counts.failures})
    return 1 if counts.failed else 0


ASKING = (echo, find, move, send)
