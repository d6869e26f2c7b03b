"""`medmesh witness`: watch a log grow and say so, for everybody who does not trust its operator.  见证方。"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medmesh.cli import say

if TYPE_CHECKING:
    from medmesh.witness.site import Site

FOLDER = click.argument("folder", type=click.Path(file_okay=False, path_type=Path))


@click.group()
def witness() -> None:
    """A witness of audit logs (c2sp.org/tlog-witness); needs no other part of the platform.  审计日志见证方。"""


@witness.command()
@FOLDER
@click.option("--name", required=True, help="Who you are, like an address without https://: renji.example/witness.  名称。")
@click.option(
    "--log", "logs", required=True, multiple=True, metavar="VKEY", help="Key of a log to watch, as handed over on paper.  日志公钥。"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8460, show_default=True, help="The port the log asks at.")
def init(folder: Path, name: str, logs: tuple[str, ...], host: str, port: int) -> int:
    """Make the witness's key and settings in FOLDER.  初始化。"""
    from medmesh.cli.verify import key_of
    from medmesh.witness.site import create

    tell(create(folder.absolute(), name, [key_of(log) for log in logs], host=host, port=port))
    return 0


@witness.command()
@FOLDER
def key(folder: Path) -> int:
    """Print the witness's verifier key, for policies.  显示公钥。"""
    from medmesh.witness.site import load

    click.echo(load(folder.absolute()).vkey)
    return 0


@witness.command()
@FOLDER
def run(folder: Path) -> int:
    """Answer logs until stopped.  运行。"""
    from medmesh.witness.site import load

    return serve(load(folder.absolute()))


def tell(site: Site) -> None:
    """What others need to know of a witness."""
    click.echo(
        say("Give this key to auditors and to the log's operator, on paper:", "请以纸面方式将此公钥交给审计员与日志运营方："), err=True
    )
    click.echo(site.vkey)


def serve(site: Site) -> int:
    """Run in the foreground until a signal."""
    from medmesh.witness.server import server

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with server(site) as listening:
        where = f"{listening.url}/add-checkpoint"
        click.echo(say(f"{site.name} answers at {where}", f"{site.name} 在 {where} 应答"), err=True)
        try:
            listening.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0
