"""Timelines: 100,000 events of 2,000 patients into a node's store and out again as MEDS."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from tests.bench.common import Measure, medians

EVENTS, EACH, AT_ONCE = 100_000, 50, 10_000
NAME = "meds.export"


def measure(names: Sequence[str]) -> list[Measure]:
    """The figure, unless others are asked for."""
    return asyncio.run(_export()) if not names or any(NAME.startswith(one) for one in names) else []


async def _export() -> list[Measure]:
    """Out of SQLite into a validated folder; the floor is Parquet alone, written of the same table in memory."""
    import pyarrow.parquet as pq

    from medmesh.store.database import Database
    from medmesh.store.tables import service_metadata
    from medmesh.store.unit import Context
    from medmesh.timeline import records
    from medmesh.timeline.events import Draft, Identity
    from medmesh.timeline.export import export
    from medmesh.timeline.identity import Namer
    from medmesh.timeline.tables import add_timeline_tables

    folder = Path(tempfile.mkdtemp(prefix="medmesh-bench-"))
    metadata = service_metadata()
    add_timeline_tables(metadata)
    database = Database.sqlite(folder / "store.db")
    namer, start, runs = Namer(b"sixteen bytes or more"), datetime(2024, 1, 1), 0

    def draft(n: int) -> Draft:
        who, code, at = Identity("", f"P{n // EACH}"), f"LAB//LOINC//{n % 300}-0", start + timedelta(minutes=n)
        return Draft(who, "bench", str(n), code, at, "second", float(n % 97), unit="mmol/L", code_system="LOINC", modality="lab")

    async def ours() -> float:
        nonlocal runs
        runs += 1
        began = time.perf_counter()
        async with database.unit(Context("bench")) as uow:
            done = await export(folder / f"out{runs}", "p", records.stream(uow, "p", records.OPEN), lambda subject: "train")
        assert done.events == EVENTS
        return time.perf_counter() - began

    async def floor() -> float:
        table = pq.read_table(folder / "out1" / "data" / "0.parquet")
        began = time.perf_counter()
        pq.write_table(table, folder / "floor.parquet", compression="zstd")
        return time.perf_counter() - began

    try:
        await database.create(metadata)
        began = time.perf_counter()
        for first in range(0, EVENTS, AT_ONCE):
            async with database.unit(Context("bench")) as uow:
                await records.append(uow, "p", [records.place(draft(n), namer) for n in range(first, first + AT_ONCE)], records.OPEN)
        stored = EVENTS / (time.perf_counter() - began)
        took, least = await medians(ours, floor)
    finally:
        await database.close()
        shutil.rmtree(folder)
    return [Measure(NAME, took, "s", floor=least, goal=5.0), Measure("meds.store", stored, "events/s", better="more")]
