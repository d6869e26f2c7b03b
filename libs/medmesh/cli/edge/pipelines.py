"""`medmesh edge pipelines`: what plans have this node make of its data, and how far it is.  院内处理流程。"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show
from medmesh.errors import Problem


@click.command()
@FOLDER
@click.option(
    "--clear",
    metavar="HASH",
    help="Delete what the pipeline of this hash (its beginning is enough) made; it can be made again."
    "  删除此哈希（可只给开头）的处理流程的产物；可重新生成。",
)
def pipelines(folder: Path, clear: str | None) -> int:
    """Pipelines of the federations that this hospital takes part in: how many of its items went through.

    本院所参加联邦的处理流程：已处理多少项数据。

    `done` of `items` are ready; a running node does the rest by itself, each item once, and goes on where it was when it is started again.
    `kept` says what is stored, by pipeline. It lies under the patients' keys, never leaves, and goes when a patient is forgotten. `disk`
    says how much that takes and how much it may, which is `pipelines_gib` of the node's edge.json: what was used least lately goes first,
    and is made again when a round needs it.

    已就绪的为 `items` 中的 `done` 项；其余由运行中的节点自行完成，每项一次，重启后从中断处继续。`kept` 按处理流程说明已保存的内容；它由
    患者密钥加密，绝不出院，患者被遗忘时随之清除。`disk` 说明占用空间及上限，即节点 edge.json 的 pipelines_gib：最久未用的先清除，
    需要时重新生成。
    """
    from medmesh_edge.pipelines import clear as remove
    from medmesh_edge.pipelines import disk, listed
    from medmesh_edge.preparing import progress

    if clear is not None:
        if len(clear) < 8:
            raise Problem("request.invalid", reason="give at least 8 digits of the hash")
        count = on_site(folder, lambda site: remove(site, clear))
        click.echo(say(f"{count} outputs deleted", f"已删除 {count} 项处理结果"))
        return 0

    async def work(site: Any) -> Any:
        return {"federations": await progress(site), "kept": await listed(site), "disk": await disk(site)}

    show(on_site(folder, work))
    return 0
