"""`medmesh edge text`: notes that wait because rules doubt whether they name somebody.  文本复核。"""

from __future__ import annotations

import getpass
import re
from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.edge.site import FOLDER, on_site

_PLACE = re.compile(r"(\d+)-(\d+)")


@click.group()
def text() -> None:
    """Notes that a person must look at before they come into a data set.

    进入数据集之前须由人工查看的文本。

    What rules are sure of is replaced by itself. Where they doubt, the note waits here; it is in no data set until somebody releases it.

    规则能确定的会自动替换。规则存疑时，文本在此等待；放行之前不属于任何数据集。

    \b
    medmesh edge text list                     what waits
    medmesh edge text show 3                   the note, each place with its number
    medmesh edge text release 3 --keep 2       place 2 names nobody and stays, everything else found goes
    medmesh edge text release 3 --also 40-46   characters 40 to 46 name somebody, too
    medmesh edge text reject 3                 out, for good

    \b
    medmesh edge text list                     等待中的文本
    medmesh edge text show 3                   文本内容，各位置带编号
    medmesh edge text release 3 --keep 2       位置 2 未指名任何人，予以保留，其余替换
    medmesh edge text release 3 --also 40-46   第 40 至 46 个字符也指名了某人
    medmesh edge text reject 3                 永久剔除
    """


@text.command(name="list")
@FOLDER
def list_held(folder: Path) -> int:
    """What waits, oldest first; no word of it is shown.

    等待复核的文本，最早的在前；不显示任何内容。
    """
    from medmesh_edge import texts

    for one in on_site(folder, texts.waiting):
        at = one["at"].astimezone().strftime("%Y-%m-%d %H:%M")
        doubts = say(f"{one['doubts']} doubts", f"{one['doubts']} 处存疑")
        click.echo(f"{one['number']:>6}  {at}  {one['dataset']:<24} {one['modality']:<20} {doubts}")
    return 0


@text.command()
@FOLDER
@click.argument("number", type=int, required=False)
def show(folder: Path, number: int | None) -> int:
    """Note NUMBER, or the oldest: ⟦place KIND words⟧, with ? where rules doubt. That it was read is recorded.

    显示编号为 NUMBER 的文本，默认最早的一份：⟦位置 类型 文字⟧，规则存疑处标 ?。查看会留有记录。
    """
    from medmesh_edge import texts

    async def work(site: Any) -> Any:
        return await texts.read(site, number)

    note = on_site(folder, work)
    shown, done = "", 0
    for place, one in enumerate(note.review.judged):
        start, end = one.span.start, one.span.end
        if start < done:  # within one that was shown
            continue
        doubt = "?" if place in note.doubted else ""
        shown += f"{note.text[done:start]}⟦{place}{doubt} {one.span.kind} {note.text[start:end]}⟧"
        done = end
    click.echo(say(f"note {note.number}", f"文本 {note.number}"))
    click.echo(shown + note.text[done:])
    return 0


@text.command()
@FOLDER
@click.argument("number", type=int)
@click.option("--keep", type=int, multiple=True, help="A place that names nobody; may be given again.  未指名任何人的位置；可重复。")
@click.option(
    "--also",
    multiple=True,
    metavar="FROM-TO",
    help="Characters (from 0, TO not included) that the rules missed.  规则遗漏的字符（从 0 起，不含 TO）。",
)
def release(folder: Path, number: int, keep: tuple[int, ...], also: tuple[str, ...]) -> int:
    """Into the data set, everything found replaced but what is to be kept.

    放行到数据集中：除要保留的以外，查到的全部替换。
    """
    from medmesh_edge import texts

    places = []
    for one in also:
        found = _PLACE.fullmatch(one)
        if found is None:
            raise click.UsageError(say(f"{one}: FROM-TO is needed", f"{one}：应为 起-止"))
        places.append((int(found[1]), int(found[2])))

    async def work(site: Any) -> None:
        await texts.release(site, number, getpass.getuser(), keep=keep, also=places)

    on_site(folder, work)
    click.echo(say("released", "已放行"))
    return 0


@text.command()
@FOLDER
@click.argument("number", type=int)
def reject(folder: Path, number: int) -> int:
    """Out, for good: the same note is not taken in again.

    永久剔除：同一文本不会再次导入。
    """
    from medmesh_edge import texts

    async def work(site: Any) -> None:
        await texts.reject(site, number, getpass.getuser())

    on_site(folder, work)
    click.echo(say("rejected", "已拒绝"))
    return 0
