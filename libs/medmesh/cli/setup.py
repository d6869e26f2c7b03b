"""`medmesh setup`: the platform whose servers run elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from medmesh.cli import say
from medmesh.embedded import apart

_DEFAULT = apart.Servers()


@click.command()
@click.option("--external", is_flag=True, help="The servers run elsewhere (on one machine, `medmesh up` does it all).")
@click.option("--folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="Secrets and settings, a folder a part.")
@click.option("--nats", default=_DEFAULT.nats, show_default=True, metavar="URL")
@click.option("--database", default=_DEFAULT.database, show_default=True, metavar="URL", help="PostgreSQL, as its administrator.")
@click.option("--s3", default=_DEFAULT.s3, show_default=True, metavar="URL")
@click.option("--spool", type=click.Path(file_okay=False, path_type=Path), help="A folder all services share; S3 holds scratch without it.")
@click.option("--server-name", "names", multiple=True, metavar="NAME", help="A further name or address of the gateway; repeatable.")
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(1, 5), help="NATS servers that keep each message.")
@click.option("--files-only", is_flag=True, help="Only make files: needs no network.")
@click.option("--apply-only", is_flag=True, help="Only apply to the servers: makes no files.")
def setup(
    external: bool,
    folder: Path,
    nats: str,
    database: str,
    s3: str,
    spool: Path | None,
    names: tuple[str, ...],
    replicas: int,
    files_only: bool,
    apply_only: bool,
) -> int:
    """Prepare a platform whose servers run elsewhere. Safe to run again.  部署准备。

    First keys, certificates, passwords and settings; then, on the servers, streams, consumers, permissions, roles, migrations
    and buckets. Secrets that are there stay; certificates are renewed before their end.
    """
    if not external:
        raise click.UsageError(say("give --external; on one machine use 'medmesh up'", "请给出 --external；单机请使用 medmesh up"))
    if files_only and apply_only:
        raise click.UsageError(say("--files-only and --apply-only exclude each other", "--files-only 与 --apply-only 不能同时使用"))
    folder = folder.absolute()
    where = apart.Servers(nats, database, s3, spool)
    if not apply_only:
        apart.write_files(folder, where, names)
        click.echo(say(f"files are in {folder}", f"文件位于 {folder}"))
        code = folder / "operator" / "bootstrap_code"
        if code.exists():
            click.echo(say(f"one-time code of the first administrator: {code}", f"首位安全管理员的一次性代码：{code}"))
    if not files_only:
        asyncio.run(apart.apply(folder, where, replicas))
        click.echo(say("servers are ready: start the services", "服务器已就绪，可启动各服务"))
    return 0
