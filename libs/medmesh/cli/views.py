"""A federation as people read it in a terminal: where it stands, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medmesh.cli import language, say

if TYPE_CHECKING:
    from medmesh.contracts.federation import AnswerView, FederationView

WORK = {
    "fetch": ("fetch", "下载"),
    "evaluate": ("evaluate", "评估"),
    "train": ("train", "训练"),
    "store": ("store", "存盘"),
    "send": ("send", "上传"),
}


def seconds(value: float) -> str:
    """A duration as people say it."""
    whole = round(value)
    if whole < 120:
        return say(f"{whole} s", f"{whole} 秒")
    if whole < 7200:
        return say(f"{whole // 60} min", f"{whole // 60} 分钟")
    return say(f"{value / 3600:.1f} h", f"{value / 3600:.1f} 小时")


def spent(answer: AnswerView) -> str:
    """Where a hospital's time went in a round."""
    told = {str(work): value / 1000 for work, value in answer.milliseconds.items()}
    return ", ".join(f"{say(*words)} {told[work]:.1f}" for work, words in WORK.items() if work in told)


def now(view: FederationView) -> None:
    """Where it stands: one line for the whole, one a hospital, with what its last round's time went into."""
    from medmesh.client.results import curve, last_round, remaining, split, trained

    current = view.rounds[-1].round if view.rounds else 0
    left = remaining(view)
    most = say("at most", "最多") if view.plan.stop is not None else say("about", "约")
    eta = "" if left is None else say(f", {most} {seconds(left)} left", f"，{most}剩 {seconds(left)}")
    click.secho(f"{view.plan.name}  {view.state}  {say('round', '轮')} {current}/{last_round(view.plan)}{eta}", bold=True)
    if view.failure:
        click.secho(f"  {view.failure}", fg="red")
    done = trained(view)
    last = {answer.hospital: answer for answer in done[-1].answers} if done else {}
    for one in view.participants:
        online = say("online", "在线") if one.online else say("offline", "离线")
        at = one.progress
        doing = (
            f"{at.round} {say(*WORK.get(at.phase, (at.phase, at.phase)))} {at.done}/{at.total}"
            if at is not None and view.state == "running"
            else ""
        )
        took = f"({spent(last[one.hospital])} s)" if one.hospital in last and last[one.hospital].milliseconds else ""
        click.echo(f"  {one.hospital:<16} {one.state:<10} {online} {doing} {took} {one.reason}".rstrip())
    if done and (found := split(done[-1])) is not None:
        move = found.fetch + found.send
        click.echo(
            say(
                f"  round {done[-1].round}: train {found.train:.1f} s, move {move:.1f} s, aggregate {found.aggregate:.1f} s",
                f"  第 {done[-1].round} 轮：训练 {found.train:.1f} 秒，传输 {move:.1f} 秒，聚合 {found.aggregate:.1f} 秒",
            )
        )
    if points := curve(view):
        point = points[-1]
        text = f"{point.value:.3f}  [{point.low:.3f}, {point.high:.3f}]  n={point.samples}"
        click.echo(say(f"  balanced accuracy after round {point.round}: {text}", f"  第 {point.round} 轮后平衡准确率：{text}"))


def document(view: FederationView) -> dict[str, Any]:
    """What came of it, for programs."""
    from medmesh.client.results import cross_site, curve, gains, kept_round

    return {
        "model": view.model.model_dump() if view.model else None,
        "chain": view.chain,
        "round": kept_round(view),
        "cells": [cell._asdict() for cell in cross_site(view)],
        "gains": [gain._asdict() for gain in gains(view)],
        "curve": [point._asdict() for point in curve(view)],
    }


def show_result(view: FederationView, saved: Path | None) -> None:
    """The final model, every model at every hospital as a table, and what personal models gain."""
    from medmesh.client.results import cross_site, gains, kept_round, trained

    assert view.model is not None
    click.echo(f"{say('model', '模型')} {view.model.sha256}  {view.model.bytes} B{f'  -> {saved}' if saved else ''}")
    kept, last = kept_round(view), max((one.round for one in trained(view)), default=0)
    if kept is not None and (kept, last) != (view.plan.rounds, view.plan.rounds):
        click.echo(say(f"the model of round {kept}; training ended after {last}", f"取第 {kept} 轮的模型；训练在第 {last} 轮后结束"))
    cells = cross_site(view)
    hospitals = sorted({cell.hospital for cell in cells if cell.hospital})
    if cells:
        found = {(cell.model, cell.hospital): cell for cell in cells}
        head = [*hospitals, say("all hospitals", "全部医院")]
        wide = max(24, *(len(name) for name in head)) + 2
        click.echo(say("balanced accuracy [95 % interval], model by hospital", "平衡准确率 [95% 区间]，模型 × 医院"))
        click.echo(f"  {'':<16} " + "".join(f"{name:<{wide}}" for name in head))
        for model in dict.fromkeys(cell.model for cell in cells):
            line = [found.get((model, hospital)) for hospital in (*hospitals, "")]
            shown = [f"{c.value:.3f} [{c.low:.3f}, {c.high:.3f}]" if c else "" for c in line]
            click.echo(f"  {model:<16} " + "".join(f"{text:<{wide}}" for text in shown).rstrip())
        counted = ", ".join(
            f"{hospital or head[-1]} {cell.samples}" for (model, hospital), cell in found.items() if model == cells[0].model
        )
        click.echo(f"  n: {counted}")
    for gain in gains(view):
        text = f"{gain.difference:+.3f}  [{gain.low:+.3f}, {gain.high:+.3f}]"
        click.echo(say(f"  own model at {gain.hospital}: {text}", f"  {gain.hospital} 专属模型相对全局模型：{text}"))


def draw(view: FederationView, out: Path) -> int:
    """Write `out`.csv and `out`.png; exit code 1 where nothing draws."""
    from medmesh.client.plot import figure, table

    out.with_name(f"{out.name}.csv").write_text(table(view), "utf-8")
    try:
        figure(view, language()).savefig(out.with_name(f"{out.name}.png"), dpi=120)
    except ImportError:
        click.echo(say(f"{out}.csv; for the picture: pip install matplotlib", f"{out}.csv；绘图需先 pip install matplotlib"), err=True)
        return 1
    click.echo(f"{out}.png {out}.csv")
    return 0
