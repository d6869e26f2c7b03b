"""`medmesh edge escrow`: the key of pseudonyms in the hands of several people.  假名密钥托管。"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show

SHARES = click.argument("shares", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group()
def escrow() -> None:
    """The key of pseudonyms in shares: any few of its holders bring it back, one alone knows nothing.

    将假名密钥分为若干份：若干持有人合在一起即可恢复，单独一人一无所知。

    Without that key a hospital cannot tell any more which pseudonym is whose, nor forget a patient who asks. Give the files to the people
    they are named after, each on a medium of their own, and delete them here. Try them once a year: `medmesh edge escrow drill`.

    没有该密钥，医院将无法得知假名对应何人，也无法遗忘提出申请的患者。请将文件交给其署名的持有人，各自存于独立介质，并在此处删除。
    每年演练一次：`medmesh edge escrow drill`。
    """


@escrow.command()
@FOLDER
@click.argument("target", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--holder",
    "holders",
    multiple=True,
    required=True,
    help="Name of a holder, once each; a share is made for everyone.  持有人姓名，每人一次；为每人生成一份。",
)
@click.option("--needed", default=2, show_default=True, help="How many of them must come together.  须有多少份才能恢复。")
def create(folder: Path, target: Path, holders: tuple[str, ...], needed: int) -> int:
    """Make a share for each holder, as files in TARGET.

    为每位持有人生成一份，以文件形式写入 TARGET。
    """
    from medmesh_edge import escrow as work

    for path in on_site(folder, lambda site: work.create(site, target, holders, needed)):
        click.echo(path)
    return 0


@escrow.command()
@FOLDER
@SHARES
def drill(folder: Path, shares: tuple[Path, ...]) -> int:
    """Prove that SHARES make the key that is in use. The key is neither shown nor written; that it was tried is recorded.

    证明 SHARES 能合成现用密钥。密钥既不显示也不写出；演练会留下记录。
    """
    from medmesh_edge import escrow as work

    _said(on_site(folder, lambda site: work.drill(site, shares)), say("these shares make the key in use", "这些份额可恢复正在使用的密钥"))
    return 0


@escrow.command()
@FOLDER
@SHARES
def restore(folder: Path, shares: tuple[Path, ...]) -> int:
    """Bring the key back from SHARES, where it was lost; another key that is in use is never replaced.

    密钥丢失时用 SHARES 恢复；已有其他密钥在用时绝不替换。
    """
    from medmesh_edge import escrow as work

    _said(on_site(folder, lambda site: work.restore(site, shares)), say("the key is back", "密钥已恢复"))
    return 0


def _said(found: dict[str, Any], text: str) -> None:
    click.secho(text, fg="green")
    show(found)
