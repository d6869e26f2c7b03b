"""`medmesh edge dicom`: what a PACS sends to the node, and what becomes of it.  PACS 直连。"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.edge.pacs import ASKING
from medmesh.cli.edge.quarantine import quarantine
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.edge.tiers import TIERS
from medmesh.cli.session import show


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


for command in (*ASKING, *TIERS, quarantine):
    dicom.add_command(command)
