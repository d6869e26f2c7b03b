"""`medmesh edge ingest`: whatever file the hospital has becomes part of a data set of its node.  导入数据。"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.edge.ethics import ETHICS
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.progress import progress
from medmesh.cli.session import show

EXPLAINED = 20
"""Reasons that are told at the terminal."""


@click.command()
@FOLDER
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--dataset", required=True)
@ETHICS
@click.option(
    "--modality", default="", help="Of files that do not say it: MR, CT, ECG, EEG, AU ...  未自带检查类型的文件：MR、CT、ECG、EEG、AU 等。"
)
@click.option(
    "--table",
    type=click.Path(exists=True, path_type=Path),
    help="CSV files are the table of this training package.  CSV 文件是该训练包所用的表格。",
)
@click.option(
    "--columns",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What the columns of the CSV files mean.  CSV 各列的含义。",
)
@click.option("--volumes", is_flag=True, help="DICOM files of one series are one volume.  同一序列合为一个三维体数据。")
@click.option("--dry-run", is_flag=True, help="Say what would become of each file; write nothing.  仅预览各文件的处理结果，不写入。")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the files left out, and why, there (CSV).  未导入的文件及原因。",
)
@click.option("--json", "as_json", is_flag=True, help="No progress, JSON alone.  不显示进度，仅输出 JSON。")
def ingest(
    folder: Path,
    source: Path,
    dataset: str,
    ethics: str,
    modality: str,
    table: Path | None,
    columns: Path | None,
    volumes: bool,
    dry_run: bool,
    report: Path | None,
    as_json: bool,
) -> int:
    """Take in SOURCE, a folder, an archive or a file, de-identified.

    导入 SOURCE（文件夹、归档或文件），并去标识化。

    Files are known by their content: DICOM, PNG, JPEG, NIfTI, NumPy, WFDB, EDF, BDF, WAV, plain text; CSV with --table and --columns.
    labels.csv in SOURCE says of each file (by name or path): file,label[,split][,patient][,modality][,name]. A DICOM object says itself
    whose it is; any other file needs `patient` there, or a folder sub-<patient>. Notes in which rules doubt whether somebody is named
    wait for a person (medmesh edge text); `name` holds the patient's names, to be found in them. Of a table only columns that the
    hospital's own file names are read (docs/tutorial/heart-disease.md). With --volumes a DICOM series is one item, labelled by the name of
    any of its files, and an object of several frames is one by itself; plans call it volume:CT, where images of it are CT. Either way a
    series that breaks a rule of the data set, such as missing slices, is left out as a whole (medmesh edge quality --help).

    按内容识别文件：DICOM、PNG、JPEG、NIfTI、NumPy、WFDB、EDF、BDF、WAV、纯文本；CSV 须给出 --table 与 --columns。SOURCE 中的
    labels.csv 按名称或路径说明各文件：file,label[,split][,patient][,modality][,name]。DICOM 对象自带患者信息；其他文件须填
    `patient`，或放在 sub-<patient> 文件夹中。规则无法确定是否指名某人的文本等待人工复核（medmesh edge text）；`name` 列为需要查找
    的患者姓名。表格只读取医院文件所列的列（docs/tutorial/heart-disease.md）。使用 --volumes 时，一个 DICOM 序列为一项，以其任一文
    件名加标签，多帧对象自成一项；方案中称 volume:CT，单幅影像则为 CT。无论哪种方式，违反数据集规则（如缺层）的序列整体不导入（
    medmesh edge quality --help）。

    \b
    medmesh edge ingest /data/ecg --dataset ecg --ethics 2026-17 --dry-run
    medmesh edge ingest /data/ecg --dataset ecg --ethics 2026-17 --report left-out.csv
    """
    from medmesh_edge import intake, tabular

    if (table is None) != (columns is None):
        raise click.UsageError(say("a table needs --table and --columns", "导入表格需同时给出 --table 和 --columns"))

    async def work(site: Any) -> Any:
        with progress(dataset, hidden=as_json) as told:
            options: dict[str, Any] = {"ethics": ethics, "modality": modality, "dry_run": dry_run, "progress": told}
            if table is not None and columns is not None:
                return await tabular.ingest(site, source, columns, tabular.schema_of(table), dataset, **options)
            return await intake.ingest(site, source, dataset, series=volumes, **options)

    found = on_site(folder, work)
    if found.held and not dry_run:
        said = say(
            f"{found.held} notes wait for a person: medmesh edge text list", f"{found.held} 份文本待人工复核：medmesh edge text list"
        )
        click.secho(said, fg="yellow", err=True)
    if report is not None:
        _write(report, [(one.name, *reason) for one in found.left_out for reason in one.reasons])
    if not as_json:
        _explain([reason for one in found.left_out for reason in one.reasons], listed=report is not None)
    counts = {
        "held": found.held,
        "rejected": dict(found.rejected),
        "quality": dict(found.quality),
        "kinds": dict(found.kinds),
        "cleared": dict(found.said),
    }
    if dry_run:
        show({"dry_run": True, "would_store": found.stored, "known": found.known, **counts})
    else:
        show({"stored": found.stored, "known": found.known, **counts})
    return 0


def _explain(reasons: Iterable[tuple[str, str, str]], *, listed: bool) -> None:
    """Why files were left out, the most frequent first; which ones is told to nobody but a report."""
    every = Counter(reasons)
    for (code, en, zh), count in every.most_common(EXPLAINED):
        click.secho(say(f"left out, {count}: {en} [{code}]", f"未导入 {count} 个：{zh} [{code}]"), fg="yellow", err=True)
    if (rest := len(every) - EXPLAINED) > 0:
        click.secho(say(f"left out for {rest} other reasons", f"另有 {rest} 种未导入原因"), fg="yellow", err=True)
    if every and not listed:
        click.echo(say("which files: --report FILE", "查看具体文件：--report 文件"), err=True)


def _write(path: Path, rows: list[tuple[str, str, str, str]]) -> None:
    """Names of files name patients: for its owner alone. With a mark of UTF-8, as spreadsheets ask for it."""
    made = io.StringIO(newline="")
    csv.writer(made, lineterminator="\n").writerows([("file", "code", "reason", "原因"), *rows])
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8-sig") as file:
        file.write(made.getvalue())
