"""`medmesh edge ethics`: on which approvals of the ethics committee data are taken in and used.  伦理批件与知情同意。"""

from __future__ import annotations

import getpass
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.edge.patients import asked_patient
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show

DAY = click.DateTime(["%Y-%m-%d"])
ETHICS = click.option(
    "--ethics",
    default="",
    help="Number of the ethics committee's approval (medmesh edge ethics).  伦理委员会批件编号（medmesh edge ethics）。",
)
"""On which approval a command takes data in."""


@click.group()
def ethics() -> None:
    """Approvals of the ethics committee, and who agreed.  伦理批件与知情同意。

    What is taken in stands on one (`medmesh edge ingest --ethics NUMBER`). When it has run out or was ended, or the patient took the
    consent back, the data are used no more from the next round on; they stay until `medmesh edge forget`.

    导入的数据依据批件使用；批件到期、终止或患者撤回同意后，从下一轮训练起不再使用；数据保留至 medmesh edge forget。
    """


@ethics.command()
@FOLDER
@click.argument("number")
@click.option("--title", required=True, help="Of the study.  研究名称。")
@click.option("--kind", "kinds", multiple=True, required=True, help="image, signal, table or text; once for each.  数据类别，可多次给出。")
@click.option("--from", "since", type=DAY, required=True, help="First day, YYYY-MM-DD.  生效日。")
@click.option("--until", type=DAY, required=True, help="Last day.  截止日。")
@click.option("--consent", type=click.Choice(["waived", "individual"]), required=True, help="Of each patient, or waived.  知情同意方式。")
def add(folder: Path, number: str, title: str, kinds: tuple[str, ...], since: datetime, until: datetime, consent: str) -> int:
    """Write approval NUMBER down; it cannot be changed afterwards, only ended.

    登记编号为 NUMBER 的伦理批件；登记后不可更改，只能终止。

    \b
    medmesh edge ethics add 2026-LL-017 --title "脑肿瘤MRI多中心研究" --kind image --from 2026-01-01 --until 2027-12-31 --consent waived
    """
    from medmesh_edge.ethics import Approval, record

    approval = Approval(number, title, kinds, since.date(), until.date(), consent == "individual")
    on_site(folder, lambda site: record(site, approval, getpass.getuser()))
    click.echo(say(f"written down: medmesh edge ingest --ethics {number} …", f"已登记：medmesh edge ingest --ethics {number} …"))
    return 0


@ethics.command(name="list")
@FOLDER
def list_approvals(folder: Path) -> int:
    """Every approval, whether it is valid today, and what is used under it.  查看伦理批件及其使用情况。"""
    from medmesh_edge.ethics import listed

    show(on_site(folder, listed))
    return 0


@ethics.command()
@FOLDER
@click.argument("number")
@click.option("--reason", required=True, help="For the hospital's own people; it does not leave.  终止原因，不出院。")
def end(folder: Path, number: str, reason: str) -> int:
    """End approval NUMBER before its time.  提前终止伦理批件。"""
    from medmesh_edge.ethics import end

    on_site(folder, lambda site: end(site, number, reason))
    click.echo(say("ended: what was taken in under it is used no more", "已终止：其下数据不再使用"))
    return 0


@ethics.command()
@FOLDER
@click.argument("number")
@click.option("--withdraw", is_flag=True, help="They took it back.  撤回同意。")
@click.option("--list", "listed", type=click.File(encoding="utf-8"), help="Patient IDs, one a line; - reads a pipe.  每行一个患者编号。")
def consent(folder: Path, number: str, withdraw: bool, listed: Any) -> int:
    """Patients who agreed to approval NUMBER, or with --withdraw took that back.

    登记同意批件 NUMBER 的患者；加 --withdraw 则登记撤回。

    Asks for one patient ID, or reads many from --list. Only pseudonyms are kept. To erase what is there: medmesh edge forget.

    交互输入一个患者编号，或用 --list 读取多个。只保存假名。要清除已有数据：medmesh edge forget。
    """
    from medmesh_edge import ethics as approvals
    from medmesh_edge.forgetting import who

    lines = [asked_patient()] if listed is None else listed
    patients = [line.strip() for line in lines if line.strip()]

    async def work(site: Any) -> int:
        return await approvals.consent(site, number, [who(site, one) for one in patients], agreed=not withdraw)

    changed = on_site(folder, work)
    click.echo(say(f"{changed} of {len(patients)} changed", f"{len(patients)} 名患者中 {changed} 名有变更"))
    return 0
