"""What a hospital's store keeps of whom it counted: by patient, across plans and releases, and without those who were forgotten."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select
from tests.packages import tiny
from tests.unit.edge.test_privacy import SETTINGS, _rule
from tests.unit.federated.test_plan import plan

from medmesh.security.keys import write_secret
from medmesh.simulation.hospital import SITE_KEY
from medmesh.simulation.hospital import policy as simulated
from medmesh_edge import counting, described
from medmesh_edge.ports import Site, site
from medmesh_edge.settings import Layout
from medmesh_edge.tables import cohorts, items, patients

PLAN = plan(small_cell=5)
CLASS = PLAN.data.classes[0]


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Site]:
    SETTINGS.save(private)
    _rule(private, ethics=0)
    text = Layout(private).policy.read_text("utf-8").replace("ethics = 0", "ethics = false")
    Layout(private).policy.write_text(text, "utf-8")
    write_secret(Layout(private).site_key, secrets.token_hex(32).encode())
    async with site(private) as opened:
        yield opened


async def arrive(at: Site, *names: str, each: int = 1, label: str = CLASS, held_out: bool = True) -> None:
    about = {"dataset": "d", "object": "0" * 64, "label": label, "held_out": held_out, "modality": PLAN.data.modality}
    async with at.unit() as uow:
        for name in names:
            if await uow.first(select(patients.c.patient).where(patients.c.patient == name)) is None:
                await uow.execute(insert(patients).values(patient=name, key="", at=uow.now))
            have = len(await uow.all(select(items.c.item).where(items.c.patient == name)))
            for n in range(have, have + each):
                await uow.execute(insert(items).values(item=f"{name}-{n}", patient=name, at=uow.now, **about))


def people(start: int, end: int) -> list[str]:
    return [f"p{n:02d}" for n in range(start, end)]


async def told(at: Site, small_cell: int = 5) -> set[str]:
    rows, smallest = await counting.held_out(at, plan(small_cell=small_cell))
    assert smallest == max(small_cell, 5)
    return {row.item for row in rows}


def test_a_simulation_rounds_alike_when_it_is_run_again(private: Path) -> None:
    keys = []
    for name in ("once", "again"):
        (private / name).mkdir()
        simulated(private / name, tiny(private / name, f"\n# {name}"))
        keys.append((private / name / SITE_KEY).read_bytes())
    assert keys[0] == keys[1]


async def test_a_larger_number_in_between_and_one_patient_with_many_samples_show_nobody(at: Site) -> None:
    await arrive(at, *people(0, 30))
    first = await told(at)
    assert len(first) == 30
    await arrive(at, "newcomer", each=6)
    await arrive(at, "p03", each=6)
    assert await told(at, 100) == set()
    assert await told(at) == first == await told(at, 8)
    await arrive(at, *people(30, 34))
    assert len(await told(at)) == 30 + 6 + 6 + 4, "five newcomers and what came of one who was there"


async def test_whom_an_earlier_release_counted_is_counted_and_newcomers_wait(at: Site) -> None:
    await arrive(at, *people(0, 31))
    old = [f"{name}-0" for name in people(0, 30)]
    async with at.unit() as uow:
        await uow.execute(insert(cohorts).values(modality=PLAN.data.modality, label=CLASS, members=old))
    assert await told(at, 100) == set()
    assert await told(at) == set(old)
    await arrive(at, *people(31, 35))
    assert len(await told(at)) == 35


@pytest.mark.parametrize("earlier", [False, True])
async def test_a_forgotten_patient_is_taken_out_by_name(at: Site, earlier: bool) -> None:
    await arrive(at, *people(0, 20))
    if earlier:
        async with at.unit() as uow:
            old = [f"{name}-0" for name in people(0, 20)]
            await uow.execute(insert(cohorts).values(modality=PLAN.data.modality, label=CLASS, members=old))
    else:
        assert len(await told(at)) == 20
    async with at.unit() as uow:
        assert "p07" in json.dumps([row.members for row in await uow.all(select(cohorts))])
        await counting.forget(uow, {"p07"})
        await uow.execute(delete(items).where(items.c.patient == "p07"))
        assert "p07" not in json.dumps([row.members for row in await uow.all(select(cohorts))])
    assert len(await told(at)) == (19 if earlier else 15)


async def test_a_descriptor_hides_few_and_is_no_sum_by_which_they_are_found(at: Site) -> None:
    healthy = people(0, 60)
    await arrive(at, *healthy, label="healthy", held_out=False)
    await arrive(at, *people(90, 93), each=2, label="disease")
    found = await described.descriptor(at, "d")
    assert found.labels["disease"] is None, "six samples, of three patients"
    assert found.labels["healthy"] == 60
    seen: set[tuple[int | None, int | None]] = set()
    for _ in range(40):  # as many hospitals
        at.layout.site_key.write_text(secrets.token_hex(32))
        found = await described.descriptor(at, "d")
        seen.add((found.samples, found.patients))
        assert found == await described.descriptor(at, "d"), "told again it is the same"
    assert {samples for samples, _ in seen} == {60, 65} and {patients for _, patients in seen} == {60, 65}


async def test_two_versions_of_a_descriptor_do_not_tell_by_how_much_they_differ(at: Site) -> None:
    steps: set[int] = set()
    before: Any = None
    await arrive(at, *people(0, 22), label="healthy")
    for n in range(22, 60):
        found = (await described.descriptor(at, "d")).labels["healthy"]
        assert found is not None and not found % 5
        if before is not None:
            steps.add(found - before)
        before = found
        await arrive(at, f"p{n:02d}", label="healthy")
    assert {-5, 0, 5} <= steps, "one more each time"
