"""`medmesh edge dicom`: what a PACS sends to the node, what the node asks a PACS for, and what is held back.  PACS 直连。"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from medmesh.cli import language, say
from medmesh.cli.edge.patients import asked_patient
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show
from medmesh.errors import Problem


@click.group()
def dicom() -> None:
    """The node and the hospital's PACS, by DICOM.

    节点与医院 PACS 之间的 DICOM 直连。

    The node receives once there is a dicom.toml in its folder: who may send, from where, for which data set, under which approval. What it
    does not name is turned away. docs/hospital/dicom.md goes through it step by step.

    节点文件夹中有 dicom.toml 后即开始接收：谁可以发送、从何处、归入哪个数据集、依据哪个批件。未列出的一律拒绝。逐步说明见
    docs/hospital/dicom.md。

    \b
    medmesh edge dicom echo pacs                          does it answer, does it know us?
    medmesh edge dicom find pacs -k StudyDate=20260101-   which studies does it have?
    medmesh edge dicom move pacs --study 1.2.3            have it send one to us
    medmesh edge dicom status                             what came, what became of it
    medmesh edge dicom quarantine list                    what was held back, and why
    medmesh edge dicom label labels.csv --dataset ct      what the images show, by the PACS's own numbers
    medmesh edge dicom tiers                              what lies here, what in the cold tier

    \b
    medmesh edge dicom echo pacs                          是否应答，是否认识本院
    medmesh edge dicom find pacs -k StudyDate=20260101-   有哪些检查
    medmesh edge dicom move pacs --study 1.2.3            取回一个检查
    medmesh edge dicom status                             收到了什么，处理结果如何
    medmesh edge dicom quarantine list                    隔离了什么，原因为何
    medmesh edge dicom label labels.csv --dataset ct      按 PACS 的编号加标签
    medmesh edge dicom tiers                              哪些在本机，哪些在冷存储
    """


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


@dicom.command()
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


@dicom.command()
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


@dicom.command()
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

    with click.progressbar(length=1, label=say(f"{len(found)} studies", f"{len(found)} 个检查")) as bar:

        def told(done: int, of: int, counts: Any) -> None:
            bar.length = of
            bar.update(done - bar.pos)

        counts = scu.move_gently(asked, destination or asked.us, found, pause=pause, ready=ready, told=told)
    archive.close()
    show({"studies": len(found), "completed": counts.completed, "failed": counts.failed, "warning": counts.warning})
    return 1 if counts.failed else 0


@dicom.command()
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
    with click.progressbar(length=len(paths), label=say("sent", "已发送")) as bar:
        counts = scu.send(asked, paths, lambda done, of: bar.update(done - bar.pos))
    show({"completed": counts.completed, "failed": counts.failed, "failures": counts.failures})
    return 1 if counts.failed else 0


@dicom.command()
@FOLDER
@click.option("--watch", is_flag=True, help="Again every two seconds, with the rate.  每两秒刷新一次，并显示速率。")
def status(folder: Path, watch: bool) -> int:
    """Where the node receives, how many objects of each data set are in each state, and how many of its studies more may come for:
    what is new of those is used once they are settled.

    节点在何处接收，各数据集各状态的对象数，以及有多少检查可能还有后续影像：检查稳定之后，新到的内容才会使用。
    """
    from medmesh.archive import states
    from medmesh.archive.tables import open_archive
    from medmesh_edge.dicom import port_of
    from medmesh_edge.reception import Reception
    from medmesh_edge.settings import Layout

    layout = Layout(folder.absolute())
    reception = Reception.read(layout.dicom)
    archive = open_archive(layout.archive, read_only=True)
    before, began = -1, time.monotonic()
    try:
        while True:
            counts = states.counts(archive)
            through = sum(number for found in counts.values() for state, number in found.items() if state in ("cleaned", "quarantined"))
            port, tls_port = port_of(layout.folder), port_of(layout.folder, tls=True)
            document: dict[str, Any] = {"host": reception.host, "port": port, "tls_port": tls_port}
            document |= {"accepts": len(reception.accept), "objects": counts, "unsettled": states.unsettled(archive)}
            if before >= 0:
                document["per_second"] = round((through - before) / (time.monotonic() - began), 1)
            show(document)
            if not watch:
                break
            before, began = through, time.monotonic()
            time.sleep(2)  # --watch: how often a person is shown it anew
    finally:
        archive.close()
    if reception.tls is not None:
        reception.tls.context(layout.folder)  # what is wrong with it
    if port is None and tls_port is None:
        click.secho(say("The node does not receive: is it running?", "节点未在接收：是否已运行？"), fg="yellow", err=True)
    return 0


@dicom.command()
@FOLDER
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dataset", required=True)
def label(folder: Path, file: Path, dataset: str) -> int:
    """Say by FILE (CSV) what images and volumes of a data set show that a PACS sent.

    用 FILE（CSV）说明 PACS 发来的某数据集中影像与体数据的标签。

    Columns: label; one of patient, accession, study, series, object, as the PACS has them; and split (train, test), where it is wanted.
    A row is about everything of that patient, study or series in the data set. The numbers stay in the hospital. What came after the file
    was read needs it again; ends with 1 when a row is about nothing that is there.

    列：label；patient、accession、study、series、object 之一，编号与 PACS 一致；需要时另有 split（train、test）。每一行适用于数据
    集中该患者、检查或序列的全部内容。编号不出院。文件读取之后到达的影像需再次提供；某一行无对应内容时退出码为 1。

    \b
    accession,label
    A2026001,tumour
    A2026002,none
    """
    from medmesh_edge.labelling import label as told

    found = on_site(folder, lambda site: told(site, dataset, file.read_bytes()))
    show({"items": found.items, "unknown": found.unknown})
    return 1 if found.unknown else 0


@dicom.command()
@FOLDER
def tiers(folder: Path) -> int:
    """How many originals lie here and in the cold tier, and how many are on their way.

    有多少原始影像在本机、在冷存储、在传输途中。

    Where the cold tier is, and when an object goes there, is said in the node's edge.json; a running node moves them. What is cold is read
    as before, a little slower, and comes back for having been read.

    冷存储的位置与转移时间由节点的 edge.json 指定，由运行中的节点转移。冷存储影像照常读取，只是稍慢，读取后会回到本机。

    \b
    "cold": {"folder": "/mnt/nas/medmesh-cold", "after_days": 180}
    "cold": {"s3_url": "https://s3.hospital", "s3_bucket": "medmesh-cold", "s3_credentials": "/srv/medmesh-edge/secrets/cold.json",
             "after_days": 180, "least_kib": 64, "most_hot_gib": 500}
    """
    from medmesh.archive import tiers as states
    from medmesh.archive.tables import open_archive
    from medmesh_edge import tiering
    from medmesh_edge.settings import Layout, Settings

    folder = folder.absolute()
    settings = Settings.load(folder)
    archive = open_archive(Layout(folder).archive, read_only=True)
    try:
        counts = states.counts(archive)
    finally:
        archive.close()
    document: dict[str, Any] = {"cold": None, "tiers": counts}
    code = 0
    if settings.cold is not None:
        document["cold"] = settings.cold.model_dump(mode="json", exclude_none=True)
        try:
            document["there"] = tiering.cold(settings).mark() is not None
        except Problem as problem:
            document["there"], code = problem.detail(language()), 1
    show(document)
    if settings.cold is None and set(counts) - {"hot"}:
        click.secho(
            say("edge.json names no cold tier, but objects lie in one.", "edge.json 未指定冷存储，但有影像存放在其中。"), fg="red", err=True
        )
        code = 1
    return code


@dicom.command()
@FOLDER
@click.option("--study", metavar="UID", help="Those of one study instance UID.  属于某一检查实例 UID 的影像。")
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="All that is cold: before the cold tier is changed, or given up.  全部冷存储影像：用于更换或停用冷存储之前。",
)
def recall(folder: Path, study: str | None, everything: bool) -> int:
    """Have cold originals come back; a running node fetches them. They can be read meanwhile.

    将冷存储中的原始影像取回，由运行中的节点执行。其间仍可读取。
    """
    from medmesh.archive import tiers as states
    from medmesh.archive.tables import open_archive, transaction
    from medmesh_edge.settings import Layout

    if everything == bool(study):
        raise click.UsageError(say("give --study or --all", "请给出 --study 或 --all"))
    archive = open_archive(Layout(folder.absolute()).archive)
    try:
        with transaction(archive):
            count = states.recall(archive, study)
    finally:
        archive.close()
    click.echo(say(f"{count} objects come back", f"将取回 {count} 个影像"))
    return 0


@dicom.group()
def quarantine() -> None:
    """What was held back: looked at, released or dropped by a person.

    被隔离的内容：由人员查看、放行或删除。

    Stages: receive (the data set does not parse), read, index (a UID or a patient contradicts what is here), deidentify (burned-in text),
    verify (something identifying was left), quality (rules of policy.toml that block), consent, clean, series (its series breaks such a
    rule). Nothing is ever overwritten, and nothing leaves the quarantine by itself but a series that becomes whole.

    阶段：receive（数据集无法解析）、read、index（UID 或患者与已有内容矛盾）、deidentify（像素中有文字）、verify（仍有可识别信息）、
    quality（policy.toml 中的拦截规则）、consent、clean、series（其序列违反此类规则）。已有内容不会被覆盖；除变完整的序列外，任何
    内容都不会自行离开隔离区。
    """


@quarantine.command(name="list")
@FOLDER
@click.option("--stage", default="", help="Of one stage only.  仅此阶段。")
@click.option("--limit", default=100, show_default=True)
def list_held(folder: Path, stage: str, limit: int) -> int:
    """The newest first, with stage and reason.

    列出隔离的对象，最新的在前，附阶段与原因。
    """
    from medmesh.archive import states
    from medmesh.archive.tables import open_archive
    from medmesh_edge.settings import Layout

    archive = open_archive(Layout(folder.absolute()).archive, read_only=True)
    try:
        for one in states.held(archive, stage=stage, limit=limit):
            at = datetime.fromtimestamp(one.at / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
            click.echo(f"{one.id:>8}  {at}  {one.stage:<10} {one.reason:<24} {one.project:<20} {one.calling:<16} {one.address}")
    finally:
        archive.close()
    return 0


@quarantine.command(name="show")
@FOLDER
@click.argument("number", type=int)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write the object there, as it came: it names the patient.  将对象原样写出：其中含患者身份。",
)
def show_held(folder: Path, number: int, out: Path | None) -> int:
    """All that is known of object NUMBER.

    显示编号为 NUMBER 的对象的全部已知信息。
    """
    from dataclasses import asdict

    from medmesh.archive import states
    from medmesh.archive.tables import open_archive

    async def work(site: Any) -> tuple[dict[str, Any], bytes]:
        from medmesh_edge.originals import objects

        archive = open_archive(site.layout.archive, read_only=True)
        try:
            found = states.held_one(archive, number)
            if found is None:
                raise Problem("dicom.not_quarantined", id=number)
            sha256 = archive.execute("SELECT sha256 FROM objects WHERE id = ?", (number,)).fetchone()[0]
            return asdict(found) | {"sha256": sha256}, objects(site).read(sha256) if out is not None else b""
        finally:
            archive.close()

    document, data = on_site(folder, work)
    show(document)
    if out is not None:
        out.touch(mode=0o600)
        out.write_bytes(data)
    return 0


@quarantine.command()
@FOLDER
@click.argument("numbers", type=int, nargs=-1)
@click.option("--stage", help="Instead of numbers: all that is held back at this stage.  不给编号时：该阶段隔离的全部对象。")
def release(folder: Path, numbers: tuple[int, ...], stage: str | None) -> int:
    """Have objects NUMBERS go through the pipeline once more; they are held back again where nothing changed.

    让编号为 NUMBERS 的对象重新经过处理流程；若情况未变，会再次被隔离。

    \b
    medmesh edge dicom quarantine release 17
    medmesh edge dicom quarantine release --stage series     after a rule of policy.toml was changed

    \b
    medmesh edge dicom quarantine release 17
    medmesh edge dicom quarantine release --stage series     policy.toml 的规则更改之后
    """
    from medmesh_edge import review

    if bool(numbers) == bool(stage):
        raise click.UsageError(say("give numbers, or --stage", "请给出编号或 --stage"))

    async def work(site: Any) -> int:
        wanted = review.at_stage(site, stage) if stage else numbers
        for number in wanted:
            await review.release(site, number)
        return len(wanted)

    count = on_site(folder, work)
    click.echo(say(f"released: {count}", f"已放行，重新处理：{count}"))
    return 0


@quarantine.command()
@FOLDER
@click.argument("number", type=int)
@click.confirmation_option(prompt=say("It is destroyed. Go on?", "将永久删除，是否继续？"))
def drop(folder: Path, number: int) -> int:
    """Destroy object NUMBER. The PACS still has it.

    销毁编号为 NUMBER 的对象。PACS 中仍保留。
    """
    from medmesh_edge import review

    on_site(folder, lambda site: review.drop(site, number))
    click.echo(say("dropped", "已删除"))
    return 0
