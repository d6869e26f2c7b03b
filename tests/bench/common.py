"""What every area shares: a measure with its floor and its peer, taken in turn, shown as a table and kept as JSON."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

REPEATS = int(os.environ.get("MEDMESH_BENCH_REPEATS", "3"))
OUTPUT = Path("build/bench")

Run = Callable[[], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure. `floor` is the least any code on these servers could take (or the most it could do), `peer` what one would write
    without medmesh; both are None where there is none. `goal` and `better` are for the reader of the table."""

    name: str
    value: float
    unit: str
    floor: float | None = None
    peer: str = ""
    peer_value: float | None = None
    goal: float | None = None
    better: str = "less"
    """`less` or `more`."""

    @property
    def ratio(self) -> float | None:
        """Value divided by floor."""
        return self.value / self.floor if self.floor else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.better == "more" else self.value <= self.goal

    def document(self) -> dict[str, float | str | None]:
        """What `build/bench/<area>.json` keeps."""
        rounded = (_significant(v) for v in (self.value, self.floor, self.ratio, self.peer_value))
        value, floor, ratio, peer_value = rounded
        return {
            "name": self.name,
            "value": value,
            "unit": self.unit,
            "floor": floor,
            "ratio": ratio,
            "peer": self.peer or None,
            "peer_value": peer_value,
        }


async def medians(*runs: Run, repeats: int = REPEATS) -> list[float]:
    """The median of each, taken in turn (a, b, c, a, b, c, ...) so that a busy machine is busy for all of them."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(max(3, repeats)):
        for place, run in enumerate(runs):
            taken[place].append(await run())
    return [statistics.median(values) for values in taken]


def percentile(values: Sequence[float], wanted: float) -> float:
    """The value below which `wanted` per cent of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * wanted / 100))]


def report(area: str, measures: Sequence[Measure]) -> None:
    """Print the table and write the file."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"{area}.json").write_text(json.dumps([m.document() for m in measures], indent=1) + "\n", encoding="utf-8")
    rows = [("name", "value", "unit", "floor", "ratio", "peer", "goal", ""), *map(_row, measures)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.ljust(width) if place in (0, 2, 5) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def _row(m: Measure) -> tuple[str, ...]:
    peer = f"{m.peer} {_text(m.peer_value)}" if m.peer else ""
    goal = "" if m.goal is None else f"{'≥' if m.better == 'more' else '≤'} {_text(m.goal)}"
    return (m.name, _text(m.value), m.unit, _text(m.floor), _text(m.ratio), peer, goal, {None: "", True: "met", False: "MISSED"}[m.met])


def _significant(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
