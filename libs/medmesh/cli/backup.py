"""`medmesh backup`: the platform's database and kept objects, while it runs, and back.  备份与恢复。"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medmesh.cli import say
from medmesh.cli.platform import DATA
from medmesh.errors import Problem

if TYPE_CHECKING:
    from medmesh.backup.repository import Repository

FOLDER = click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
NAME = click.option("--name", default="", help="Which backup; the newest without it.")
KEY = click.option(
    "--key",
    "holder",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the holder's key: medmesh vault key.",
)


@click.group()
def backup() -> None:
    """Back up and restore the platform of this machine.  备份与恢复平台。

    A backup is encrypted under its holder's key and holds no key of the platform: those are exported by domain, `medmesh vault export`. Do
    both, keep them apart, and try a restore once a quarter.
    """


def database(data: Path) -> tuple[str, str]:
    """Address and password of the running platform's database. Raises `Problem`."""
    from medmesh.embedded.run import running
    from medmesh.security.keys import read_secret

    run = running(data)
    if run is None:
        raise Problem("backup.not_running", folder=data)
    return run.urls["postgres"], read_secret(run.paths["postgres.password"]).decode().strip()


def _repository(folder: Path, holder: Path, suite: str = "intl-1") -> Repository:
    from medmesh.backup.repository import Repository

    return Repository(folder.absolute(), holder.absolute(), suite)


def _progress() -> _Progress:
    return _Progress()


class _Progress:
    """A line for each step, and for each tenth of it."""

    def __init__(self) -> None:
        self._last = ("", -1)

    def __call__(self, step: str, done: int, total: int) -> None:
        tenth = done * 10 // total if total else done // (256 * 2**20)
        if (step, tenth) != self._last:
            self._last = (step, tenth)
            names = {
                "objects": say("objects", "对象"),
                "database": say("database", "数据库"),
                "parts": say("parts", "数据块"),
            }
            click.echo(f"  {names[step]} {done}{f'/{total}' if total else ''}", err=True)


@backup.command()
@DATA
@FOLDER
@KEY
@click.option("--suite", default="intl-1", show_default=True, type=click.Choice(["intl-1", "sm-1"]))
def create(data: Path, folder: Path, holder: Path, suite: str) -> int:
    """Back up into FOLDER while the platform runs. Only what changed is added; interrupted, run it again.  创建备份。"""
    from medmesh.backup.create import create
    from medmesh.embedded.run import running
    from medmesh.store.objects.s3 import S3Blobs

    data = data.absolute()
    where, password = database(data)
    run = running(data)
    assert run is not None
    settings = json.loads((data / "settings" / "registry.json").read_text(encoding="utf-8"))["objects"]
    blobs = asyncio.run(S3Blobs.open(settings["s3_url"], "kept", Path(settings["s3_credentials"])))
    try:
        name = create(data, where, password, blobs, _repository(folder, holder, suite), _progress())
    finally:
        blobs.close()
    click.echo(name)
    return 0


@backup.command(name="list")
@FOLDER
@KEY
def list_(folder: Path, holder: Path) -> int:
    """Backups in FOLDER, the newest last.  列出备份。"""
    from medmesh.backup.restore import told

    repository = _repository(folder, holder)
    for name in repository.names():
        click.echo(f"{name}  {told(repository.manifest(name))}")
    return 0


@backup.command()
@FOLDER
@KEY
@NAME
def verify(folder: Path, holder: Path, name: str) -> int:
    """Read every part of a backup; the first that is not what it was is an error.  校验备份。"""
    from medmesh.backup.restore import told, verify

    click.echo(told(verify(_repository(folder, holder), name, _progress())))
    return 0


@backup.command()
@DATA
@FOLDER
@KEY
@NAME
def restore(data: Path, folder: Path, holder: Path, name: str) -> int:
    """Restore into the new data folder --data, after the keys of every domain were imported there; then `medmesh up`.  恢复。"""
    from medmesh.backup.restore import restore, told

    click.echo(told(asyncio.run(restore(_repository(folder, holder), name, data.absolute(), _progress()))))
    return 0
