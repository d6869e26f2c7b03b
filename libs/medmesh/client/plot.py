"""A federation as a table and a picture: metric per round and hospital, bytes, and how long rounds took."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from medmesh.contracts.federation import FederationView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("round", "attempt", "kind", "state", "seconds", "hospital", "late", "samples", "bytes", "metric", "value")
CHINESE = ("Noto Sans CJK SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Source Han Sans SC", "SimHei", "Microsoft YaHei", "PingFang SC")
WORDS = {
    "title": ("{name}: {state}", "{name}：{state}"),
    "round": ("round", "轮次"),
    "bytes": ("update, MB", "更新量（MB）"),
    "seconds": ("round, seconds", "每轮耗时（秒）"),
    "value": ("{metric} at the hospital", "院内 {metric}"),
}


def rows(view: FederationView) -> list[dict[str, Any]]:
    """One row for every metric of every answer (one with an empty metric where there is none). `seconds` is from the opening of the round
    to its end; what the asker may not see of others is 0 or absent, as in the view."""
    found = []
    for one in view.rounds:
        seconds = None if one.closed is None else round((one.closed - one.opened).total_seconds(), 3)
        about = {"round": one.round, "attempt": one.attempt, "kind": one.kind, "state": one.state, "seconds": seconds}
        for answer in one.answers:
            given = {"hospital": answer.hospital, "late": answer.late, "samples": answer.samples, "bytes": answer.bytes}
            metrics: list[tuple[str, float | None]] = [*sorted(answer.metrics.items())]
            for metric, value in metrics or [("", None)]:
                found.append({**about, **given, "metric": metric, "value": value})
    return found


def table(view: FederationView) -> str:
    """`rows` as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(view))
    return text.getvalue()


def figure(view: FederationView, language: str = "en") -> Figure:
    """Three panels over training rounds: the hospitals' first metric, the bytes of their updates, the duration of rounds.

    Chinese needs a font that has it (`CHINESE`); on a machine without one the labels are English.
    """
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    fonts = [name for name in CHINESE if name in {font.name for font in font_manager.fontManager.ttflist}]
    chinese = language == "zh" and bool(fonts)

    def say(word: str, **given: str) -> str:
        return WORDS[word][chinese].format(**given)

    counted = [row for row in rows(view) if row["kind"] == "train" and row["state"] == "committed" and not row["late"]]
    metric = min((row["metric"] for row in counted if row["metric"]), default="")
    hospitals = sorted({row["hospital"] for row in counted})
    family = {"font.sans-serif": [*fonts, *matplotlib.rcParams["font.sans-serif"]]} if chinese else {}
    with matplotlib.rc_context(family):
        made = Figure(figsize=(8, 9), layout="constrained")
        values, size, took = made.subplots(3, 1, sharex=True)
        for hospital in hospitals:
            mine = [row for row in counted if row["hospital"] == hospital and row["metric"] == metric]
            values.plot([r["round"] for r in mine], [r["value"] for r in mine], marker="o", label=hospital)
            size.plot([r["round"] for r in mine], [r["bytes"] / 1e6 for r in mine], marker=".", label=hospital)
        spans = sorted({row["round"]: row["seconds"] for row in counted}.items())
        took.bar([number for number, _ in spans], [seconds or 0 for _, seconds in spans])
        values.set_title(say("title", name=view.plan.name, state=view.state))
        values.set_ylabel(say("value", metric=metric or "-"))
        size.set_ylabel(say("bytes"))
        took.set_ylabel(say("seconds"))
        took.set_xlabel(say("round"))
        if 0 < len(hospitals) <= 16:  # more names than that hide the curves
            values.legend(fontsize="small")
        made.draw_without_rendering()  # text takes its font here
    return made
