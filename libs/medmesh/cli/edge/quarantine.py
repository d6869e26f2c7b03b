"""`medmesh edge dicom quarantine`: what was held back of what a PACS sent.  隔离区。"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show
from medmesh.errors import Problem


@click.group()
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
