"""Importers: a MIMIC-III chart of 100,000 rows, planned, and taken in as a table, each in a process of its own; the floor is
Python's csv over the same bytes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.common import Measure, Run, medians
from tests.unit.importing import layouts

ROWS = 100_000
_PEAK = """
def peak():  # of this program: ru_maxrss also holds what forked it
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
"""
_PLAN = """
import json, sys, time
from pathlib import Path
from medmesh.importing import registry
from medmesh.importing.sources import opened
begun = time.perf_counter()
with opened(Path(sys.argv[1])) as source:
    plan = registry.named("mimic3").plan(source)
assert plan.items > 99_000 and not plan.errors, plan
print(json.dumps([time.perf_counter() - begun, peak()]))
"""
_FLOOR = """
import csv, gzip, json, sys, time
begun = time.perf_counter()
with gzip.open(sys.argv[1] + "/CHARTEVENTS.csv.gz", "rt", newline="") as file:
    count = sum(1 for _ in csv.reader(file))
assert count > 99_000
print(json.dumps([time.perf_counter() - begun, peak()]))
"""

_TAKE = """
import asyncio, json, sys, tempfile, time
from pathlib import Path
from medmesh.importing import registry
from medmesh.importing.sources import Limits, opened
from medmesh_ingestion.layouts import take_in_layout
from medmesh.importing.packing import pack
with tempfile.TemporaryDirectory(prefix="medmesh-bench-") as place:
    archive = Path(place) / "archive"
    with opened(Path(sys.argv[1])) as source, archive.open("wb") as target:
        pack(source, target)
    begun = time.perf_counter()
    made = asyncio.run(take_in_layout(archive, registry.named("mimic3"), Path(place), bytes(32), Limits(), 1 << 29))
    seconds = time.perf_counter() - begun
assert sum(table.rows for table in made.tables) > 99_000
print(json.dumps([seconds, peak()]))
"""


def measure(names: Sequence[str]) -> list[Measure]:
    """Every figure whose name begins with one of these."""
    if names and not "import.".startswith(tuple(names)) and not any(name.startswith("import.") for name in names):
        return []
    with tempfile.TemporaryDirectory(prefix="medmesh-bench-") as place:
        layouts.mimic3(Path(place), rows=ROWS)
        memory: dict[str, float] = {}

        def run(name: str, code: str) -> Run:
            async def once() -> float:
                done = subprocess.run([sys.executable, "-c", _PEAK + code, place], capture_output=True, check=True, text=True)
                seconds, memory[name] = json.loads(done.stdout)
                return float(ROWS / seconds)

            return once

        planned, taken, floor = asyncio.run(medians(run("plan", _PLAN), run("take", _TAKE), run("floor", _FLOOR)))
        return [
            Measure("import.mimic_rows", planned, "rows/s", floor, better="more"),
            Measure("import.rows_taken_in", taken, "rows/s", floor, better="more"),
            Measure("import.rows_taken_in_rss", memory["take"], "MiB", memory["floor"], goal=300),
            Measure("import.mimic_rss", memory["plan"], "MiB", memory["floor"], goal=300),
        ]
