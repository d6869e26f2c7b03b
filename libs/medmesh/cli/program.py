"""`medmesh program`: who vouches for the files that run here.  程序可信验证。"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import click

from medmesh.cli import say
from medmesh.cli.key import KEY, unlock
from medmesh.cli.platform import DATA
from medmesh.errors import Problem
from medmesh.security import programs
from medmesh.security.roster_file import NAME as ROSTER
from medmesh.security.roster_file import RosterFile

MOST = 40


@click.group()
def program() -> None:
    """Trusted verification: every service compares what it loads with a list that a person signed.  程序可信验证。

    After each installation and upgrade:   medmesh program sign --data FOLDER   (with your own key, which stands in the roster)
    Whenever you like, also elsewhere:     medmesh program verify --data FOLDER

    A service that loads other files says so in the audit log, which raises an alert; with `require_programs` in its settings it does not
    start. Sign on a machine where you installed from the release yourself, and carry programs.json over, if you do not trust this one.
    """


@program.command()
@DATA
@KEY
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the list there instead of laying it down.")
def sign(data: Path, file: Path, out: Path | None) -> int:
    """Measure what is installed here and sign for it.  度量并签署。

    Nothing is laid down when the roster does not know the key: services would raise the alarm.
    """
    signer, now = unlock(file), datetime.now(UTC)
    roster = None if out else RosterFile(data.absolute() / ROSTER)()
    click.echo(say("measuring …", "正在度量……"), err=True)
    found, installed = programs.measured(), version("medmesh")
    signed = programs.sign(found, installed, now, signer)
    if roster is not None:
        roster.person(signed, programs.Programs, now, programs.ROLES)
    target = out or data.absolute() / programs.NAME
    programs.save(target, found, signed)
    count = len(found)
    click.echo(say(f"{count} files of medmesh {installed}, signed by {signer.name}", f"{count} 个文件，签署人 {signer.name}"))
    click.echo(f"sha256 {programs.digest_of(found)}")
    if out is None:
        click.echo(say(f"laid down in {target}; running services look within half a minute", f"已写入 {target}；运行中的服务半分钟内核验"))
    else:
        click.echo(say(f"written to {target}; lay it down as {programs.NAME} beside trust.json", f"已写入 {target}；请放到 trust.json 旁"))
    return 0


@program.command()
@DATA
def verify(data: Path) -> int:
    """Compare everything that is installed here with the signed list.  核验。Ends with 1 when something differs."""
    folder = data.absolute()
    roster = RosterFile(folder / ROSTER)()
    click.echo(say("measuring …", "正在度量……"), err=True)
    verdict = programs.verify(folder / programs.NAME, roster, datetime.now(UTC), programs.measured(), whole=True)
    click.echo(
        say(f"list of medmesh {verdict.version}, signed by {verdict.signer}", f"medmesh {verdict.version} 的清单，签署人 {verdict.signer}")
    )
    for name in verdict.changed[:MOST]:
        click.echo(f"  {name}")
    if (more := len(verdict.changed) - MOST) > 0:
        click.echo(say(f"  … and {more} more", f"  ……另有 {more} 个"))
    if verdict.changed:
        raise Problem("program.changed")
    click.echo(say("every file is the one that was signed for", "所有文件均与签署清单一致"))
    return 0
