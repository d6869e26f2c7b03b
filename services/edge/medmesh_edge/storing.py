"""Items into the node's store and out of it: who may be taken in, then keys, then objects, then rows.

What a PACS sends waits in `unsettled` until its study is (`settling`): a table of its own, so that nothing that looks at items sees it.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Table, delete, func, literal, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.errors import Problem
from medmesh.store.types import Timestamp
from medmesh.store.unit import Entity, UnitOfWork
from medmesh_edge import patients
from medmesh_edge.admission import refused_of
from medmesh_edge.labels import Label, label_of
from medmesh_edge.ports import Site
from medmesh_edge.tables import datasets, items, results, unsettled

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
    refs = {e.item: await patients.images(site, keys[e.patient]).put(e.data, e.media_type) for _, e in prepared}
    async with site.unit() as uow:
        if set(keys) - set(await patients.known(uow, site, keys)):
            raise Problem("edge.patient_forgotten")
        stored: set[str] = set()
        known = {row.item for row in await uow.all(select(items.c.item).where(items.c.item.in_(list(refs))))}
        waiting = unsettled.c.item.in_(list(refs))
        if settled:  # comes after what waits, which is not to replace it
            await uow.execute(delete(unsettled).where(waiting))
        else:
            known |= {row.item for row in await uow.all(select(unsettled.c.item).where(waiting))}
        table = items if settled else unsettled
        for name, entry in prepared:
            label = label_of(name, labels)
            split = label.split if label else ""
            testing = split == "test" if split else held_out(entry.patient, key, site.settings.holdout)
            values = {
                "item": entry.item,
                "dataset": dataset,
                "patient": entry.patient,
                "modality": entry.modality,
                "object": refs[entry.item].sha256,
                "label": (label.label or None) if label else None,
                "held_out": testing,
                "ethics": ethics,
                "at": uow.now,
            }
            changed = {name: values[name] for name in _CHANGED}
            await uow.execute(upsert(table).values(values).on_conflict_do_update(index_elements=["item"], set_=changed))
            if entry.item in known:
                outcome.known += 1
            else:
                outcome.stored += 1
                stored.add(entry.patient)
            known.add(entry.item)
        about = (Entity("dataset", f"{site.settings.hospital}/{dataset}"),)
        for record in patients.about_patients(site, "patient.ingest", "C", {name: keys[name] for name in stored}, about):
            uow.audit(record)
    return refused


async def admit(uow: UnitOfWork[Any], dataset: str, objects: Sequence[str]) -> int:
    """What waits and has these bytes is part of the data set from now on; how many. May be done twice."""
    mine = _of(unsettled, dataset, objects)
    columns = [column if column.name != "at" else literal(uow.now, Timestamp) for column in unsettled.c]
    made = upsert(items).from_select([column.name for column in unsettled.c], select(*columns).where(mine))
    await uow.execute(made.on_conflict_do_update(index_elements=["item"], set_={name: made.excluded[name] for name in _CHANGED}))
    return int((await uow.execute(delete(unsettled).where(mine))).rowcount)


async def take_out(site: Site, dataset: str, objects: Sequence[str]) -> int:
    """Take the items whose bytes these are out of a data set, which is another version then, and what waits; how many items. May be done
    twice."""
    async with site.unit() as uow:
        mine = _of(items, dataset, objects)
        await uow.execute(delete(unsettled).where(_of(unsettled, dataset, objects)))
        await uow.execute(delete(results).where(results.c.item.in_(select(items.c.item).where(mine))))
        gone = len(await uow.all(delete(items).where(mine).returning(items.c.item)))
        if gone:
            await uow.execute(update(datasets).where(datasets.c.dataset == dataset).values(version=datasets.c.version + 1))
        kept = {row.object for table in (items, unsettled) for row in await uow.all(select(table.c.object).where(_among(table, objects)))}
    for sha256 in sorted(set(objects) - kept):
        await site.objects.delete(sha256)
    return gone


def _of(table: Table, dataset: str, objects: Sequence[str]) -> ColumnElement[bool]:
    return (table.c.dataset == dataset) & _among(table, objects)


def _among(table: Table, objects: Sequence[str]) -> ColumnElement[bool]:
    """Whatever their number is: a study may have more than a statement has parameters."""
    return table.c.object.in_(select(func.json_each(json.dumps(list(objects))).table_valued("value").c.value))
