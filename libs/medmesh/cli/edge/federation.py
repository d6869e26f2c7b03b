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
    """Invitations and what became of them, as JSON.

    收到的联邦邀请及其结果（JSON）。

    What is `invited` waits for `medmesh edge approve` or `decline`. `reason` says what it waits for, or why it ended; `part`, of one that
    this hospital left, in how many committed rounds its part stays.

    状态为 `invited` 的待 `medmesh edge approve` 或 `decline`；`reason` 为等待的事项或结束的原因；`part` 为退出后仍含本院贡献的已提交轮数。
    """
    from sqlalchemy import select

    from medmesh_edge.tables import SHOWN, federations

    async def work(site: Any) -> Any:
        async with site.unit() as uow:
            return await uow.all(select(federations).order_by(federations.c.at))

    show([{"name": r.plan["name"], **{one: getattr(r, one) for one in SHOWN}} for r in on_site(folder, work)])
    return 0


@click.command(name="show")
@FOLDER
@click.argument("federation")
def show_plan(folder: Path, federation: str) -> int:
    """The plan in plain words: what code runs, what leaves, how often; and what is other than in the plan accepted before.

    用通俗文字查看方案：运行什么代码、什么数据出院、多频繁，以及与此前接受的方案有何不同。
    """
    from sqlalchemy import select

    from medmesh.contracts.plan import Plan
    from medmesh.federated.plan import explain
    from medmesh_edge import changes, code, environments
    from medmesh_edge.tables import federations

    async def work(site: Any) -> Any:
        async with site.unit() as uow:
            row = await uow.first(select(federations).where(federations.c.federation == federation))
        if row is None:
            raise Problem("request.not_found", kind="federation", id=federation)
        runs = await environments.described(site, row, language())
        return row, [*code.described(site, row, language()), *runs, *await changes.since(site, federation, language())]

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
    """Open a one-time LINK from who invited this hospital: the plan in plain words.

    打开邀请方给出的一次性链接 LINK：用通俗文字查看方案。

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
    """Approve the plan of FEDERATION and its code; the node then signs it, if the policy allows.

    批准 FEDERATION 的方案及其代码；策略允许时，节点随即签署。

    It holds for this plan alone, and for the interpreter and packages that are installed now: another plan with the same code is asked
    about again, and so is this one once they are others, with what is different.

    仅对该方案及现有的解释器与软件包有效：使用同一代码的其他方案须另行批准；软件变化后本方案也须重新批准，届时列出差异。
    """
    from medmesh_edge import changes, environments
    from medmesh_edge.consent import approve

    async def told(site: Any) -> list[str]:
        return [*await environments.since(site, federation, language()), *await changes.since(site, federation, language())]

    for line in on_site(folder, told):
        click.echo(line)
    plan = on_site(folder, lambda site: approve(site, federation, getpass.getuser()))
    click.echo(say(f"approved the plan {plan}", f"已批准方案 {plan}"))
    return 0


@click.command()
@FOLDER
@click.argument("federation")
@click.option("--reason", default="", help="Told to the initiator.  告知发起人。")
def decline(folder: Path, federation: str, reason: str) -> int:
    """Decline an invitation.  谢绝邀请。"""
    from medmesh_edge.consent import decline

    on_site(folder, lambda site: decline(site, federation, reason))
    click.echo(say("declined", "已谢绝"))
    return 0


@click.command()
@FOLDER
@click.argument("federation")
@click.option("--reason", default="", help="Told to the initiator.  告知发起人。")
@click.option("--yes", is_flag=True, help="Ask nothing.  不再询问。")
def withdraw(folder: Path, federation: str, reason: str, yes: bool) -> int:
    """Leave FEDERATION for good, also after its end.  永久退出联邦，结束后亦可。

    From this moment nothing of this hospital leaves: no update, no count. What it gave to the open round is not used and is deleted, unless
    its secure sum is being opened already. What cannot be undone: models of committed rounds have its part in them for good, and those that
    were released are in use elsewhere; only their owner can withdraw them. It is shown before it is done, with the number of rounds.

    自此刻起，本院不再有任何更新或计数出院；已提交给当前轮的内容不被使用并予删除（其安全聚合正在开启的除外）。不可撤销的：已提交各轮的模型中已包含的
    本院贡献无法取出；已发布的模型在他处使用，只有其所有者可以撤回。执行前会显示上述说明及所涉轮数。
    """
    from medmesh_edge.consent import part, withdraw

    rounds = on_site(folder, lambda site: part(site, federation))
    for line in _leaving(rounds):
        click.echo(line)
    if not yes:
        click.confirm(say(f"leave {federation} for good?", f"确定永久退出 {federation}？"), abort=True)
    on_site(folder, lambda site: withdraw(site, federation, reason))
    there = "medmesh edge federations"
    en = f"withdrawn; nothing of this federation leaves any more. At most {rounds} committed rounds keep this hospital's part"
    zh = f"已退出；不再有任何内容离开本院。至多 {rounds} 轮已提交的模型仍含本院的贡献"
    click.echo(say(f"{en}; the platform's number is in {there} (part) once the node heard it", f"{zh}；平台确认的轮数见 {there}（part）"))
    return 0


def _leaving(rounds: int) -> list[str]:
    """What leaving can and cannot undo."""
    return [
        say("from now on: no update and no count of this hospital leaves", "今后：本院不再有任何更新或计数出院"),
        say(
            "the open round: what this hospital gave to it is not used and is deleted, unless its secure sum is being opened already",
            "当前轮：本院已提交的内容不被使用并予删除，除非其安全聚合正在开启",
        ),
        say(
            f"not undone: models of committed rounds keep this hospital's part; by this node's own count at most {rounds} rounds",
            f"不可撤销：已提交各轮的模型仍含本院的贡献；按本节点记录，至多 {rounds} 轮",
        ),
        say(
            "not undone: models that were released are in use elsewhere, and only their owner can withdraw them; their page names this"
            " hospital as withdrawn",
            "不可撤销：已发布的模型在他处使用，只有其所有者可以撤回；模型页面会注明本院已退出",
        ),
    ]
