"""Items into the node's store and out of it: who may be taken in, then keys, then objects, then rows.

What a PACS sends waits in `unsettled` until its study is (`settling`): a table of its own, so that nothing that looks at items sees it.
Slices that a volume was made of are in `parts` from then on. Bytes that a change leaves to nobody are named in `leaving` by that change,
and erased after it (`erase`), also after a kill.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Table, case, delete, func, literal, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.errors import Problem
from medmesh.store.types import Timestamp
from medmesh.store.unit import Entity, UnitOfWork
from medmesh_edge import patients
from medmesh_edge.admission import refused_of
from medmesh_edge.labels import Label, label_of
from medmesh_edge.ports import Site
from medmesh_edge.tables import datasets, items, leaving, outputs, parts, results, unsettled

if TYPE_CHECKING:
    from medmesh_edge.intake import Outcome, Prepared

_CHANGED = ("label", "held_out", "object", "dataset", "ethics")
"""Of an item that is taken in again."""


def held_out(patient: str, key: bytes, share: float) -> bool:
    """Whether a patient's samples are for testing only: the same answer for every image of a patient, forever."""
    digest = hmac.new(key, b"held-out\0" + patient.encode(), "sha256").digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


async def store(
    site: Site,
    dataset: str,
    prepared: list[tuple[str, Prepared]],
    labels: dict[str, Label],
    key: bytes,
    outcome: Outcome,
    *,
    ethics: str = "",
    settled: bool = True,
) -> dict[str, str]:
    """Who may be taken in, then keys, then objects, then rows: a row never names bytes that are not there, or that nobody can open. What is
    not `settled` waits for `admit`. Answers the items that may not, with the reason. Raises `Problem` (`ethics.*`) when nobody may."""
    if not prepared:
        return {}
    async with site.unit() as uow:
        refused = await refused_of(uow, site, [entry for _, entry in prepared], ethics)
        outcome.rejected.update(refused.values())
        prepared = [(name, entry) for name, entry in prepared if entry.item not in refused]
        keys = await patients.ensure(uow, site, {entry.patient for _, entry in prepared})
    rows: dict[str, dict[str, Any]] = {}
    for name, entry in prepared:
        ref = await patients.images(site, keys[entry.patient]).put(entry.data, entry.media_type)
        rows[entry.item] = {
            "item": entry.item,
            "dataset": dataset,
            "patient": entry.patient,
            "modality": entry.modality,
            "object": ref.sha256,
            "ethics": ethics,
            **_said(entry.patient, label_of(name, labels), key, site.settings.holdout),
        }
    async with site.unit() as uow:
        if set(keys) - set(await patients.known(uow, site, keys)):
            raise Problem("edge.patient_forgotten")
        fresh = set(rows) - await _known(uow, rows, settled=settled)
        await _put(uow, rows, settled=settled)
        new = {name: keys[name] for name in {rows[item]["patient"] for item in fresh}}
        about = (Entity("dataset", f"{site.settings.hospital}/{dataset}"),)
        for record in patients.about_patients(site, "patient.ingest", "C", new, about):
            uow.audit(record)
    outcome.stored += len(fresh)
    outcome.known += len(prepared) - len(fresh)
    return refused


def _said(patient: str, label: Label | None, key: bytes, share: float) -> dict[str, Any]:
    """What the hospital says of an item, and where it says nothing, which patients it tests with."""
    if label is None:
        return {"label": None, "held_out": held_out(patient, key, share)}
    return {"label": label.label or None, "held_out": label.split == "test" if label.split else held_out(patient, key, share)}


async def _known(uow: UnitOfWork[Any], wanted: Collection[str], *, settled: bool) -> set[str]:
    """Which of these items are there; what waits is there only to what waits, too."""
    tables = (items,) if settled else (items, unsettled)
    return {row.item for table in tables for row in await uow.all(select(table.c.item).where(table.c.item.in_(list(wanted))))}


async def _put(uow: UnitOfWork[Any], rows: Mapping[str, Mapping[str, Any]], *, settled: bool) -> None:
    """New, or over what was there. What is settled comes after what waits, which is not to replace it."""
    if settled:
        await uow.execute(delete(unsettled).where(unsettled.c.item.in_(list(rows))))
    for row in rows.values():
        made = upsert(items if settled else unsettled).values(**row, at=uow.now)
        await uow.execute(made.on_conflict_do_update(index_elements=["item"], set_={name: row[name] for name in _CHANGED}))


async def admit(uow: UnitOfWork[Any], dataset: str, objects: Sequence[str]) -> int:
    """What waits and has these bytes is part of the data set from now on; how many. It takes the place of an earlier item of its name,
    whose label stays: a PACS says none. May be done twice."""
    mine = _of(unsettled, dataset, objects)
    before = select(items.c.object).join(unsettled, items.c.item == unsettled.c.item).where(mine, items.c.object != unsettled.c.object)
    replaced = [row.object for row in await uow.all(before)]
    columns = [column if column.name != "at" else literal(uow.now, Timestamp) for column in unsettled.c]
    made = upsert(items).from_select([column.name for column in unsettled.c], select(*columns).where(mine))
    changed: dict[str, ColumnElement[Any]] = {name: made.excluded[name] for name in ("object", "dataset", "ethics")}
    changed["label"] = func.coalesce(made.excluded.label, items.c.label)
    changed["held_out"] = case((made.excluded.label.is_(None), items.c.held_out), else_=made.excluded.held_out)
    await uow.execute(made.on_conflict_do_update(index_elements=["item"], set_=changed))
    gone = int((await uow.execute(delete(unsettled).where(mine))).rowcount)
    await _leave(uow, replaced)
    return gone


async def compose(uow: UnitOfWork[Any], dataset: str, volume: str, objects: Sequence[str]) -> int:
    """The slices with these bytes are parts of a volume from now on, and no items; how many were none before. May be done twice."""
    moved = 0
    same = (parts.c.item == unsettled.c.item) & (parts.c.object != unsettled.c.object)
    before = await uow.all(select(parts.c.object).join(unsettled, same).where(_of(unsettled, dataset, objects)))
    for table in (unsettled, items):
        mine = _of(table, dataset, objects)
        columns = [table.c[column.name] if column.name != "volume" else literal(volume) for column in parts.c]
        made = upsert(parts).from_select([column.name for column in parts.c], select(*columns).where(mine))
        changed = {name: made.excluded[name] for name in ("volume", "dataset", "object", "ethics")}
        await uow.execute(made.on_conflict_do_update(index_elements=["item"], set_=changed))
        moved += int((await uow.execute(delete(table).where(mine))).rowcount)
    await _leave(uow, [row.object for row in before])
    return moved


async def is_whole(site: Site, dataset: str, volume: str, objects: Sequence[str]) -> bool:
    """Whether a volume is in the data set as it is made of these slices, and no others."""
    async with site.unit() as uow:
        there = await uow.first(select(items.c.item).where(items.c.item == volume, items.c.dataset == dataset))
        found = {row.object for row in await uow.all(select(parts.c.object).where(parts.c.volume == volume))}
    return there is not None and found == set(objects)


async def ethics_of(site: Site, dataset: str, objects: Sequence[str]) -> str:
    """The approval that the newest of these slices were taken in under."""
    for table in (unsettled, parts, items):
        async with site.unit() as uow:
            found = await uow.first(select(table.c.ethics).where(_of(table, dataset, objects)).limit(1))
        if found is not None:
            return str(found.ethics)
    return ""


async def take_out(site: Site, dataset: str, objects: Sequence[str], volumes: Sequence[str] = ()) -> int:
    """Take the items whose bytes these are out of a data set, which is another version then, and what waits, and the volumes that they are
    parts of; how many items. May be done twice."""
    async with site.unit() as uow:
        gone: list[str] = []
        left = 0
        for table in (items, unsettled, parts):
            mine = _of(table, dataset, objects)
            if table is not parts:
                mine |= (table.c.dataset == dataset) & _among(table.c.item, volumes)
            if table is items:
                await uow.execute(delete(results).where(results.c.item.in_(select(items.c.item).where(mine))))
            found = [row.object for row in await uow.all(delete(table).where(mine).returning(table.c.object))]
            left += len(found) if table is items else 0
            gone += found
        if left:
            await uow.execute(update(datasets).where(datasets.c.dataset == dataset).values(version=datasets.c.version + 1))
        await _leave(uow, [*objects, *gone])
    await erase(site)
    return left


async def _leave(uow: UnitOfWork[Any], objects: Sequence[str]) -> None:
    """Bytes that rows do not need any more are erased after this transaction, with what pipelines made of them."""
    if not objects:
        return
    kept: set[str] = set()
    for table in (items, unsettled, parts):
        kept |= {row.object for row in await uow.all(select(table.c.object).where(_among(table.c.object, objects)))}
    gone = sorted(set(objects) - kept)
    made = await uow.all(delete(outputs).where(_among(outputs.c.object, gone)).returning(outputs.c.output))
    for one in {*gone, *(row.output for row in made)}:
        await uow.execute(upsert(leaving).values(object=one).on_conflict_do_nothing())


async def erase(site: Site) -> None:
    """Erase the bytes that changes left to nobody. Safe to repeat."""
    async with site.unit() as uow:
        # What came back meanwhile stays.
        for table in (items, unsettled, parts):
            await uow.execute(delete(leaving).where(leaving.c.object.in_(select(table.c.object))))
        wanted = [row.object for row in await uow.all(select(leaving.c.object))]
    for sha256 in wanted:
        await site.objects.delete(sha256)
        async with site.unit() as uow:
            await uow.execute(delete(leaving).where(leaving.c.object == sha256))


def _of(table: Table, dataset: str, objects: Sequence[str]) -> ColumnElement[bool]:
    return (table.c.dataset == dataset) & _among(table.c.object, objects)


def _among(column: ColumnElement[Any], values: Sequence[str]) -> ColumnElement[bool]:
    """Whatever their number is: a study may have more than a statement has parameters."""
    return column.in_(select(func.json_each(json.dumps(list(values))).table_valued("value").c.value))
