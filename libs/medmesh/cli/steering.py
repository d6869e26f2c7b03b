"""What a federation's initiator does to it while it runs, and what others must approve.  联邦的控制。"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from medmesh.cli import say
from medmesh.cli.session import show, with_gateway
from medmesh.client.gateway import Gateway

if TYPE_CHECKING:
    from medmesh.client.federation import Federation


def _steer(identifier: str, how: Callable[[Federation], Awaitable[Any]]) -> int:
    from medmesh.client.federation import Federation

    show(with_gateway(lambda gateway: how(Federation(gateway, identifier))))
    return 0


REASON = (
    "Every hospital of the plan reads it, and it is in the audit log; at most 200 characters."
    "  各参与医院可见，并记入审计日志；最多 200 字。"
)


@click.command()
@click.argument("identifier", metavar="FEDERATION")
@click.option("--reason", default="", help=REASON)
def pause(identifier: str, reason: str) -> int:
    """Open no further round; the clock of the open one stands still. `resume` goes on.

    暂停：不再开新轮，当前轮停止计时；用 `resume` 恢复。
    """
    return _steer(identifier, lambda one: one.pause(reason))


@click.command()
@click.argument("identifier", metavar="FEDERATION")
def resume(identifier: str) -> int:
    """Go on after a pause, where it was.  暂停后从原处恢复。"""
    return _steer(identifier, lambda one: one.resume())


REQUEST = click.option("--request", "asks", is_flag=True, help="Ask for the approval at once.  立即提交审批申请。")


def _approval(identifier: str, asks: bool, wanted: Callable[[Federation], Awaitable[dict[str, Any]]]) -> int:
    """Print what to ask approval for, or ask for it and say what it waits for."""
    from medmesh.cli.asking import request_approval
    from medmesh.cli.views import awaited
    from medmesh.client.federation import Federation

    async def run(gateway: Gateway) -> None:
        one = Federation(gateway, identifier)
        request = await wanted(one)
        if not asks:
            click.echo(f"medmesh approval request {request['action']} {request['target']} {request['digest']}")
            return
        made = await request_approval(gateway, request)
        show({**request, "approval": made["approval"]})
        for line in awaited([found for found in await one.awaited() if found.approval == made["approval"]]):
            click.echo(line, err=True)
        click.echo(say(f"follow it: medmesh federation watch {identifier}", f"跟踪进度：medmesh federation watch {identifier}"), err=True)

    with_gateway(run)
    return 0


@click.command()
@click.argument("identifier", metavar="FEDERATION")
@click.argument("hospital")
@click.option("--reason", required=True, help=REASON)
def quarantine(identifier: str, hospital: str, reason: str) -> int:
    """Leave HOSPITAL out, at once, until others approve its release.

    立即隔离某医院，直至他人批准解除。

    What it gave to the open round does not count; what is part of committed models stays there.

    该院在当前轮所提交的不计入；已并入已提交模型的部分保留。

    \b
    medmesh federation quarantine FEDERATION renji --reason "its scanner is miscalibrated"

    \b
    medmesh federation quarantine FEDERATION renji --reason "扫描仪未校准"
    """
    _steer(identifier, lambda one: one.quarantine(hospital, reason))
    how = f"medmesh federation release {identifier} {hospital} --request"
    click.echo(say(f"it ends when others approve: {how}", f"须经他人审批方可解除：{how}"), err=True)
    return 0


@click.command()
@click.argument("identifier", metavar="FEDERATION")
@click.option(
    "--round",
    "number",
    type=click.IntRange(min=0),
    required=True,
    help="Whose model it goes on from; 0: the first weights.  从第几轮的模型继续；0 为初始权重。",
)
@REQUEST
def rollback(identifier: str, number: int, asks: bool) -> int:
    """What to ask approval for so that the rounds after one are undone.

    查看或提交审批申请，以撤销某一轮之后的各轮。

    Nothing is undone before others approved it. Privacy that rounds spent stays spent.

    未经他人批准不撤销任何内容。各轮已消耗的隐私预算不退还。

    \b
    medmesh federation rollback FEDERATION --round 3 --request
    """
    return _approval(identifier, asks, lambda one: one.rollback_request(number))


@click.command()
@click.argument("identifier", metavar="FEDERATION")
@click.argument("hospital")
@REQUEST
def release(identifier: str, hospital: str, asks: bool) -> int:
    """What to ask approval for so that HOSPITAL may take part again.

    查看或提交审批申请，使 HOSPITAL 可再次参加。

    \b
    medmesh federation release FEDERATION renji --request
    """
    return _approval(identifier, asks, lambda one: one.release_request(hospital))


@click.command()
@click.argument("identifier", metavar="FEDERATION")
@click.option("--minutes", type=float, required=True, help="Added to the deadline.  在时限上增加的分钟数。")
def extend(identifier: str, minutes: float) -> int:
    """Give the open round so many more minutes.  延长本轮时限。"""
    return _steer(identifier, lambda one: one.extend(round(minutes * 60)))


@click.command()
@click.argument("identifier", metavar="FEDERATION")
@click.option("--learning-rate", help="Of each step.  每步的学习率。")
@click.option("--steps", type=int, help="Local steps a round.  每轮本地训练步数。")
@click.option("--batch-size", type=int, help="Samples in a step.  每步样本数。")
def adjust(identifier: str, learning_rate: str | None, steps: int | None, batch_size: int | None) -> int:
    """Change learning rate, steps or batch size from the next round on, within the ranges that hospitals signed (`create --range`).

    自下一轮起，在医院签署的范围内（`create --range`）调整学习率、步数或批量。

    What is not named here is the plan's again.

    未列出的恢复为方案的值。

    \b
    medmesh federation adjust FEDERATION --learning-rate 0.05 --steps 20
    """
    given = {"learning_rate": learning_rate, "local_steps": steps, "batch_size": batch_size}
    changed = {name: str(value) for name, value in given.items() if value is not None}
    return _steer(identifier, lambda one: one.adjust(**changed))


@click.command()
@click.argument("identifier", metavar="FEDERATION")
@click.option("--reason", required=True, help=REASON)
def cancel(identifier: str, reason: str) -> int:
    """End it; its hospitals are told. There is no way back.

    取消联邦并通知各院。此操作不可恢复。
    """
    return _steer(identifier, lambda one: one.cancel(reason))


STEERING = (pause, resume, quarantine, rollback, release, extend, adjust, cancel)
"""In `medmesh federation`."""
