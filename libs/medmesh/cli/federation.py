"""`medmesh federation watch|result|plot`: what comes of a federation; how one is made and steered is in `work`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medmesh.cli import language, say
from medmesh.cli.session import show, with_gateway
from medmesh.cli.work import federation
from medmesh.client.gateway import Gateway

if TYPE_CHECKING:
    from medmesh.contracts.federation import FederationView


def _now(view: FederationView) -> None:
    """Where it stands: one line for the whole, one a hospital."""
    from medmesh.client.federation import last_round, remaining

    current = view.rounds[-1].round if view.rounds else 0
    left = remaining(view)
    eta = "" if left is None else say(f", about {left:.0f} s of work left", f"，约剩 {left:.0f} 秒")
    click.secho(f"{view.plan.name}  {view.state}  {say('round', '轮')} {current}/{last_round(view.plan)}{eta}", bold=True)
    if view.failure:
        click.secho(f"  {view.failure}", fg="red")
    for one in view.participants:
        online = say("online", "在线") if one.online else say("offline", "离线")
        at = one.progress
        doing = f"{at.round} {at.phase} {at.done}/{at.total}" if at is not None and view.state == "running" else ""
        click.echo(f"  {one.hospital:<16} {one.state:<10} {online} {doing} {one.reason}".rstrip())


@federation.command()
@click.argument("identifier")
def watch(identifier: str) -> int:
    """Follow a federation until it ends, a block for every change; exit code 1 when it did not complete.  跟踪联邦直至结束。"""
    from medmesh.client.federation import Federation

    async def run(gateway: Gateway) -> str:
        state = ""
        async for view in Federation(gateway, identifier).watch():
            _now(view)
            state = view.state
        return state

    return 0 if with_gateway(run) == "completed" else 1


@federation.command()
@click.argument("identifier")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Also save the final model (safetensors).  保存最终模型。")
@click.option("--json", "as_json", is_flag=True)
def result(identifier: str, out: Path | None, as_json: bool) -> int:
    """The final model, and how every model did at every hospital.  查看结果与跨院评估矩阵。

    Balanced accuracy with 95 % intervals, computed from the counts that hospitals sent: they take samples as independent, so that where
    patients gave several samples the true interval is wider.

    平衡准确率及 95% 置信区间由各院提交的计数得出，假定样本相互独立；同一患者有多个样本时真实区间更宽。
    """
    from medmesh.client.federation import Federation, cross_site

    async def run(gateway: Gateway) -> Any:
        one = Federation(gateway, identifier)
        view = await one.view()
        return (view, await one.model(out)) if out else (view, None)

    view, saved = with_gateway(run)
    if view.state != "completed":
        click.echo(say(f"not completed: {view.state}", f"尚未完成：{view.state}"), err=True)
        return 1
    cells = cross_site(view)
    if as_json:
        show({"model": view.model.model_dump(), "chain": view.chain, "cells": [cell._asdict() for cell in cells]})
        return 0
    click.echo(f"{say('model', '模型')} {view.model.sha256}  {view.model.bytes} B{f'  -> {saved}' if saved else ''}")
    for cell in cells:
        where = cell.hospital or say("all hospitals", "全部医院")
        click.echo(f"  {cell.model:<16} {where:<16} {cell.value:.3f}  [{cell.low:.3f}, {cell.high:.3f}]  n={cell.samples}")
    return 0


@federation.command()
@click.argument("identifier")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Without an ending: OUT.png and OUT.csv are written.")
def plot(identifier: str, out: Path) -> int:
    """Draw metric, bytes and duration of every round, with the numbers as CSV beside it.  绘制每轮指标、流量与耗时。"""
    from medmesh.client.federation import Federation
    from medmesh.client.plot import figure, table

    view = with_gateway(lambda gateway: Federation(gateway, identifier).view())
    out.with_name(f"{out.name}.csv").write_text(table(view), "utf-8")
    try:
        figure(view, language()).savefig(out.with_name(f"{out.name}.png"), dpi=120)
    except ImportError:
        click.echo(say(f"{out}.csv; for the picture: pip install matplotlib", f"{out}.csv；绘图需先 pip install matplotlib"), err=True)
        return 1
    click.echo(f"{out}.png {out}.csv")
    return 0
