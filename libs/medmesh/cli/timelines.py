"""`medmesh dataset timeline`: timelines on the platform, of public data or of data that somebody may bring.  平台侧患者时间轴。

The hospital's own stay at its node: `medmesh edge timeline`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from medmesh.cli import language, say
from medmesh.cli.datasets import FILE, VOUCHED
from medmesh.cli.session import show, with_gateway
from medmesh.client.gateway import Gateway

if TYPE_CHECKING:
    from medmesh.timeline.taking import Outcome

A_DAY = 86_400


@click.group()
def timeline() -> None:
    """Patients' events in order of time, of public data; they are their maker's alone.  患者时间轴（公开数据）。

    What others may use is a version that is made of them, once it is released.
    """


@timeline.command(name="import")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--name", required=True, help="The data set whose timelines these are.")
@click.option("--format", "reader", help="fhir, hl7, omop, mimic or dicom; found by content otherwise.")
@click.option("--vouched", type=FILE, help="Words, one a line, that name nobody.  已核对的词。")
@click.option("--dry-run", is_flag=True, help="Say what would be taken in and what is amiss, with file and line; send nothing.")
def take_in(source: Path, name: str, reader: str | None, vouched: Path | None, dry_run: bool) -> int:
    """Take in SOURCE: FHIR R4, HL7 v2, OMOP CDM, MIMIC-III or DICOM; a file, a folder or an archive.  导入。

    Numbers of patients become pseudonyms, times move back by the patient's days. Text in which rules doubt whether somebody is named is
    left out, and counted under refused. What was taken in before is known again, what was corrected becomes a further revision. Broken
    off, the same command goes on. Ends with 1 when something could not be read; the rest is taken in all the same.
    """
    words = vouched.read_bytes() if vouched else b""
    if dry_run:
        outcome = _tried(source, reader, words.decode("utf-8-sig"))
        show(outcome.document(language()))
        return 1 if outcome.report.severities["error"] else 0
    from medmesh.cli.inspecting import moving
    from medmesh.client.transfer import upload
    from medmesh.importing.packing import pack
    from medmesh.importing.sources import opened

    with opened(source) as files, tempfile.NamedTemporaryFile(prefix="medmesh-", suffix=".zip") as packed:
        with moving(say("packing", "打包"), sum(map(files.size, files.names))) as moved:
            pack(files, cast(Any, packed), moved, {VOUCHED: words} if vouched else {})
        packed.flush()
        file = Path(packed.name)

        async def run(gateway: Gateway) -> Any:
            with moving(say("sending", "上传"), file.stat().st_size) as moved:
                archive = await upload(gateway, file, progress=lambda done, _total: moved(done))
            click.echo(say("taking in …", "接收中……"), err=True)
            wanted = {"archive": archive.model_dump(), "reader": reader}
            return await gateway.command("POST", f"/v1/datasets/{name}/timeline", wanted, seconds=A_DAY)

        made = with_gateway(run)
    show(made)
    if made["errors"]:
        click.echo(say("--dry-run names the file and the line of each fault", "用 --dry-run 查看每处错误的文件和行"), err=True)
    return 1 if made["errors"] else 0


def _tried(source: Path, reader: str | None, words: str) -> Outcome:
    """As the platform would take it in, under a key that nobody needs."""
    from medmesh.importing.port import Report
    from medmesh.importing.sources import opened
    from medmesh.text import Sieve
    from medmesh.timeline import readers
    from medmesh.timeline.identity import Namer
    from medmesh.timeline.reading import Reading
    from medmesh.timeline.taking import Outcome, batch

    with opened(source) as files:
        chosen = readers.named(reader) if reader else readers.recognised(files)
        reading, names, sieve = Reading(Report()), Namer(bytes(32)), Sieve(words.split("\n"))
        outcome = Outcome(chosen.NAME, reading.report, reading.left_out)
        found = chosen.read(files, reading)
        while some := batch(found, names, outcome, sieve):
            events, told = some
            outcome.appended.patients |= {one.subject.patient for one in events}
            outcome.merges += len(told)
    return outcome


@timeline.command()
@click.argument("name")
@click.argument("cohort", required=False)
@click.option("--define", "file", type=FILE, help="Save the definition in this JSON file first.")
@click.option("--version", type=int, default=0, help="An earlier version; the newest by default.")
def cohort(name: str, cohort: str | None, file: Path | None, version: int) -> int:
    """How many are in COHORT of the timelines NAME, and why others are not; small counts are hidden.  疾病队列。

    A definition that changed is a new version; versions never change. See docs/tutorial/timeline.md.
    """

    async def run(gateway: Gateway) -> Any:
        asked, number = cohort, version
        if file is not None:
            wanted = {"definition": file.read_text(encoding="utf-8")}
            made = await gateway.command("POST", f"/v1/datasets/{name}/cohorts", wanted)
            asked, number = made["cohort"], made["version"]
        if asked is None:
            raise click.UsageError(say("name a cohort, or give a file with --define", "请给出队列名称，或用 --define 指定文件"))
        return await gateway.request("GET", f"/v1/datasets/{name}/cohorts/{asked}", query={"version": number})

    show(with_gateway(run))
    return 0


@timeline.command()
@click.argument("name")
@click.option("--cohort", help="Only the patients of this cohort, with its labels.")
@click.option("--texts", is_flag=True, help="With values that are text, as the rules left them.")
def export(name: str, cohort: str | None, texts: bool) -> int:
    """Make a version of the timelines NAME: MEDS 0.4 with Croissant metadata, split by patient.  导出为数据集版本（MEDS）。

    The same timelines again are the same version. medmesh dataset export fetches it, medmesh dataset release asks for its release.
    """

    async def run(gateway: Gateway) -> Any:
        wanted = {"cohort": cohort, "texts": texts}
        made = await gateway.command("POST", f"/v1/datasets/{name}/timeline/exports", wanted, seconds=A_DAY)
        return await gateway.request("GET", f"/v1/datasets/{made['dataset']}", query={"version": made["version"]})

    show(with_gateway(run))
    return 0
