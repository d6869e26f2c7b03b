"""What every command of a hospital's node begins with: its folder, opened."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

T = TypeVar("T")

FOLDER = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: Path(os.environ.get("MEDMESH_EDGE", Path.home() / "medmesh-edge")),
    show_default="$MEDMESH_EDGE or ~/medmesh-edge",
    help="The node's folder.  节点目录。",
)


def on_site(folder: Path, work: Callable[[Any], Awaitable[T]]) -> T:
    """Run `work` with the opened folder."""
    from medmesh_edge.ports import site

    async def run() -> T:
        async with site(folder.absolute()) as opened:
            return await work(opened)

    return asyncio.run(run())
