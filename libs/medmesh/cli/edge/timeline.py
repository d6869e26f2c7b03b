"""`medmesh edge timeline`: what happened to the hospital's patients and when, from whatever system tells it.  患者时间轴。"""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Any

import click

from medmesh.cli import language, say
from medmesh.cli.edge.ethics import ETHICS
from medmesh.cli.edge.patients import asked_patient
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show as shown

PROJECT = click.option(
    "--project", default="timeline", show_default=True, help="Whose timelines; each project has its own.  哪个项目的时间轴；各项目独立。"
)
AUTHORITY = click.option(
    "--authority", default="", help="Who gave the patient number; the hospital itself by default.  患者编号的发放机构；默认本院。"
)


@click.group()
def timeline() -> None:
    """The patients' timelines: events of every kind in order of time, under pseudonyms.

    患者时间轴：各类事件按时间排列，使用假名。
    """


@timeline.command(name="import")
@FOLDER
@PROJECT
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--format",
    "reader",
    help="fhir, hl7, omop, mimic or dicom; found by content otherwise.  fhir、hl7、omop、mimic 或 dicom；默认按内容识别。",
)
@ETHICS
@click.option(
    "--dry-run", is_flag=True, help="Say what would be taken in and what is amiss; write nothing.  仅预览可导入的内容与问题，不写入。"
)
def take_in(folder: Path, project: str, source: Path, reader: str | None, ethics: str, dry_run: bool) -> int:
    """Take in SOURCE: FHIR R4, HL7 v2, OMOP CDM, MIMIC-III or DICOM; a file, a folder or an archive.

    导入 SOURCE：FHIR R4、HL7 v2、OMOP CDM、MIMIC-III 或 DICOM；可为文件、文件夹或归档。

    What was taken in before is known again, what was corrected becomes a further revision. Each fault is told with its file and line.

    曾导入的内容会被识别，更正的内容成为新修订。每个错误都指明文件与行号。
    """
    from medmesh_edge import timeline as work

    def progress(events: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{events}", nl=False, err=True)

    outcome = on_site(
        folder, lambda site: work.ingest(site, source, project, reader=reader, ethics=ethics, dry_run=dry_run, progress=progress)
    )
    shown(outcome.document(language()))
    return 1 if outcome.report.severities["error"] else 0


@timeline.command()
@FOLDER
@PROJECT
@AUTHORITY
@click.option("--limit", default=200, show_default=True, help="How many events, the newest ones.  显示多少条最新事件。")
def show(folder: Path, project: str, authority: str, limit: int) -> int:
    """One patient's events in order, on the shifted axis; asks for the patient number.

    按顺序显示一名患者的事件，时间轴已平移；交互输入患者编号。

    That somebody looked is recorded.

    查看会留有记录。
    """
    from medmesh.timeline.events import Identity
    from medmesh_edge import timeline as work

    events = on_site(folder, lambda site: work.show(site, project, Identity(authority, asked_patient())))
    if len(events) > limit:
        click.echo(say(f"the newest {limit} of {len(events)}", f"共 {len(events)} 条，显示最新 {limit} 条"), err=True)
    for one in events[-limit:]:
        time = f"{one.time:%Y-%m-%d %H:%M}" if one.time else " " * 16
        value = " ".join(str(part) for part in (one.numeric_value, one.unit, _line(one.text_value)) if part is not None)
        click.echo(f"{time}  {one.code:<40}  {value}".rstrip())
    return 0


def _line(text: str | None) -> str | None:
    return None if text is None else " ".join(text.split())[:80]


@timeline.command()
@FOLDER
@AUTHORITY
@click.option("--undo", is_flag=True, help="Take an earlier merge of the two back.  撤销先前对二者的合并。")
def merge(folder: Path, authority: str, undo: bool) -> int:
    """Say that two patient numbers are one person; asks for the one that goes on, then for the other.

    确认两个患者编号属于同一人；先输入保留的编号，再输入另一个。

    The events stay each under its own number, so that a merge is taken back without a trace.

    事件仍各自保留在原编号下，因此合并可以完全撤销。
    """
    from medmesh.timeline.events import Identity
    from medmesh_edge import timeline as work

    async def run(site: Any) -> None:
        survivor, loser = Identity(authority, asked_patient()), Identity(authority, asked_patient())
        await work.join(site, survivor, loser, undone=undo)

    on_site(folder, run)
    click.echo(say("taken back", "已撤销") if undo else say("merged", "已合并"))
    return 0


@timeline.command()
@FOLDER
@PROJECT
@click.argument("name", required=False)
@click.option(
    "--define",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Save the definition in this JSON file first.  先保存该 JSON 文件中的定义。",
)
@click.option("--version", "number", type=int, help="An earlier version; the newest by default.  较早的版本；默认最新版。")
@click.option(
    "--members",
    is_flag=True,
    help="List the samples, which never leave: subject, index time, prediction time, label."
    "  列出样本（不出院）：对象、索引时间、预测时间、标签。",
)
def cohort(folder: Path, project: str, name: str | None, file: Path | None, number: int | None, members: bool) -> int:
    """How many are in the cohort NAME, and why others are not; small counts are hidden.

    队列 NAME 中有多少人，其他人为何不在其中；小数目隐藏。

    A definition that changed is a new version; versions never change. See docs/tutorial/timeline.md.

    定义更改后即为新版本，已有版本不变。见 docs/tutorial/timeline.md。
    """
    from medmesh_edge import timeline as work

    async def run(site: Any) -> Any:
        asked, version = name, number
        if file is not None:
            definition, version = await work.define(site, project, file.read_bytes())
            asked = definition.name
        if asked is None:
            raise click.UsageError(say("name a cohort, or give a file with --define", "请给出队列名称，或用 --define 指定文件"))
        return await work.ask(site, project, asked, version)

    answer = on_site(folder, run)
    if not members:
        shown(answer.told())
        return 0
    for one in answer.members:
        click.echo("\t".join(str(part) for part in (one.subject_id, one.index_time, one.prediction_time, one.label)))
    return 0


@timeline.command()
@FOLDER
@PROJECT
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--cohort", "name", help="Only the patients of this cohort, with its labels.  仅该队列的患者，并附其标签。")
@click.option(
    "--texts",
    is_flag=True,
    help="With what people wrote. It is not searched for names: keep it inside the hospital.  含人工书写的文字。未查找姓名，请勿带出医院。",
)
def export(folder: Path, project: str, target: Path, name: str | None, texts: bool) -> int:
    """Write the timelines into the new folder TARGET as MEDS 0.4, with Croissant metadata.

    将时间轴按 MEDS 0.4 导出到新文件夹 TARGET，附 Croissant 元数据。
    """
    from medmesh_edge import timeline as work

    done = on_site(folder, lambda site: work.export(site, target.absolute(), project, cohort=name, texts=texts))
    shown(
        {"events": done.events, "patients": done.subjects, "splits": dict(done.splits), "codes": len(done.codes), "files": len(done.files)}
    )
    return 0


@timeline.command()
@FOLDER
@PROJECT
@click.argument("vocabulary", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--system",
    default="ICD-10-CN",
    show_default=True,
    help="The code system of the list, unless it has a column that says so.  该列表的编码体系；列表自带该列时可省略。",
)
def codes(folder: Path, project: str, vocabulary: Path, system: str) -> int:
    """Suggest codes of the list VOCABULARY (CSV: code,term) for what the hospital calls things.

    为本院的叫法推荐编码，取自列表 VOCABULARY（CSV：code,term）。

    Nothing is changed: what is right is confirmed with medmesh edge timeline confirm.

    不作任何更改：正确的推荐用 medmesh edge timeline confirm 确认。
    """
    from medmesh.timeline import terms
    from medmesh_edge import timeline as work

    wanted = terms.read(vocabulary, system)
    for code, number, found in on_site(folder, lambda site: work.suggest(site, project, wanted)):
        click.echo(f"{number:>8}  {code}")
        for one in found:
            click.echo(f"          {one.score:.2f}  {one.term.system}  {one.term.code}  {one.term.term}")
    return 0


@timeline.command()
@FOLDER
@PROJECT
@click.argument("local")
@click.argument("code", required=False, default="")
@click.option("--system", default="ICD-10-CN", show_default=True, help="The code system of CODE.  CODE 所属的编码体系。")
def confirm(folder: Path, project: str, local: str, code: str, system: str) -> int:
    """Say that the code LOCAL means CODE; without CODE an earlier confirmation is taken back.

    确认本院编码 LOCAL 即为 CODE；不给 CODE 则撤销先前的确认。

    The events are read under the standard code from then on, those that come later too. What was taken in is not altered.

    此后事件按标准编码读取，包括以后到达的。已导入的内容不变。
    """
    from medmesh_edge import timeline as work

    click.echo(on_site(folder, lambda site: work.confirm(site, project, local, system, code, getpass.getuser())))
    return 0


@timeline.command()
@FOLDER
@PROJECT
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--lang", type=click.Choice(("en", "zh")), help="The terminal's by default.  默认与终端语言一致。")
def card(folder: Path, project: str, target: Path, lang: str | None) -> int:
    """Write the data card of the timelines to TARGET: a .html or .md file, after YY/T 1833.2.

    将时间轴的数据集说明卡写入 TARGET：.html 或 .md 文件，依据 YY/T 1833.2。
    """
    from medmesh_edge import timeline as work

    made = on_site(folder, lambda site: work.card(site, project, lang or language(), page=target.suffix.lower() != ".md"))
    target.write_text(made, encoding="utf-8")
    return 0
