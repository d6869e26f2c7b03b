"""`medmesh edge quality`: what a data set of the node is worth.  院内数据质量。"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from medmesh.cli import language
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show


@click.command()
@FOLDER
@click.argument("dataset")
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with pictures and distributions there.")
@click.option("--block", multiple=True, help="A rule that keeps items out, instead of those that do by themselves; may be given again.")
def quality(folder: Path, dataset: str, page: Path | None, block: tuple[str, ...]) -> int:
    """Judge every image and row of DATASET by the quality rules; recorded, and nothing leaves the node.  检查数据集质量。

    Ends with 1 when items would be kept out. The page shows pictures of patients, so it stays inside the hospital.
    """
    from medmesh.quality.html import page as drawn
    from medmesh.quality.rules import BLOCKING, known
    from medmesh_edge.quality import judge

    blocking = known(block) if block else BLOCKING
    with click.progressbar(length=1, label=dataset, hidden=not sys.stderr.isatty(), file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        async def work(site: Any) -> Any:
            return await judge(site, dataset, blocking, progress)

        report = on_site(folder, work)
    if page is not None:
        page.touch(mode=0o600)
        page.write_text(drawn(report, language()), encoding="utf-8")
    show(report.document(language()))
    return 1 if report.blocked else 0
