"""In `medmesh edge dicom`: where originals lie, here or in the cold tier.  冷热分层。"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medmesh.cli import language, say
from medmesh.cli.edge.site import FOLDER
from medmesh.cli.session import show
from medmesh.errors import Problem


@click.command()
@FOLDER
def tiers(folder: Path) -> int:
    """How many originals lie here and in the cold tier, and how many are on their way.

    有多少原始影像在本机、在冷存储、在传输途中。

    Where the cold tier is, and when an object goes there, is said in the node's edge.json; a running node moves them. What is cold is read
    as before, a little slower, and comes back for having been read.

    冷存储的位置与转移时间由节点的 edge.json 指定，由运行中的节点转移。冷存储影像照常读取，只是稍慢，读取后会回到本机。

    \b
    "cold": {"folder": "/mnt/nas/medmesh-cold", "after_days": 180}
    "cold": {"s3_url": "https://s3.hospital", "s3_bucket": "medmesh-cold", "s3_credentials": "/srv/medmesh-edge/secrets/cold.json",
             "after_days": 180, "least_kib": 64, "most_hot_gib": 500}
    """
    from medmesh.archive import tiers as states
    from medmesh.archive.tables import open_archive
    from medmesh_edge import tiering
    from medmesh_edge.settings import Layout, Settings

    folder = folder.absolute()
    settings = Settings.load(folder)
    archive = open_archive(Layout(folder).archive, read_only=True)
    try:
        counts = states.counts(archive)
    finally:
        archive.close()
    document: dict[str, Any] = {"cold": None, "tiers": counts}
    code = 0
    if settings.cold is not None:
        document["cold"] = settings.cold.model_dump(mode="json", exclude_none=True)
        try:
            document["there"] = tiering.cold(settings).mark() is not None
        except Problem as problem:
            document["there"], code = problem.detail(language()), 1
    show(document)
    if settings.cold is None and set(counts) - {"hot"}:
        click.secho(
            say("edge.json names no cold tier, but objects lie in one.", "edge.json 未指定冷存储，但有影像存放在其中。"), fg="red", err=True
        )
        code = 1
    return code


@click.command()
@FOLDER
@click.option("--study", metavar="UID", help="Those of one study instance UID.  属于某一检查实例 UID 的影像。")
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="All that is cold: before the cold tier is changed, or given up.  全部冷存储影像：用于更换或停用冷存储之前。",
)
def recall(folder: Path, study: str | None, everything: bool) -> int:
    """Have cold originals come back; a running node fetches them. They can be read meanwhile.

    将冷存储中的原始影像取回，由运行中的节点执行。其间仍可读取。
    """
    from medmesh.archive import tiers as states
    from medmesh.archive.tables import open_archive, transaction
    from medmesh_edge.settings import Layout

    if everything == bool(study):
        raise click.UsageError(say("give --study or --all", "请给出 --study 或 --all"))
    archive = open_archive(Layout(folder.absolute()).archive)
    try:
        with transaction(archive):
            count = states.recall(archive, study)
    finally:
        archive.close()
    click.echo(say(f"{count} objects come back", f"将取回 {count} 个影像"))
    return 0


TIERS = (tiers, recall)
