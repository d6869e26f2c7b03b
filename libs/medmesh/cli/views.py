"""A federation as people read it in a terminal: where it stands, and what came of it."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medmesh.cli import language, say
from medmesh.cli.doing import NOTHING_SEEN, doing, seconds, spent
from medmesh.errors import catalogue
from medmesh.figures import size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from medmesh.client.results import Cell
    from medmesh.contracts.federation import FederationView
    from medmesh.contracts.governance import ApprovalView

WAITS = {
    "answer": ("{0} has not answered yet", "{0} 尚未答复"),
    "approval": ("its start is not approved yet", "启动尚未获批"),
    "approval:revoked": ("the approval of its start was revoked: it needs another", "启动审批已被撤销，须重新申请"),
    "approval:expired": ("the approval of its start has expired: it needs another", "启动审批已过期，须重新申请"),
    "time": ("it is not to start yet", "未到开始时间"),
    "online": ("too few hospitals are online", "在线医院不足"),
    "quorum": (
        "too few hospitals are there for a round; it goes on by itself when enough are",
        "在线医院不足一轮所需；足够后自动继续",
    ),
    "quorum:": ("{0} is not there", "{0} 未在线"),
    "initiator": ("its initiator has as many running as one may", "发起人运行中的联邦已达上限"),
    "busy": ("{0} takes part in as many as one may", "{0} 参加的联邦已达上限"),
}


def state(word: str, width: int = 0) -> str:
    """A state, or the kind of a round, in the language of the terminal; at least so many cells wide, of which a Chinese sign takes two."""
    from medmesh.client.plot import STATES, WORDS

    text = say(*(STATES.get(word) or WORDS.get(word) or (word, word)))
    return text + " " * (width - len(text) - sum(unicodedata.east_asian_width(sign) in "WF" for sign in text))


LINKS = {
    "waiting": ("link not opened yet", "链接未打开"),
    "opened": ("link opened", "链接已打开"),
    "revoked": ("link revoked", "链接已撤销"),
    "expired": ("link expired", "链接已过期"),
}


def _wait(text: str) -> str:
    kind, colon, about = text.partition(":")
    return say(*(WAITS.get(text) or WAITS.get(kind + colon) or WAITS.get(kind) or (kind, kind))).format(about)


def waits(view: FederationView) -> list[str]:
    """What it waits for, since when and until when."""
    lines = [_wait(text) for text in view.waiting]
    if view.state == "paused" or view.reason:
        lines.insert(0, f"{state(view.state)}{say(': ', '：')}{view.reason}" if view.reason else state(view.state))
    if (since := view.waiting_since) is not None and view.state in ("running", "paused"):
        lines.append(say(f"since {since:%Y-%m-%d %H:%M:%S} UTC", f"自 {since:%Y-%m-%d %H:%M:%S} UTC 起"))
    if (end := view.fails_at) is not None:
        lines.append(
            say(f"it fails at {end:%Y-%m-%d %H:%M:%S} UTC unless enough are back", f"若届时仍不足，将于 {end:%Y-%m-%d %H:%M:%S} UTC 失败")
        )
    if view.ahead:
        lines.append(say(f"{view.ahead} before it in the queue", f"队列中前面还有 {view.ahead} 个"))
    if view.not_before is not None:
        when = f"{view.not_before:%Y-%m-%d %H:%M} UTC"
        lines.append(say(f"it begins not before {when}, as it looks", f"预计不早于 {when} 开始"))
    if (until := view.approved_until) is not None:
        when, early = f"{until:%Y-%m-%d %H:%M} UTC", until < (view.not_before or view.plan.start_at)
        en = f"the approval of its start holds until {when}{', which is too early: it will need another' if early else ''}"
        lines.append(say(en, f"启动审批有效期至 {when}{'，早于可开始时间，届时须重新申请' if early else ''}"))
    return lines


FLAGS = {
    "long": ("far longer than the others'", "远长于他院"),
    "short": ("far shorter than the others'", "远短于他院"),
    "opposed": ("against the others' direction", "与他院方向相反"),
    "unchanged": ("not trained", "未训练"),
    "copied": ("another hospital's", "复制他院"),
    "replayed": ("seen before", "重放旧更新"),
}


VERDICTS = {
    "aside": ("set aside by {0}: it is not in the model", "被 {0} 算法舍弃，未进入模型"),
    "clipped": ("shortened by {0} before it was averaged", "经 {0} 算法裁剪后计入"),
}


def flagged(view: FederationView, newest: int = 10) -> list[str]:
    """The last updates that look wrong, and why; and those that the plan's algorithm left out or shortened."""
    found = []
    for one in view.rounds:
        for verdict in VERDICTS:
            if those := ", ".join(answer.hospital for answer in one.answers if answer.verdict == verdict):
                what = say(*VERDICTS[verdict]).format(view.plan.algorithm)
                text = f"round {one.round}: the update of {those} was {what}"
                found.append(say(text, f"第 {one.round} 轮：{those} 的更新{what}"))
        for answer in (a for a in one.answers if a.flags):
            figures = [f"x {answer.ratio:g}"] if answer.ratio is not None else []
            figures += [f"cos {answer.cosine:g}"] if answer.cosine is not None else []
            why = ", ".join([*(say(*FLAGS[flag]) for flag in answer.flags), *figures])
            then = say("left out", "已剔除") if answer.excluded else say("counted", "已计入")
            number = one.round
            text = f"round {number}: the update of {answer.hospital} looks wrong: {why}; {then}"
            found.append(say(text, f"第 {number} 轮：{answer.hospital} 的更新异常：{why}；{then}"))
    return found[-newest:]


VOIDED = {
    "flagged": ("too many updates looked wrong", "异常更新过多"),
    "weights.not_finite": ("the updates together make numbers that are too large", "各院更新合并后数值溢出"),
    "federation.aggregation": ("the plan's algorithm makes no model of the updates", "方案的算法无法由这些更新生成模型"),
}


def voided(view: FederationView, newest: int = 3) -> list[str]:
    """The last attempts of whose answers no model could be made, and why."""
    found = []
    for one in (one for one in view.rounds if one.why):
        why = f"{say(*VOIDED[one.why])} ({one.why})" if one.why in VOIDED else _reason(one.why)
        en = f"round {one.round}, attempt {one.attempt}, came to nothing: {why}"
        found.append(say(en, f"第 {one.round} 轮第 {one.attempt} 次尝试作废：{why}"))
    return found[-newest:]


GONE = {
    "noise": ("the platform's noise, which protects hospitals, is drawn once", "平台为保护医院而加入的噪声只抽取一次"),
    "left": ("a hospital that left is needed for it", "重新生成需要已退出的医院"),
    "unable": ("a hospital cannot hand its update in again", "有医院无法再次提交其更新"),
    "changed": ("what was made again has another hash", "重新生成的结果哈希不同"),
}


def gone(view: FederationView) -> list[str]:
    """That it waits for people because a model is lost for good, and what they can do."""
    if (lost := view.gone) is None:
        return []
    why, when = say(*GONE[lost.why]), f"{lost.since:%Y-%m-%d %H:%M} UTC"
    en = f"it waits since {when}: the model of round {lost.round} is lost and cannot be made again ({why})"
    zh = f"自 {when} 起等待处理：第 {lost.round} 轮的模型已丢失，无法重新生成（{why}）"
    if lost.back is None:
        how = f"medmesh federation cancel {view.federation} --reason REASON"
        return [say(f"{en}; there is no round to go back to, end it: {how}", f"{zh}；没有可回退的轮次，请结束联邦：{how}")]
    how = f"medmesh federation rollback {view.federation} --round {lost.back} --request"
    return [say(f"{en}; go back to round {lost.back}: {how}", f"{zh}；请回退到第 {lost.back} 轮：{how}")]


def standing(view: FederationView) -> list[str]:
    """That a model is lost for good, which attempts came to nothing, who is in quarantine and how that ends, and which rounds were rolled
    back."""
    from medmesh.client.results import began_with, undone

    found = [*gone(view), *voided(view)]
    for one in view.participants:
        if one.state == "quarantined" and view.state not in ("completed", "failed", "cancelled"):
            how = f"medmesh federation release {view.federation} {one.hospital} --request"
            en = f"{one.hospital} is in quarantine ({one.reason}) until others approve its release: {how}"
            found.append(say(en, f"{one.hospital} 已被隔离（{one.reason}），须经他人审批方可解除：{how}"))
    if back := undone(view):
        # Not the attempt that was open meanwhile, which had begun with a model that is undone.
        later = [began_with(view, one) for one in view.rounds if one.round > back[-1]]
        text, number = ", ".join(map(str, back)), next((one for one in later if one not in back), None)
        on = "" if number is None else say(f"; it went on from round {number}", f"；其后自第 {number} 轮继续")
        found.append(say(f"rounds undone: {text}{on}", f"已撤销轮次：{text}{on}"))
    return found


ASKED = {
    "federation.start": ("its start", "启动"),
    "federation.release": ("the release of {0}", "解除对 {0} 的隔离"),
    "federation.rollback": ("going back to round {0}", "回退到第 {0} 轮"),
}


def awaited(approvals: Iterable[ApprovalView]) -> list[str]:
    """What others were asked to approve and have not."""
    found = []
    for one in approvals:
        what = say(*ASKED.get(one.action, (one.action, one.action))).format(one.target.rpartition("/")[2])
        have, until = f"{len(one.approvers)}/{one.needed}", f"{one.expires:%Y-%m-%d %H:%M} UTC"
        how = f"medmesh approval decide {one.approval}"
        found.append(say(f"{what} waits for approval ({have}) until {until}: {how}", f"{what} 待审批（{have}），截至 {until}：{how}"))
    return found


def _reason(code: str) -> str:
    """Its sentence; the code itself where that needs more than the code."""
    text = catalogue().get(code)
    sentence = "" if text is None else say(text.en, text.zh)
    return code if not sentence or "{" in sentence else f"{sentence} ({code})"


def ended(view: FederationView) -> None:
    """Why it ended, and what its privacy ledger says."""
    if view.failure:
        click.secho(f"  {_reason(view.failure)}", fg="red" if view.state == "failed" else "yellow")
    if (spent := view.privacy) is not None:
        unit = say(f"a {spent.unit}", {"hospital": "医院", "patient": "患者"}[spent.unit])
        en = f"privacy of {unit}: epsilon {spent.epsilon:.3f} of {spent.budget} at delta {spent.delta}, {spent.attempts} attempts"
        zh = f"隐私（保护单位：{unit}）：ε={spent.epsilon:.3f}，预算 {spent.budget}，δ={spent.delta}，已计 {spent.attempts} 次尝试"
        click.echo(f"  {say(en, zh)}")


def now(view: FederationView, asked: Iterable[ApprovalView] = (), speeds: Mapping[str, float] = NOTHING_SEEN) -> None:
    """Where it stands: one line for the whole, one a hospital, with what its last round's time went into; `asked` are the approvals it
    waits for, `speeds` what `Speeds` saw."""
    from medmesh.client.results import curve, last_round, remaining, split, trained

    current = view.rounds[-1].round if view.rounds else 0
    left = remaining(view)
    most = say("at most", "最多") if view.plan.stop is not None else say("about", "约")
    eta = "" if left is None else say(f", {most} {seconds(left)} left", f"，{most}剩 {seconds(left)}")
    click.secho(f"{view.plan.name}  {state(view.state)}  {say('round', '轮')} {current}/{last_round(view.plan)}{eta}", bold=True)
    ended(view)
    for line in waits(view):
        click.echo(f"  {line}")
    for line in (*flagged(view, newest=3), *standing(view), *awaited(asked)):
        click.secho(f"  {line}", fg="yellow")
    done = trained(view)
    last = {answer.hospital: answer for answer in done[-1].answers} if done else {}
    for one in view.participants:
        online = say("online", "在线") if one.online else say("offline", "离线")
        took = f"({spent(last[one.hospital])} {say('s', '秒')})" if one.hospital in last and last[one.hospital].milliseconds else ""
        click.echo(f"  {one.hospital:<16} {state(one.state, 10)} {online} {doing(view, one, speeds)} {took} {one.reason}".rstrip())
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
    from medmesh.client.results import cross_site, curve, gains, kept_round, undone

    return {
        "model": view.model.model_dump() if view.model else None,
        "chain": view.chain,
        "round": kept_round(view),
        "undone": undone(view),
        "cells": [cell._asdict() for cell in cross_site(view)],
        "gains": [gain._asdict() for gain in gains(view)],
        "curve": [point._asdict() for point in curve(view)],
        **({"privacy": view.privacy.model_dump()} if view.privacy else {}),
    }


def _cell(one: Cell) -> str:
    """What was found, and a star where it is of some classes only; where nobody was counted there is no number."""
    if one.samples == 0:
        return say("nobody counted", "无计数")
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]{'*' * bool(one.missing)}"


def _left(view: FederationView) -> list[str]:
    if not (those := ", ".join(one.hospital for one in view.participants if one.state == "withdrawn")):
        return []
    en = f"withdrawn: {those}; what a hospital gave to committed rounds cannot be taken out of the model"
    return [say(en, f"已退出：{those}；医院在已提交各轮中的贡献无法从模型中取出")]


def show_result(view: FederationView, saved: Path | None) -> None:
    """The final model, every model at every hospital as a table, and what personal models gain."""
    from medmesh.client.results import PARTIAL, cross_site, gains, kept_round, trained

    assert view.model is not None
    ended(view)
    click.echo(f"{say('model', '模型')} {view.model.sha256}  {size(view.model.bytes)}{f'  -> {saved}' if saved else ''}")
    kept, last = kept_round(view), max((one.round for one in trained(view)), default=0)
    if kept is not None and (kept, last) != (view.plan.rounds, view.plan.rounds):
        click.echo(say(f"the model of round {kept}; training ended after {last}", f"取第 {kept} 轮的模型；训练在第 {last} 轮后结束"))
    for told in (*flagged(view), *standing(view), *_left(view)):
        click.secho(told, fg="yellow")
    cells = cross_site(view)
    hospitals = sorted({cell.hospital for cell in cells if cell.hospital})
    head = [*hospitals, say("all hospitals", "全部医院")]
    if cells:
        found = {(cell.model, cell.hospital): cell for cell in cells}
        wide = max(24, *(len(name) for name in head)) + 2
        click.echo(say("balanced accuracy [95 % interval], model by hospital", "平衡准确率 [95% 区间]，模型 × 医院"))
        click.echo(f"  {'':<16} " + "".join(f"{name:<{wide}}" for name in head))
        for model in dict.fromkeys(cell.model for cell in cells):
            line = [found.get((model, hospital)) for hospital in (*hospitals, "")]
            shown = [_cell(one) if one is not None else "" for one in line]
            click.echo(f"  {model:<16} " + "".join(f"{text:<{wide}}" for text in shown).rstrip())
        counted = ", ".join(
            f"{hospital or head[-1]} {cell.samples}" for (model, hospital), cell in found.items() if model == cells[0].model
        )
        click.echo(f"  n: {counted}")
    for gain in gains(view):
        text = f"{gain.difference:+.3f}  [{gain.low:+.3f}, {gain.high:+.3f}]{'*' * bool(gain.missing)}"
        where = gain.hospital or head[-1]
        click.echo(say(f"  own model at {where}: {text}", f"  {where} 专属模型相对全局模型：{text}"))
    if any(cell.missing and cell.samples for cell in cells):
        click.echo(say(*(f"  * {text}" for text in PARTIAL)))
    if not all(cell.samples for cell in cells):
        en = "  nobody counted: too few patients are held out there for counts of the plan's and the hospitals' small_cell"
        click.echo(say(en, "  无计数：该处留出的患者过少，不足以按方案或医院规定的 small_cell 计数"))


def draw(view: FederationView, out: Path) -> int:
    """Write `out`.csv and `out`.png; exit code 1 where nothing draws."""
    from medmesh.client.plot import FONT, chinese_font, figure, table

    out.with_name(f"{out.name}.csv").write_text(table(view), "utf-8")
    try:
        figure(view, language()).savefig(out.with_name(f"{out.name}.png"), dpi=120)
    except ImportError:
        click.echo(say(f"{out}.csv; for the picture: pip install matplotlib", f"{out}.csv；绘图需先 pip install matplotlib"), err=True)
        return 1
    if language() == "zh" and chinese_font() is None:
        hint = f"pip install --no-deps {FONT}"
        click.secho(f"本机没有中文字体，图中文字为英文；安装字体：{hint}（Noto Sans SC，SIL OFL 1.1，6 MB）", fg="yellow", err=True)
    click.echo(f"{out}.png {out}.csv")
    return 0
