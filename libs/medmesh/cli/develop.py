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


@develop.command()
@click.option("--check", is_flag=True, help="Change nothing; end with 1 when a file is not up to date.")
def schemas(check: bool) -> None:
    """Write what is generated from the declarations: schemas/, docs/events.md, docs/security/matrix.md.  由声明生成模式与文档。"""
    from medmesh.cli.schemas import ROOT, generate, stale, write

    changed = stale(ROOT, generate()) if check else write(ROOT, generate())
    for path in changed:
        click.echo(path)
    if check and changed:
        raise click.ClickException(say("not up to date: run 'medmesh develop schemas'", "不是最新，请运行 medmesh develop schemas"))


@develop.command()
def compatible() -> None:
    """Compare the messages with those of every release: only a new optional field is compatible.  检查与已发布模式的兼容性。"""
    from medmesh.cli.schemas import ROOT, event_schemas
    from medmesh.cli.schemas_compatible import broken

    breaks = broken(ROOT / "schemas" / "released", event_schemas())
    for change in breaks:
        click.echo(change)
    if breaks:
        hint = "give the message a new major version under a subject of its own", "请为该消息新建主版本并使用新的主题"
        raise click.ClickException(say(*hint))


@develop.command()
@click.argument("release")
def freeze(release: str) -> None:
    """Keep the messages' schemas as those of RELEASE, for `compatible`; a release that is kept already does not change."""
    from medmesh.cli.schemas import ROOT, event_schemas
    from medmesh.cli.schemas import freeze as keep

    try:
        click.echo(keep(ROOT, release, event_schemas()).relative_to(ROOT))
    except FileExistsError:
        raise click.ClickException(say(f"{release} is kept already", f"{release} 已保存")) from None
