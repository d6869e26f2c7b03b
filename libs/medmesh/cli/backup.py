"""`medmesh backup`: the platform's database and kept objects, while it runs, and back.  备份与恢复。"""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medmesh.cli import say
from medmesh.cli.on_record import on_record
from medmesh.cli.platform import DATA
from medmesh.embedded.maintenance import Act
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
    from medmesh.store.objects.s3 import S3Blobs

    data = data.absolute()
    where, password = database(data)
    settings = json.loads((data / "settings" / "registry.json").read_text(encoding="utf-8"))["objects"]
    with on_record(data, "backup.create") as act:
        repository = _repository(folder, holder, suite)
        blobs = asyncio.run(S3Blobs.open(settings["s3_url"], "kept", Path(settings["s3_credentials"])))
        try:
            name = create(data, where, password, blobs, repository, _progress())
        finally:
            blobs.close()
        _tell(act, repository, name)
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
@DATA
@FOLDER
@KEY
@NAME
def verify(data: Path, folder: Path, holder: Path, name: str) -> int:
    """Read every part of a backup; the first that is not what it was is an error.  校验备份。

    It is recorded in the log of the platform in --data; on another machine it verifies just as well, and says that nothing was recorded.
    """
    from medmesh.backup.restore import told, verify

    data = data.absolute()
    if not (data / "secrets").is_dir():
        click.echo(say(f"no platform in {data}: not recorded", f"{data} 中没有平台：未记录"), err=True)
    with on_record(data, "backup.verify") if (data / "secrets").is_dir() else nullcontext(Act()) as act:
        repository = _repository(folder, holder)
        manifest = verify(repository, name, _progress())
        _tell(act, repository, name)
    click.echo(told(manifest))
    return 0


@backup.command()
@DATA
@FOLDER
@KEY
@NAME
def restore(data: Path, folder: Path, holder: Path, name: str) -> int:
    """Restore into the new data folder --data, after the keys of every domain were imported there; then `medmesh up`.  恢复。"""
    from medmesh.backup.restore import restore, told

    data = data.absolute()
    with on_record(data, "backup.restore") as act:
        repository = _repository(folder, holder)
        manifest = asyncio.run(restore(repository, name, data, _progress()))
        _tell(act, repository, name)
    click.echo(told(manifest))
    return 0


def _tell(act: Act, repository: Repository, name: str) -> None:
    """Which backup it was, and how much of the log is in it."""
    found = name or repository.names()[-1]
    act.about("backup", found, repository.digest(found))
    manifest = repository.manifest(found)
    act.detail |= {"log_size": manifest.log_size, "objects": len(manifest.blobs), "made": manifest.at}
