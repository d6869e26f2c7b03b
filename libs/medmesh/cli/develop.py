"""For developers of medmesh: generated files."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import click

from medmesh.cli import say


@click.group()
def develop() -> None:
    """Generated files: migrations and schemas.  生成文件：数据库迁移与模式。"""


@develop.command()
@click.argument("service", nargs=-1)
@click.option("--title", default="tables", help="What changed, for the file's name.")
def migration(service: tuple[str, ...], title: str) -> None:
    """Write the next migration of SERVICE (all by default) from the difference between its tables.py and its migrations."""
    from medmesh.embedded.testing import servers
    from medmesh.service.spec import services
    from medmesh.store.migrate import Schema, generate

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with servers(Path(folder) / "servers", nats=False) as running:
                for name, spec in services().items():
                    if not service or name in service:
                        written = await generate(running.postgres_url, Schema(name, spec.metadata, spec.migrations), title)
                        click.echo(f"{name}: {written.name if written else say('nothing to do', '无需变更')}")

    asyncio.run(run())
