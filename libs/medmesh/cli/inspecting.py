"""A plan of an import as people read it: what it is, counts by kind and split, labels, and what is amiss."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from medmesh.cli import language, say
from medmesh.figures import size
from medmesh.importing.port import Plan

COLOURS = {"error": "red", "warning": "yellow", "note": "blue"}
SEVERITIES = {"error": "错误", "warning": "注意", "note": "说明"}
MOST_VALUES = 15
EVERY = 0.2
"""Seconds between two signs of progress."""


def show_plan(plan: Plan) -> None:
    """Print the whole plan; findings last, the worst of them at the end."""
    tongue = language()
    click.secho(f"{plan.title} ({plan.importer})", bold=True)
    if plan.licence:  # files by content have none of their own
        click.echo(say(f"licence: {plan.licence}", f"许可：{plan.licence}"))
    units = say(f"{plan.units:,} patients or groups", f"患者或分组 {plan.units:,} 个")
    click.echo(say(f"{plan.items:,} items, {units}, {size(plan.bytes)}", f"共 {plan.items:,} 项，{units}，{size(plan.bytes)}"))
    splits = sorted({split for _, split in plan.counts})
    kinds = sorted({kind for kind, _ in plan.counts})
    _table([say("kind", "类型")], splits, {kind: {s: plan.counts.get((kind, s), 0) for s in splits} for kind in kinds})
    for name, values in plan.labels.items():
        meanings = plan.meanings.get(name, {})
        lines = {f"{value} {meanings[value]}" if value in meanings else value: dict(by) for value, by in list(values.items())[:MOST_VALUES]}
        _table([name], splits, lines)
        if (more := len(values) - MOST_VALUES) > 0:
            click.echo(say(f"  … and {more} more values", f"  ……另有 {more} 个取值"))
    for name, meanings in plan.meanings.items():
        if name not in plan.labels and not name.endswith(tuple(plan.labels)):
            click.echo(f"\n{name}: " + ", ".join(f"{value} {meaning}" for value, meaning in meanings.items()))
    click.echo()
    for finding in sorted(plan.findings, key=lambda found: ("note", "warning", "error").index(found.severity)):
        severity = say(finding.severity, SEVERITIES[finding.severity])
        click.echo(click.style(severity, fg=COLOURS[finding.severity]) + f"  {finding.problem().detail(tongue)}")
        if hint := finding.problem().hint(tongue):
            click.echo(f"    {hint}")
    for code, count in plan.more.items():
        click.echo(say(f"  … and {count} more of {code}", f"  ……另有 {count} 处 {code}"))
    click.echo(say(f"manifest {plan.manifest}", f"清单 {plan.manifest}"))


def ticking(what: str) -> Callable[[int], None]:
    """Says on a terminal how many items were read, and how fast."""
    begun, last = time.monotonic(), time.monotonic()

    def tick(items: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY and sys.stderr.isatty():
            last = now
            click.echo(f"\r{what} {items:,}  {items / (now - begun):,.0f}/s ", err=True, nl=False)

    return tick


@contextmanager
def moving(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the rate and the time left; the function it gives is told the bytes done."""
    begun = time.monotonic()
    with click.progressbar(length=max(total, 1), label=what, show_eta=True, file=sys.stderr, item_show_func=lambda rate: rate or "") as bar:

        def move(done: int) -> None:
            rate = done / max(time.monotonic() - begun, 1e-6)
            bar.update(done - bar.pos, f"{size(rate)}/s")

        yield move


def _table(head: list[str], splits: list[str], lines: dict[str, dict[str, int]]) -> None:
    columns = [*head, *(split or say("(none)", "（无）") for split in splits), *([say("all", "合计")] if len(splits) > 1 else [])]
    cells = [columns]
    for name, by in lines.items():
        total = [f"{sum(by.values()):,}"] if len(splits) > 1 else []
        cells.append([name, *(f"{by.get(split, 0):,}" for split in splits), *total])
    widths = [max(_width(line[place]) for line in cells) for place in range(len(columns))]
    click.echo()
    for line in cells:
        first = line[0] + " " * (widths[0] - _width(line[0]))
        rest = (" " * (width - _width(cell)) + cell for cell, width in zip(line[1:], widths[1:], strict=True))
        click.echo("  " + "  ".join((first, *rest)))


def _width(text: str) -> int:
    """On a terminal: Han characters and Chinese brackets take two columns."""
    return sum(2 if "\u2e80" <= one <= "\uffef" else 1 for one in text)
