"""`medmesh edge forget|forget-approve|forgettings|trace`: one patient, found and forgotten.  患者的追溯与遗忘。"""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show


def asked_patient() -> str:
    """A patient ID from the terminal or a pipe: on a command line every account of the machine could read it."""
    if sys.stdin.isatty():
        return str(click.prompt(say("Patient ID (not shown)", "患者编号（不显示）"), hide_input=True)).strip()
    return sys.stdin.readline().strip()


@click.command()
@FOLDER
@click.option(
    "--reason",
    required=True,
    help="withdrawn, requested, expired, mistake or ordered."
    "  withdrawn（撤回）、requested（申请）、expired（到期）、mistake（误收）或 ordered（奉令）。",
)
@click.option(
    "--pseudonym",
    help="The patient's pseudonym at this hospital, instead of the patient ID that is asked for."
    "  患者在本院的假名，代替交互输入的患者编号。",
)
def forget(folder: Path, reason: str, pseudonym: str | None) -> int:
    """Forget one patient: images, results and every link in records become unreadable for ever.

    遗忘一名患者：影像、结果及记录中的一切关联将永远无法读取。

    Asks for the patient ID, or reads it from a pipe. Unless policy.toml says otherwise a second person must agree, from another account:
    medmesh edge forget-approve. The audit log stays whole; that a patient was forgotten is recorded in it, and not who.

    交互输入患者编号，或从管道读取。除非 policy.toml 另有规定，须由另一账户的第二人同意：medmesh edge forget-approve。审计日志保持
    完整；其中记录有患者被遗忘，但不记录是谁。
    """
    from medmesh_edge import forgetting

    async def work(site: Any) -> tuple[str, bool]:
        return await forgetting.ask(site, pseudonym or forgetting.who(site, asked_patient()), reason, getpass.getuser())

    request, done = on_site(folder, work)
    show({"request": request, "done": done})
    return 0


@click.command(name="forget-approve")
@FOLDER
@click.argument("request")
def forget_approve(folder: Path, request: str) -> int:
    """Agree, as a second person, that the patient of REQUEST is forgotten; it is done at once.

    作为第二人同意遗忘 REQUEST 中的患者，随即执行。
    """
    from medmesh_edge import forgetting

    on_site(folder, lambda site: forgetting.approve(site, request, getpass.getuser()))
    click.echo(say("forgotten", "已遗忘"))
    return 0


@click.command()
@FOLDER
def readmit(folder: Path) -> int:
    """Let a patient who was forgotten be taken in again, who agrees to that.

    经患者本人同意后，允许再次导入曾被遗忘的患者。

    Asks for the patient ID, or reads it from a pipe. Until then whatever is sent of the patient is refused and counted.

    交互输入患者编号，或从管道读取。在此之前，该患者的一切来件均被拒绝并计数。
    """
    from medmesh_edge import forgetting

    on_site(folder, lambda site: forgetting.readmit(site, forgetting.who(site, asked_patient())))
    click.echo(say("may be taken in again", "可再次导入"))
    return 0


@click.command()
@FOLDER
def forgettings(folder: Path) -> int:
    """Requests to forget a patient and what became of them; nobody's name is kept.

    遗忘患者的申请及其结果；不保留任何人的姓名。
    """
    from medmesh_edge import forgetting

    show(on_site(folder, forgetting.waiting))
    return 0


@click.command()
@FOLDER
@click.argument("copy", type=click.Path(exists=True, file_okay=False, path_type=Path))
def trace(folder: Path, copy: Path) -> int:
    """What the log says of one patient, from a copy made by `medmesh edge audit export`.

    从 `medmesh edge audit export` 所得的副本中，查询日志对某患者的记录。

    Asks for the patient ID. Only this hospital can tell which records are about the patient, and only until the patient is forgotten.

    交互输入患者编号。只有本院能判断哪些记录与该患者有关，且仅限该患者被遗忘之前。
    """
    from medmesh_edge import forgetting

    for seq, time, verb in on_site(folder, lambda site: forgetting.trace(site, forgetting.who(site, asked_patient()), copy)):
        click.echo(f"{seq}  {time}  {verb}")
    return 0
