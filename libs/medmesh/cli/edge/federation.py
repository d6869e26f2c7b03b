"""`medmesh edge federations|show|approve|decline|withdraw`: what a hospital says to federations.  联邦邀请与退出。"""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import click

from medmesh.cli import language, say
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show
from medmesh.errors import Problem


@click.command(name="federations")
@FOLDER
def list_federations(folder: Path) -> int:
    """Invitations and what became of them.  联邦邀请。"""
    from sqlalchemy import select

    from medmesh_edge.tables import federations

    async def work(site: Any) -> Any:
        async with site.unit() as uow:
            return await uow.all(select(federations).order_by(federations.c.at))

    show([{"federation": r.federation, "name": r.plan["name"], "state": r.state, "reason": r.reason} for r in on_site(folder, work)])
    return 0


@click.command(name="show")
@FOLDER
@click.argument("federation")
def show_plan(folder: Path, federation: str) -> int:
    """The plan in plain words: what code runs, what leaves, how often.  查看方案。"""
    from sqlalchemy import select

    from medmesh.contracts.plan import Plan
    from medmesh.federated.plan import explain
    from medmesh_edge import changes, code
    from medmesh_edge.tables import federations

    async def work(site: Any) -> Any:
        async with site.unit() as uow:
            row = await uow.first(select(federations).where(federations.c.federation == federation))
        if row is None:
            raise Problem("request.not_found", kind="federation", id=federation)
        return row, [*code.described(site, row, language()), *await changes.since(site, federation, language())]

    row, described = on_site(folder, work)
    for line in (*explain(Plan.model_validate(row.plan), language()), *described):
        click.echo(line)
    click.echo(say(f"Plan hash {row.plan_hash}", f"方案哈希 {row.plan_hash}"))
    return 0


@click.command(name="open")
@FOLDER
@click.argument("link")
@click.pass_context
def open_invitation(context: click.Context, folder: Path, link: str) -> int:
    """Open a one-time LINK from who invited this hospital: the plan in plain words.  打开一次性邀请链接。

    It opens once and consents to nothing: that is `medmesh edge approve` or `decline`.

    链接只能打开一次，不等于同意；同意或谢绝请用 `medmesh edge approve` 或 `decline`。
    """
    from medmesh_edge.invitation import open_link

    row = on_site(folder, lambda site: open_link(site, link))
    context.invoke(show_plan, folder=folder, federation=row.federation)
    approving = f"medmesh edge approve {row.federation}"
    click.echo(say(f"to take part: {approving}; or: medmesh edge decline", f"同意参加：{approving}；谢绝：medmesh edge decline"))
    return 0


@click.command()
@FOLDER
@click.argument("federation")
def approve(folder: Path, federation: str) -> int:
    """Approve the plan of FEDERATION and its code; the node then signs it, if the policy allows.  批准方案及代码，节点随即签署。

    It holds for this plan alone: another with the same code is asked about again, with what is different.

    仅对该方案有效：使用同一代码的其他方案须另行批准，届时列出差异。
    """
    from medmesh_edge import changes
    from medmesh_edge.consent import approve

    for line in on_site(folder, lambda site: changes.since(site, federation, language())):
        click.echo(line)
    plan = on_site(folder, lambda site: approve(site, federation, getpass.getuser()))
    click.echo(say(f"approved the plan {plan}", f"已批准方案 {plan}"))
    return 0


@click.command()
@FOLDER
@click.argument("federation")
@click.option("--reason", default="")
def decline(folder: Path, federation: str, reason: str) -> int:
    """Decline an invitation.  谢绝邀请。"""
    from medmesh_edge.consent import decline

    on_site(folder, lambda site: decline(site, federation, reason))
    click.echo(say("declined", "已谢绝"))
    return 0


@click.command()
@FOLDER
@click.argument("federation")
@click.option("--reason", default="", help="Told to the initiator.")
@click.option("--yes", is_flag=True, help="Ask nothing.")
def withdraw(folder: Path, federation: str, reason: str, yes: bool) -> int:
    """Leave FEDERATION for good, also after its end.  退出联邦。

    From this moment nothing of this hospital leaves: no update, no count. What it gave to the open round is not used and is deleted.
    What cannot be undone: committed models were averaged with its updates, and models that were released are in use elsewhere; those
    only their owner can withdraw. 已提交的全局模型中已包含的贡献无法取出；已发布的模型须由其所有者撤回。
    """
    from medmesh_edge.consent import withdraw

    if not yes:
        click.confirm(say(f"leave {federation} for good?", f"确定永久退出 {federation}？"), abort=True)
    on_site(folder, lambda site: withdraw(site, federation, reason))
    click.echo(say("withdrawn; nothing of this federation leaves any more", "已退出；不再有任何内容离开本院"))
    return 0
