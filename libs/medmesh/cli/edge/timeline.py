"""`medmesh edge timeline`: what happened to the hospital's patients and when, from whatever system tells it.  患者时间轴。"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from medmesh.cli import language, say
from medmesh.cli.edge.patients import asked_patient
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show as shown

PROJECT = click.option("--project", default="timeline", show_default=True, help="Whose timelines; each project has its own.")
AUTHORITY = click.option("--authority", default="", help="Who gave the patient number; the hospital itself by default.")


@click.group()
def timeline() -> None:
    """The patients' timelines: events of every kind in order of time, under pseudonyms.  患者时间轴。"""


@timeline.command(name="import")
@FOLDER
@PROJECT
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--format", "reader", help="fhir, hl7, omop, mimic or dicom; found by content otherwise.")
@click.option("--consent", help="The ethics approval or consent under which the events may be used.")
@click.option("--dry-run", is_flag=True, help="Say what would be taken in and what is amiss; write nothing.")
def take_in(folder: Path, project: str, source: Path, reader: str | None, consent: str | None, dry_run: bool) -> int:
    """Take in SOURCE: FHIR R4, HL7 v2, OMOP CDM, MIMIC-III or DICOM; a file, a folder or an archive.  导入。

    What was taken in before is known again, what was corrected becomes a further revision. Each fault is told with its file and line.
    """
    from medmesh_edge import timeline as work

    def progress(events: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{events}", nl=False, err=True)

    outcome = on_site(
        folder, lambda site: work.ingest(site, source, project, reader=reader, consent=consent, dry_run=dry_run, progress=progress)
    )
    shown(outcome.document(language()))
    return 1 if outcome.report.severities["error"] else 0


@timeline.command()
@FOLDER
@PROJECT
@AUTHORITY
@click.option("--limit", default=200, show_default=True, help="How many events, the newest ones.")
def show(folder: Path, project: str, authority: str, limit: int) -> int:
    """One patient's events in order, on the shifted axis; asks for the patient number.  查看一名患者。

    That somebody looked is recorded.
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
@click.option("--undo", is_flag=True, help="Take an earlier merge of the two back.")
def merge(folder: Path, authority: str, undo: bool) -> int:
    """Say that two patient numbers are one person; asks for the one that goes on, then for the other.  合并患者编号。

    The events stay each under its own number, so that a merge is taken back without a trace.
    """
    from medmesh.timeline.events import Identity
    from medmesh_edge import timeline as work

    async def run(site: Any) -> None:
        survivor, loser = Identity(authority, asked_patient()), Identity(authority, asked_patient())
        await work.join(site, survivor, loser, undone=undo)

    on_site(folder, run)
    click.echo(say("taken back", "已撤销") if undo else say("merged", "已合并"))
    return 0
