"""A federation as a table and a picture: how models did, bytes, and where time went, by round and hospital."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmesh.client.results import PARTIAL, Cell, began_with, cross_site, curve, kept_round, split, trained, undone
from medmesh.contracts.federation import FederationView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORK = ("fetch", "evaluate", "train", "store", "send")
COLUMNS = (
    *("round", "attempt", "kind", "state", "seconds", "aggregate", "hospital", "late", "flags", "excluded", "samples", "bytes", *WORK),
    *("metric", "model_of_round", "value", "missing"),
)
CHINESE = (
    *("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Source Han Sans SC", "SimHei", "Microsoft YaHei"),
    "PingFang SC",
)
MOST_NAMES = 12
"""More hospitals than this are drawn without their names, which would hide the curves."""
COLOURS = {
    "fetch": "#9ecae1",
    "evaluate": "#fdd0a2",
    "train": "#fd8d3c",
    "store": "#c7c7c7",
    "send": "#4292c6",
    "aggregate": "#31a354",
    "rest": "#e8e8e8",
}
WORDS = {
    "title": ("{name}: {state}, {rounds} of {planned} training rounds", "{name}：{state}，训练 {rounds}/{planned} 轮"),
    "undone": ("; undone: {rounds}", "；已撤销轮次：{rounds}"),
    "gone": ("; waits: the model of round {round} is lost for good", "；等待处理：第 {round} 轮模型已丢失且无法重现"),
    "round": ("training round", "训练轮次"),
    "model": ("model of round (0: the first weights)", "第几轮的模型（0 为初始权重）"),
    "accuracy": ("balanced accuracy", "平衡准确率"),
    "flagged": ("looks wrong", "异常更新"),
    "all": ("all hospitals, 95 % interval", "全部医院，95% 区间"),
    "everybody": ("all hospitals", "全部医院"),
    "kept": ("kept: round {round}", "采用第 {round} 轮"),
    "training": ("{metric} of training", "训练{metric}"),
    "loss": ("loss", "损失"),
    "bytes": ("sent by hospitals, MiB", "各院上传量（MiB）"),
    "time": ("slowest hospital, seconds", "最慢医院耗时（秒）"),
    "usual": ("median round, seconds", "单轮中位耗时（秒）"),
    "matrix": ("balanced accuracy, model by hospital", "平衡准确率：模型 × 医院"),
    "many": (
        "{models} models at {hospitals} hospitals: medmesh federation result",
        "{hospitals} 家医院 {models} 个模型：medmesh federation result",
    ),
    "partial": (  # "*" in the matrix, dotted among the curves
        "* (dotted above): " + PARTIAL[0].replace(": ", ":\n"),
        "*（上图虚线）：" + PARTIAL[1].replace("：", "：\n"),
    ),
    "nothing": ("nothing was evaluated", "未作评估"),
    "untold": ("no times were told", "未上报耗时"),
    "fetch": ("fetch", "下载"),
    "evaluate": ("evaluate", "评估"),
    "train": ("train", "训练"),
    "store": ("store", "存盘"),
    "send": ("send", "上传"),
    "aggregate": ("aggregate", "聚合"),
    "rest": ("wait", "等待"),
    "federated": ("federated", "联邦模型"),
    "personal": ("personal", "专属模型"),
}
STATES = {
    "inviting": ("inviting", "邀请中"),
    "ready": ("ready", "待批准"),
    "queued": ("queued", "排队中"),
    "running": ("running", "进行中"),
    "paused": ("paused", "已暂停"),
    "completed": ("completed", "已完成"),
    "failed": ("failed", "失败"),
    "cancelled": ("cancelled", "已取消"),
    "invited": ("invited", "已邀请"),
    "accepted": ("accepted", "已同意"),
    "declined": ("declined", "已谢绝"),
    "expired": ("no answer in time", "逾期未答复"),
    "dropped": ("dropped", "已掉线"),
    "quarantined": ("quarantined", "已隔离"),
    "withdrawn": ("withdrawn", "已退出"),
    "excluded": ("excluded", "已排除"),
    "open": ("open", "进行中"),
    "committed": ("committed", "已提交"),
    "void": ("void", "作废"),
    "skipped": ("skipped", "已略过"),
    "undone": ("undone", "已撤销"),
    "train": ("train", "训练"),
    "baseline": ("baseline", "单独训练"),
}
"""Of federations, hospitals and rounds, and the kinds of rounds."""
FONT = "zhplot"
"""A wheel that brings Noto Sans SC (SIL OFL 1.1); nothing of it is imported."""
Say = Callable[..., str]


def chinese_font() -> str | None:
    """The name of a font that has Chinese: of this machine, else of the wheel `FONT`."""
    from matplotlib import font_manager

    here = {font.name for font in font_manager.fontManager.ttflist}
    if found := next((name for name in CHINESE if name in here), None):
        return found
    wheel = find_spec(FONT)
    files = sorted(Path(wheel.origin).parent.glob("fonts/NotoSansSC*.ttf")) if wheel and wheel.origin else []
    for file in files[:1]:
        font_manager.fontManager.addfont(file)
        return font_manager.FontProperties(fname=file).get_name()
    return None


def rows(view: FederationView) -> list[dict[str, Any]]:
    """One row for every metric of every answer (one with an empty metric where there is none). `seconds` is from the opening of the round
    to its end, `aggregate` and the kinds of work are seconds of it; `model_of_round` is which round's model the metric is of; `missing` how
    many classes there was nothing to count of, about which balanced accuracy is silent; `state` is "undone" of a round that was committed
    and rolled back. What the asker may not see of others is 0 or absent, as in the view. Where the platform opens sums only, a row without
    a hospital is of all."""
    found = []
    for one in view.rounds:
        seconds = None if one.closed is None else round((one.closed - one.opened).total_seconds(), 3)
        aggregate = None if one.aggregate_milliseconds is None else one.aggregate_milliseconds / 1000
        about = {"round": one.round, "attempt": one.attempt, "kind": one.kind, "state": "undone" if one.undone else one.state}
        before = began_with(view, one)
        about |= {"seconds": seconds, "aggregate": aggregate}
        for answer in one.answers:
            given = {"hospital": answer.hospital, "late": answer.late, "samples": answer.samples, "bytes": answer.bytes}
            given |= {"flags": " ".join(answer.flags), "excluded": answer.excluded}
            given |= {str(work): value / 1000 for work, value in answer.milliseconds.items()}
            scores = [{"metric": name, "model_of_round": one.round, "value": value} for name, value in sorted(answer.metrics.items())]
            if answer.counts is not None:
                scores.append(_score(answer.counts, before))
            nothing: dict[str, Any] = {"metric": "", "model_of_round": one.round, "value": None}
            found += [{**about, **given, **score} for score in scores or [nothing]]
        if (told := one.sum) is not None:
            together = {**about, "hospital": "", "late": False, "flags": "", "excluded": False, "samples": told.samples}
            if told.counts is not None:
                found.append({**together, **_score(told.counts, before)})
            if told.loss is not None:
                found.append({**together, "metric": "loss", "model_of_round": one.round, "value": told.loss})
    return found


def _score(counts: Sequence[Sequence[int]], of: int) -> dict[str, Any]:
    from medmesh.learning.metrics import balanced_accuracy, missing  # numpy

    return {"metric": "balanced_accuracy", "model_of_round": of, "value": balanced_accuracy(counts), "missing": missing(counts)}


def table(view: FederationView) -> str:
    """`rows` as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(view))
    return text.getvalue()


def figure(view: FederationView, language: str = "en") -> Figure:
    """Six panels: balanced accuracy by round (all hospitals with their interval, and each), the loss of training, bytes by hospital, the
    time of each round by kind of work, the same by hospital, and every model at every hospital.

    Chinese needs a font that has it (`chinese_font`); on a machine without one the labels are English.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.ticker import MaxNLocator

    font = chinese_font() if language == "zh" else None
    chinese = font is not None

    def say(word: str, **given: object) -> str:
        words = WORDS.get(word) or STATES.get(word)
        return words[chinese].format(**given) if words else word

    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.unicode_minus": False, "axes.axisbelow": True, "font.size": 9}
    with matplotlib.rc_context(style):
        made = Figure(figsize=(12, 11), layout="constrained")
        places = made.subplots(3, 2)
        counted = [
            row for row in rows(view) if row["kind"] == "train" and row["state"] == "committed" and not row["late"]
        ]  # excluded ones, too: they were sent
        hospitals = sorted({row["hospital"] for row in counted} - {""})
        shades = matplotlib.colormaps["tab20" if len(hospitals) > 10 else "tab10"]
        colour = {name: shades(place % shades.N) for place, name in enumerate(hospitals)}
        done = trained(view)
        title = say("title", name=view.plan.name, state=say(view.state), rounds=len(done), planned=view.plan.rounds)
        if gone := undone(view):
            title += say("undone", rounds=", ".join(map(str, gone)))
        if view.gone is not None:
            title += say("gone", round=view.gone.round)
        made.suptitle(title, fontsize=13)
        _evaluated(places[0][0], view, counted, colour, say)
        _losses(places[0][1], counted, colour, say)
        _bytes(places[1][0], counted, colour, say)
        _rounds(places[1][1], view, say)
        _hospitals(places[2][0], view, say)
        _matrix(places[2][1], cross_site(view), say)
        for axes in (places[0][1], places[1][0], places[1][1]):
            axes.set_xlabel(say("round"))
            axes.set_xlim(0.4, max((one.round for one in done), default=1) + 0.6)
        for axes in (one for one in places.flat[:4] if one.has_data()):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if 0 < len(hospitals) <= MOST_NAMES:
            handles, names = places[0][1].get_legend_handles_labels()
            made.legend(handles, names, loc="outside lower center", ncols=min(6, len(hospitals)), frameon=False)
        for text in made.findobj(Text) if chinese else ():
            text.set_fontfamily([str(font), "DejaVu Sans"])  # else it is looked up when the picture is saved, outside this context
    return made


def _nothing(axes: Axes, text: str) -> None:
    """Say why there is nothing to see."""
    axes.text(0.5, 0.5, text, ha="center", va="center", color="0.5", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def _evaluated(axes: Axes, view: FederationView, counted: list[dict[str, Any]], colour: Mapping[str, Any], say: Say) -> None:
    axes.set_title(say("accuracy"), loc="left")
    points = curve(view)
    if not points:
        _nothing(axes, say("nothing"))
        return
    for hospital in colour:
        mine = [row for row in counted if row["hospital"] == hospital and row["metric"] == "balanced_accuracy"]
        style = ":" if any(row.get("missing") for row in mine) else "-"
        axes.plot([r["model_of_round"] for r in mine], [r["value"] for r in mine], style, color=colour[hospital], lw=1, alpha=0.75)
    across = [point.round for point in points]
    axes.fill_between(across, [p.low for p in points], [p.high for p in points], color="0.2", alpha=0.12, lw=0)
    axes.plot(across, [p.value for p in points], color="0.1", lw=2.2, marker="o", ms=3.5, label=say("all"))
    if view.state == "completed" and (kept := kept_round(view)) is not None:
        axes.axvline(kept, color="#31a354", ls="--", lw=1.2, label=say("kept", round=kept))
    axes.set_ylim(min(0.45, *(p.low for p in points)), 1.01)
    axes.set_xlabel(say("model"))
    axes.grid(axis="y", alpha=0.25)
    axes.legend(loc="best", framealpha=0.9, edgecolor="none")


def _losses(axes: Axes, counted: list[dict[str, Any]], colour: Mapping[str, Any], say: Say) -> None:
    metric = min((row["metric"] for row in counted if row["metric"] not in ("", "balanced_accuracy")), default="loss")
    axes.set_title(say("training", metric=say(metric)), loc="left")
    line = {"marker": "o", "ms": 3, "lw": 1.2} if len(colour) <= MOST_NAMES else {"lw": 0.8, "alpha": 0.6}
    for hospital in colour:
        mine = [row for row in counted if row["hospital"] == hospital and row["metric"] == metric]
        axes.plot([r["round"] for r in mine], [r["value"] for r in mine], color=colour[hospital], label=hospital, **line)
    if sums := [row for row in counted if not row["hospital"] and row["metric"] == metric]:
        axes.plot([r["round"] for r in sums], [r["value"] for r in sums], color="0.1", lw=2.2, marker="o", ms=3.5)
    axes.grid(axis="y", alpha=0.25)


def _marked(axes: Axes, counted: list[dict[str, Any]], sent: Mapping[tuple[int, str], float], say: Say) -> None:
    """Rounds in which an update looked wrong."""
    wrong = sorted({(row["round"], row["hospital"]) for row in counted if row["flags"]})
    if wrong:
        tops = [sum(size for (n, _), size in sent.items() if n == number) for number, _ in wrong]
        axes.scatter([number for number, _ in wrong], tops, marker="x", color="#d62728", zorder=3, label=say("flagged"))
        axes.legend(loc="lower right", framealpha=0.9, edgecolor="none")


def _bytes(axes: Axes, counted: list[dict[str, Any]], colour: Mapping[str, Any], say: Say) -> None:
    axes.set_title(say("bytes"), loc="left")
    sent = {(row["round"], row["hospital"]): row["bytes"] / 2**20 for row in counted if row["hospital"]}
    numbers = sorted({number for number, _ in sent})
    below = dict.fromkeys(numbers, 0.0)
    if len(colour) > MOST_NAMES:
        axes.bar(numbers, [sum(size for (n, _), size in sent.items() if n == number) for number in numbers], color="#4292c6", width=0.8)
    for hospital in colour if len(colour) <= MOST_NAMES else ():
        heights = [sent.get((number, hospital), 0.0) for number in numbers]
        axes.bar(numbers, heights, bottom=[below[n] for n in numbers], color=colour[hospital], width=0.8, label=hospital)
        below = {number: below[number] + height for number, height in zip(numbers, heights, strict=True)}
    _marked(axes, counted, sent, say)
    axes.grid(axis="y", alpha=0.25)


def _rounds(axes: Axes, view: FederationView, say: Say) -> None:
    axes.set_title(say("time"), loc="left")
    found = [(one.round, told) for one in trained(view) if (told := split(one)) is not None]
    if not found:
        _nothing(axes, say("untold"))
        return
    below = [0.0] * len(found)
    for work in (*WORK, "aggregate", "rest"):
        heights = [getattr(told, work) for _, told in found]
        axes.bar([number for number, _ in found], heights, bottom=below, color=COLOURS[work], width=0.8, label=say(work))
        below = [a + b for a, b in zip(below, heights, strict=True)]
    axes.grid(axis="y", alpha=0.25)
    axes.set_ylim(0, max(below) * 1.25 or 1)
    axes.legend(loc="upper center", ncols=7, frameon=False, fontsize=8, handlelength=1, columnspacing=1)


def _hospitals(axes: Axes, view: FederationView, say: Say) -> None:
    axes.set_title(say("usual"), loc="left")
    told: dict[str, list[Mapping[Any, int]]] = {}
    for one in trained(view):
        for answer in one.answers:
            if answer.milliseconds and not answer.late:
                told.setdefault(answer.hospital, []).append(answer.milliseconds)
    if not told:
        _nothing(axes, say("untold"))
        return
    usual = {name: {work: statistics.median(m.get(work, 0) for m in given) / 1000 for work in WORK} for name, given in told.items()}
    slowest = sorted(usual, key=lambda name: sum(usual[name].values()))[-MOST_NAMES:]
    left = [0.0] * len(slowest)
    for work in WORK:
        widths = [usual[name][work] for name in slowest]
        axes.barh(slowest, widths, left=left, color=COLOURS[work], height=0.65)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.grid(axis="x", alpha=0.25)


def _matrix(axes: Axes, cells: list[Cell], say: Say) -> None:
    axes.set_title(say("matrix"), loc="left")
    models = list(dict.fromkeys(cell.model for cell in cells))
    hospitals = sorted({cell.hospital for cell in cells if cell.hospital})
    if not cells or len(hospitals) > MOST_NAMES:
        _nothing(axes, say("many", models=len(models), hospitals=len(hospitals)) if cells else say("nothing"))
        return
    across = [*hospitals, ""]
    value = {(cell.model, cell.hospital): cell for cell in cells if cell.samples}  # where nobody was counted there is nothing to see
    grid = [[value[m, h].value if (m, h) in value else float("nan") for h in across] for m in models]
    axes.imshow(grid, vmin=0.5, vmax=1, cmap="YlGn", aspect="auto")
    for y, model in enumerate(models):
        for x, hospital in enumerate(across):
            if cell := value.get((model, hospital)):
                text = f"{cell.value:.2f}{'*' * bool(cell.missing)}\n[{cell.low:.2f}, {cell.high:.2f}]"
                axes.text(x, y, text, ha="center", va="center", fontsize=7.5, color="white" if cell.value > 0.79 else "black")
    axes.set_xticks(range(len(across)), [say(h) if h else say("everybody") for h in across])
    axes.set_yticks(range(len(models)), [say(model) for model in models])
    axes.tick_params(length=0)
    if any(cell.missing for cell in value.values()):
        axes.set_xlabel(say("partial"), fontsize=7.5)
