"""`medmesh edge policy`: the hospital's own rules, and what they say to a plan.  本院策略。"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medmesh.cli import language, say
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show
from medmesh.errors import Problem


@click.group(name="policy")
def site_policy() -> None:
    """The rules of this hospital: the file `policy.toml` in the node's folder, which it edits itself.

    本院的规则：节点文件夹中的 `policy.toml`，由医院自行编辑。
    """


@site_policy.command(name="show")
@FOLDER
def show_policy(folder: Path) -> int:
    """The policy as the node reads it, with what is not written out.

    节点所读取的策略，包括未写明的默认值。
    """
    from dataclasses import asdict

    from medmesh_edge.policy import read
    from medmesh_edge.settings import Layout

    show(asdict(read(Layout(folder.absolute()).policy)))
    return 0


@site_policy.command()
@FOLDER
@click.argument("plan")
def check(folder: Path, plan: str) -> int:
    """What every rule says to PLAN: a federation this hospital is invited to, or a file with a plan as JSON.

    各条规则对 PLAN 的结论：PLAN 为本院受邀的联邦，或含 JSON 方案的文件。

    Exit code 1 where a rule refuses.

    有规则拒绝时退出码为 1。
    """
    from medmesh_edge import policy
    from medmesh_edge.privacy import cohort

    async def work(site: Any) -> Any:
        wanted = await _plan(site, plan)
        return policy.refusals(site.policy(), wanted, await cohort(site, wanted, plan))

    refused = on_site(folder, work)
    for name in policy.RULES:
        said = refused[name].detail(language()) if name in refused else say("allowed", "允许")
        click.secho(f"{name:<16} {said}", fg="red" if name in refused else None)
    return 1 if refused else 0


@site_policy.command()
@FOLDER
def scans(folder: Path) -> int:
    """How much the models trained here had memorised of this hospital's patients, where `memorised` is not off.

    在本院训练的模型记住了多少本院患者的信息；`memorised` 未关闭时才检查。
    """
    from medmesh_edge.memorised import listed

    show(on_site(folder, listed))
    return 0


async def _plan(site: Any, wanted: str) -> Any:
    """Raises `Problem` (`request.not_found`, `plan.*`)."""
    from pydantic import ValidationError
    from sqlalchemy import select

    from medmesh.canonical import parse
    from medmesh.contracts.plan import Plan
    from medmesh.contracts.refusals import contradiction
    from medmesh_edge.tables import federations

    if Path(wanted).is_file():
        try:
            return Plan.model_validate(parse(Path(wanted).read_bytes()))
        except ValidationError as error:
            raise contradiction(error) from None
        except ValueError:
            raise Problem("plan.json") from None
    async with site.unit() as uow:
        row = await uow.first(select(federations).where(federations.c.federation == wanted))
    if row is None:
        raise Problem("request.not_found", kind="federation", id=wanted)
    return Plan.model_validate(row.plan)
