"""`medmesh federation`: made, steered, followed, and what comes of it.  联邦训练。"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from medmesh.cli import language, say
from medmesh.cli.files import Written
from medmesh.cli.plan_options import training, training_of
from medmesh.cli.rehearse import rehearse, tell
from medmesh.cli.session import show, with_gateway
from medmesh.cli.simulate import simulate
from medmesh.cli.steering import STEERING
from medmesh.client.gateway import Gateway
from medmesh.contracts.federation import FederationState

AT_THE_NODE = {"accept": "approve", "decline": "decline", "withdraw": "withdraw"}
"""What hospitals do, at their own node, and the command for it there."""


class _Words(click.Group):
    """Says where to go for what people look for here, and is done elsewhere."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if (command := AT_THE_NODE.get(args[0])) is not None:
            there = f"medmesh edge {command} FEDERATION"
            raise click.UsageError(say(f"A hospital does that at its own node: {there}", f"由医院在本院节点上执行：{there}"), ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Words)
def federation() -> None:
    """Hospitals train one model together; their data stay with them.

    多家医院共同训练一个模型，数据不出院。

    First tried on this machine, then created; hospitals approve the plan at their own nodes, a second person its start.
    docs/federation/README.md goes through it.

    先在本机试跑，再创建；医院在本院节点上批准方案，第二人批准启动。全过程见 docs/federation/README.zh-CN.md。

    \b
    medmesh federation simulate PACKAGE --data SAMPLES --out trial
    medmesh federation create PACKAGE --name mri --purpose "…" --initiator person:li@platform --hospital renji …
    medmesh approval request federation.start FEDERATION PLAN_HASH
    medmesh federation watch FEDERATION
    medmesh federation result FEDERATION --out model.safetensors
    """


@federation.command(name="list")
@click.option("--state", type=click.Choice(get_args(FederationState)), help="Only those in this state.  只列此状态的联邦。")
@click.option("--mine", is_flag=True, help="Only those you created.  只列本人创建的联邦。")
@click.option("--hospital", help="Only those that this hospital was invited to.  只列邀请了该医院的联邦。")
def list_federations(state: str | None, mine: bool, hospital: str | None) -> int:
    """Every federation you may see, newest first.

    列出您可见的全部联邦，最新的在前。
    """
    from medmesh.client.federation import federations

    narrowed = {"state": state, "hospital": hospital, "mine": "true" if mine else None}

    async def run(gateway: Gateway) -> list[Any]:
        asked = federations(gateway, **{name: value for name, value in narrowed.items() if value is not None})
        return [one.model_dump(mode="json") async for one in asked]

    show(with_gateway(run))
    return 0


@federation.command(name="show")
@click.argument("identifier", metavar="FEDERATION")
@click.option("--json", "as_json", is_flag=True, help="For programs, with plain numbers.  供程序使用，数值不作换算。")
def show_federation(identifier: str, as_json: bool) -> int:
    """A federation in plain words: its plan, its rounds, its participants.

    用通俗文字查看联邦：方案、各轮、各参与方。
    """
    from medmesh.cli.doing import doing
    from medmesh.cli.views import LINKS, awaited, ended, flagged, standing, state, waits
    from medmesh.client.federation import Federation
    from medmesh.federated.plan import explain

    async def run(gateway: Gateway) -> Any:
        one = Federation(gateway, identifier)
        return await one.view(), [] if as_json else await one.awaited()

    view, asked = with_gateway(run)
    if as_json:
        show(view.model_dump(mode="json"))
        return 0
    click.secho(f"{view.plan.name}  {state(view.state)}", bold=True)
    ended(view)
    for line in explain(view.plan, language()):
        click.echo(f"  {line}")
    for line in (*waits(view), *awaited(asked)):
        click.echo(f"  {line}")
    for participant in view.participants:
        online = say("online", "在线") if participant.online else say("offline", "离线")
        link = say(*LINKS[participant.link]) if participant.link else ""
        told = (participant.hospital.ljust(16), state(participant.state, 10), online, link, doing(view, participant), participant.reason)
        click.echo(f"  {' '.join(told)}".rstrip())
    for one in view.rounds:
        left = state("undone" if one.undone else one.state, 10)
        click.echo(f"  {say('round', '轮')} {one.round}.{one.attempt} {state(one.kind, 9)} {left} {len(one.answers)}")
    for line in (*flagged(view), *standing(view)):
        click.secho(f"  {line}", fg="yellow")
    return 0


@federation.command()
@click.argument("identifier", metavar="FEDERATION")
@click.option("--hospital", "hospitals", multiple=True, help="One that is invited; by default each of them.  受邀医院，默认全部。")
@click.option("--days", default=7.0, show_default=True, help="How long a link may wait.  链接有效天数。")
@click.option("--revoke", is_flag=True, help="What was handed out opens nothing any more.  撤销已发出的链接。")
def invite(identifier: str, hospitals: tuple[str, ...], days: float, revoke: bool) -> int:
    """One-time links for the people of invited hospitals, to be handed to each.

    给受邀医院人员的一次性链接，由您转交各院。

    A link is shown once, here. It opens at that hospital's node only, shows the plan, and consents to nothing.

    链接只在此处显示一次，只能在该医院的节点上打开，仅用于查看方案，不等于同意。
    """
    from medmesh.client.federation import Federation

    async def run(gateway: Gateway) -> Any:
        one = Federation(gateway, identifier)
        wanted = hospitals or tuple(entry.hospital for entry in (await one.view()).participants)
        return [(name, await (one.revoke_link(name) if revoke else one.link(name, round(days * 86_400)))) for name in wanted]

    for name, made in with_gateway(run):
        click.echo(f"{name:<16} {say('revoked', '已撤销')}" if revoke else _to_open(name, made))
    return 0


def _to_open(hospital: str, link: str) -> str:
    return f"{hospital:<16} medmesh edge open {link}"


@federation.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", required=True, help="Of the plan, and of the model that comes of it.  方案及所得模型的名称。")
@click.option("--purpose", required=True, help="What for; hospitals read it.  用途，医院会读到。")
@click.option("--initiator", required=True, help="You, as person:NAME@ORGANISATION.  发起人本人，格式 person:姓名@机构。")
@click.option("--hospital", "hospitals", multiple=True, required=True, help="Whom to invite; once for each.  邀请的医院；每家一次。")
@training
@click.option("--accept-minutes", default=60.0, show_default=True, help="How long hospitals may think.  医院可考虑多少分钟。")
@click.option(
    "--start-minutes",
    default=0.0,
    help="Not before so many minutes from now; by default as soon as all have answered.  最早多少分钟后开始；默认在全部答复后立即开始。",
)
@click.option("--round-deadline", default=600, show_default=True, help="Seconds that a round may take.  单轮时限（秒）。")
@click.option("--lease", default=15, show_default=True, help="Seconds a silent hospital keeps its place.  失联医院保留席位的秒数。")
@click.option(
    "--review",
    "reviews",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Of the package's code, from `medmesh package review`; once for each reviewer."
    "  代码审查签名文件，来自 medmesh package review；每位审查人一份。",
)
@click.option(
    "--rehearsal/--no-rehearsal",
    default=None,
    help="On invented data first; by default where the package has code of its own.  先以虚构数据演练；训练包含自有代码时默认进行。",
)
@click.option("--links", is_flag=True, help="Show a one-time link for each hospital, as `invite` does.  同时显示每家医院的一次性链接。")
def create(folder: Path, name: str, hospitals: tuple[str, ...], accept_minutes: float, start_minutes: float, **options: Any) -> int:
    """Create a federation from the training package in FOLDER and invite the hospitals.

    用 FOLDER 中的训练包创建联邦并邀请医院。

    Prints the federation's number and the plan's hash, which approvers of its start are asked about. Training begins when all hospitals
    have answered, or --accept-minutes are over and enough of them accepted, and the start is approved.

    输出联邦编号与方案哈希，后者用于申请启动审批。全部医院答复，或 --accept-minutes 届满且同意的医院够数，并且启动获批后，开始训练。

    \b
    medmesh federation create PACKAGE --name mri --purpose "tell a tumour" --initiator person:li@platform \\
      --hospital xiehe --hospital renji --hospital huashan --rounds 10 --steps 50 --evaluate-every 1
    """
    from medmesh.client.federation import Federation, create_federation

    async def run(gateway: Gateway) -> Any:
        made = await create_federation(
            gateway,
            folder,
            name=name,
            purpose=options["purpose"],
            initiator=options["initiator"],
            hospitals=hospitals,
            accept_seconds=accept_minutes * 60,
            start_seconds=start_minutes * 60,
            round_deadline_seconds=options["round_deadline"],
            lease_seconds=options["lease"],
            rehearsal=options["rehearsal"],
            reviews=[file.read_text(encoding="utf-8") for file in options["reviews"]],
            tell=tell,
            **training_of(options),
        )
        one = Federation(gateway, made["federation"])
        return made, [(hospital, await one.link(hospital)) for hospital in hospitals if options["links"]]

    made, handed = with_gateway(run)
    show(made)
    for hospital, link in handed:
        click.echo(_to_open(hospital, link), err=True)  # the answer on stdout stays one document
    click.echo(
        say(
            f"next: medmesh approval request federation.start {made['federation']} {made['plan_hash']}",
            f"下一步：medmesh approval request federation.start {made['federation']} {made['plan_hash']}",
        ),
        err=True,
    )
    return 0


@federation.command()
@click.argument("identifier", metavar="FEDERATION")
def watch(identifier: str) -> int:
    """Follow a federation until it ends, a block for every change; exit code 1 when it did not complete.

    跟踪联邦直至结束，有变化即显示；未完成时退出码为 1。

    What each hospital does, how far it is, and with what rate; what is waited for, and the command that ends a wait. Ctrl-C ends the
    watching and nothing else.

    各院在做什么、进度与速率；在等什么，以及可结束等待的命令。Ctrl-C 只结束跟踪。
    """
    import time

    from medmesh.cli.doing import Speeds
    from medmesh.cli.views import now
    from medmesh.client.federation import Federation

    async def run(gateway: Gateway) -> str:
        state, one, speeds = "", Federation(gateway, identifier), Speeds()
        async for view in one.watch():
            now(view, await one.awaited(), speeds.seen(view, time.monotonic()))
            state = view.state
        return state

    return 0 if with_gateway(run) == "completed" else 1


@federation.command()
@click.argument("identifier", metavar="FEDERATION")
@click.option("--out", type=Written(), help="Also save the final model (safetensors).  保存最终模型。")
@click.option("--json", "as_json", is_flag=True, help="For programs, with plain numbers.  供程序使用，数值不作换算。")
def result(identifier: str, out: Path | None, as_json: bool) -> int:
    """The final model, how every model did at every hospital, and what personal models gain.

    查看最终模型、每个模型在每家医院的表现，以及专属模型的增益。

    Balanced accuracy with 95 % intervals, computed from the counts that hospitals sent: they take samples as independent, so that where
    patients gave several samples the true interval is wider. That counts were rounded (the small-cell rule) is in the intervals.

    平衡准确率及 95% 置信区间由各院提交的计数得出，假定样本相互独立；同一患者有多个样本时真实区间更宽。
    计数取整（小单元格规则）的影响已计入区间。
    """
    from medmesh.cli.views import document, show_result, state
    from medmesh.client.federation import Federation

    async def run(gateway: Gateway) -> Any:
        one = Federation(gateway, identifier)
        view = await one.view()
        return (view, await one.model(out)) if out else (view, None)

    view, saved = with_gateway(run)
    if view.state != "completed":
        click.echo(say(f"not completed: {view.state}", f"尚未完成：{state(view.state)}"), err=True)
        return 1
    if as_json:
        show(document(view))
        return 0
    show_result(view, saved)
    return 0


@federation.command()
@click.argument("identifier", metavar="FEDERATION")
@click.option(
    "--out",
    type=Written(),
    required=True,
    help="Without an ending: OUT.png and OUT.csv are written.  不带扩展名，写入 OUT.png 与 OUT.csv。",
)
def plot(identifier: str, out: Path) -> int:
    """Draw metric, bytes and time of every round, with the numbers as CSV beside it.  绘制每轮指标、流量与耗时。"""
    from medmesh.cli.views import draw
    from medmesh.client.federation import Federation

    return draw(with_gateway(lambda gateway: Federation(gateway, identifier).view()), out)


for command in (simulate, rehearse, *STEERING):
    federation.add_command(command)
federation.add_command(show_federation, "status")  # as people look for it
