"""A table in a hospital's node: taken in again and again, nothing identifying in the folder, a patient forgotten, arrays for training."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from tests.integration.test_forget import ALONE, everything, prepare, records

from medmesh.contracts.data import DataSchema, TableSchema
from medmesh.errors import Problem
from medmesh.learning import weights
from medmesh_edge import described, forgetting, quality, samples, tabular
from medmesh_edge.policy import Cohort
from medmesh_edge.ports import Site, site

COUNT = 40
AGE = {"name": "age", "kind": "number", "low": "18", "high": "100", "center": "50", "scale": "10"}
SEX = {"name": "sex", "kind": "code", "codes": ["female", "male"], "missing": True}
SCHEMA: TableSchema = TypeAdapter(DataSchema).validate_python(
    {"kind": "table", "table": "heart", "features": (AGE, SEX), "classes": ("well", "ill")}
)


def table(folder: Path, *, older: int = 0, bad: bool = True) -> tuple[Path, Path]:
    rows = [
        f"PID-KANARY-{n},Kanary Name{n},{20 + n + older},{('female', 'male', '')[n % 3]},{('well', 'ill')[n % 2]}" for n in range(COUNT)
    ]
    if bad:
        rows += ["PID-KANARY-99,Kanary Name99,12,male,ill", "PID-KANARY-98,Kanary Name98,44,male,dead"]
    source, columns = folder / "heart.csv", folder / "columns.toml"
    source.write_text("\n".join(["id,name,age,sex,state", *rows]))
    columns.write_text('patient = "id"\nlabel = "state"\n')
    return source, columns


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Site]:
    async with site(prepare(private / "node", ALONE)) as opened:
        outcome = await tabular.ingest(opened, *table(private), SCHEMA, "heart")
        assert (outcome.stored, outcome.known) == (COUNT, 0)
        assert dict(outcome.rejected) == {"intake.row_value": 1, "intake.row_label": 1}
        assert dict(outcome.quality) == {"age": 1}, "which column is amiss is said, whose row it is not"
        yield opened


async def arrays(at: Site) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(train x, train y, held out x)."""
    train, test = await samples.prepare(at, SCHEMA, held_out=False), await samples.prepare(at, SCHEMA, held_out=True)
    stored = weights.load(train[0])
    return stored["x"], stored["y"], weights.load(test[0])["x"]


async def test_the_arrays_are_the_rows_and_held_out_patients_are_never_trained_on(at: Site) -> None:
    x, y, held_out = await arrays(at)
    assert (x.dtype, x.shape[1:], y.dtype) == (np.float32, SCHEMA.shape, np.int64)
    assert len(x) + len(held_out) == COUNT
    assert len(held_out) > 0
    ages = sorted(np.round(np.concatenate([x[:, 0], held_out[:, 0]]) * 10 + 50).astype(int))
    assert ages == list(range(20, 20 + COUNT)), "everybody is there once"
    assert set(np.round(x[:, 0] * 10 + 50).astype(int) % 2) <= {0, 1}
    np.testing.assert_array_equal(np.round(x[:, 0] * 10 + 50).astype(int) % 2, y)
    assert (x[:, 1:].sum(axis=1) == 1).all(), "a sex, or none is known"


async def test_again_is_the_same_and_a_correction_replaces_the_row(at: Site, private: Path) -> None:
    before = await arrays(at)
    again = await tabular.ingest(at, *table(private), SCHEMA, "heart")
    assert (again.stored, again.known) == (0, COUNT)
    ingested = [r["detail"] for r in records(at.layout.folder) if r["sub"] == "edge.ingest"]
    assert [(one["stored"], one["known"]) for one in ingested] == [(COUNT, 0), (0, COUNT)], "also that there was nothing new"
    for was, now in zip(before, await arrays(at), strict=True):
        np.testing.assert_array_equal(was, now)
    await tabular.ingest(at, *table(private, older=10, bad=False), SCHEMA, "heart")
    x, _, held_out = await arrays(at)
    assert (len(x), len(held_out)) == (len(before[0]), len(before[2]))
    np.testing.assert_allclose(x[:, 0], before[0][:, 0] + 1, atol=1e-6)


async def test_nobody_is_named_and_what_is_told_outside_is_counts(at: Site) -> None:
    await arrays(at)
    everywhere = everything(at.layout.folder)
    assert b"KANARY" not in everywhere.upper()
    told = await described.descriptor(at, "heart")
    assert (told.modality, told.samples, told.patients, told.labels) == ("table:heart", COUNT, COUNT, {"ill": 20, "well": 20})
    assert told.deidentification == "allow-list of columns"
    assert [r["detail"] for r in records(at.layout.folder) if r["sub"] == "edge.ingest"] == [{"stored": COUNT, "known": 0, "rejected": 2}]
    assert [r["detail"] for r in records(at.layout.folder) if r["sub"] == "patient.ingest"] == [{"patients": COUNT}]


async def test_a_forgotten_patient_is_gone_from_the_arrays(at: Site) -> None:
    x, _, held_out = await arrays(at)
    _, done = await forgetting.ask(at, forgetting.who(at, "PID-KANARY-3"), "withdrawn", "zhao")
    assert done
    after = await arrays(at)
    assert len(after[0]) + len(after[2]) == COUNT - 1
    assert 23 in np.round(np.concatenate([x[:, 0], held_out[:, 0]]) * 10 + 50)
    assert 23 not in np.round(np.concatenate([after[0][:, 0], after[2][:, 0]]) * 10 + 50)


async def test_a_plan_whose_table_has_other_features_gets_a_reason_and_another_table_gets_nothing(at: Site) -> None:
    other: dict[str, Any] = {**SCHEMA.model_dump(), "features": ({**AGE, "high": "30"}, SEX)}
    with pytest.raises(Problem) as caught:
        await samples.prepare(at, TypeAdapter(DataSchema).validate_python(other), held_out=False)
    assert caught.value.code == "data.row"
    assert await samples.cohort(at, SCHEMA.model_copy(update={"table": "lung"})) == Cohort(0, 0)
    assert 0 < (await samples.cohort(at, SCHEMA)).samples < COUNT


async def test_a_table_that_cannot_be_read_leaves_nothing(private: Path) -> None:
    async with site(prepare(private / "node", ALONE)) as opened:
        source, columns = table(private)
        source.write_text("id,state\n1,well\n")
        with pytest.raises(Problem) as caught:
            await tabular.ingest(opened, source, columns, SCHEMA, "heart")
        assert caught.value.code == "intake.table"
        assert records(opened.layout.folder) == []


async def test_patients_with_equal_values_are_two_and_one_is_forgotten_alone(private: Path) -> None:
    async with site(prepare(private / "node", ALONE)) as opened:
        source, columns = table(private)
        source.write_text("id,age,sex,state\nPID-1,50,male,ill\nPID-2,50,male,ill\n")
        assert (await tabular.ingest(opened, source, columns, SCHEMA, "heart")).stored == 2
        x, _, held_out = await arrays(opened)
        assert len(x) + len(held_out) == 2
        await forgetting.ask(opened, forgetting.who(opened, "PID-1"), "withdrawn", "zhao")
        x, _, held_out = await arrays(opened)
        assert len(x) + len(held_out) == 1


async def test_the_quality_of_the_rows_is_judged_here_and_recorded(at: Site) -> None:
    report = await quality.judge(at, "heart")
    assert report.items == {"table": 1} and not report.blocked
    assert [(one.place, one.finding.params["column"]) for one in report.places["missing_values"]] == [("heart", "sex")]
    assert [r["detail"] for r in records(at.layout.folder) if r["sub"] == "edge.quality"] == [{"items": COUNT}]
    with pytest.raises(Problem, match="nothing"):
        await quality.judge(at, "nothing")
