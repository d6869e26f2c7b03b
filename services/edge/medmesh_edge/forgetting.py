"""Forgetting one patient: the patient's key is destroyed, and with it everything that lies under it, here and in the log.

A copy of the store made yesterday still has the wrapped key. So the key that wraps is turned over, too: the other patients' keys are
wrapped anew, and the old one is destroyed. In this order, so that a kill at any point is finished at the next start (`finish`):

    0  the patient is taken in no more, whoever sends what (`withdrawn`)
    1  a new version of the hospital's key
    2  one transaction: the patient's rows and key go, all others are wrapped anew, the audit record, and what is left to erase
    3  objects, copies, and the old version of the hospital's key

Whoever makes a patient's key wraps it inside a transaction; writers wait for each other, so it is either seen by 2 or made after 1.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from sqlalchemy import delete, func, insert, select, update

from medmesh.contracts.message import new_id
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.imaging.pseudonyms import pseudonym
from medmesh.ledger.copies import Folder
from medmesh.security.keys import read_secret
from medmesh.security.suites import DEFAULT
from medmesh.store.sqlite import Inline
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.timeline import records as timelines
from medmesh_edge import counting, originals, samples, withdrawn
from medmesh_edge import patients as keys
from medmesh_edge.ports import Site
from medmesh_edge.tables import (
    consents,
    datasets,
    federations,
    forgettings,
    held_texts,
    items,
    outputs,
    parts,
    patients,
    results,
    tasks,
    unsettled,
)

REASONS = ("withdrawn", "requested", "expired", "mistake", "ordered")
"""Words, so that no free text repeats who it was: consent withdrawn, the patient asked, the time to keep is over, taken in by
mistake, a court or an authority ordered it."""
MOST = 50
"""How many data sets, and federations, a record names."""


def who(site: Site, patient_id: str) -> str:
    """The pseudonym of a patient ID at this hospital."""
    return pseudonym(patient_id, read_secret(site.layout.site_key).strip())


async def ask(site: Site, patient: str, reason: str, by: str) -> tuple[str, bool]:
    """Ask to forget the patient of a pseudonym; done at once unless the policy wants a second person. Answers (request, done).

    Raises `Problem`: `edge.patient_unknown`, `edge.forget_reason`, `edge.forget_open`.
    """
    if reason not in REASONS:
        raise Problem("edge.forget_reason", reasons=", ".join(REASONS))
    second = site.policy().forget_second_person
    request = new_id()
    async with site.unit() as uow:
        if await uow.first(select(patients.c.patient).where(patients.c.patient == patient)) is None:
            raise Problem("edge.patient_unknown")
        if await uow.first(select(forgettings.c.request).where(forgettings.c.patient == patient)):
            raise Problem("edge.forget_open")
        values = {"request": request, "patient": patient, "reason": reason, "asked_by": by[:80], "state": "asked", "at": uow.now}
        await uow.execute(insert(forgettings).values(approved_by="", objects=[], **values))
        if second:
            uow.audit(AuditEntry("patient.forget_ask", "D", entities=(Entity("request", request),), detail={"reason": reason}))
    if not second:
        await _erase(site, request, "")
    return request, not second


async def approve(site: Site, request: str, by: str) -> None:
    """A second person agrees. Raises `Problem`: `request.not_found`, `edge.forget_same_person`."""
    async with site.unit() as uow:
        row = await uow.first(select(forgettings).where(forgettings.c.request == request, forgettings.c.state == "asked"))
        if row is None:
            raise Problem("request.not_found", kind="open request to forget", id=request)
        if row.asked_by == by[:80]:
            raise Problem("edge.forget_same_person", person=by)
    await _erase(site, request, by)


async def readmit(site: Site, patient: str) -> None:
    """The patient of a pseudonym was forgotten, and agrees to be taken in again. Raises `Problem` (`edge.patient_not_away`)."""
    async with site.unit() as uow:
        if not withdrawn.remove(site, patient):
            raise Problem("edge.patient_not_away")
        uow.audit(AuditEntry("patient.readmit", "C"))


async def _affected(uow: UnitOfWork[None], site: Site, names: set[str]) -> dict[str, list[str]]:
    """The data sets with the patient's data, and the federations that trained here on such data since they are here."""
    mine = await uow.all(select(items).where(items.c.patient.in_(names)))
    trained = select(tasks.c.federation, federations.c.plan, func.max(tasks.c.at).label("last")).join(
        federations, federations.c.federation == tasks.c.federation
    )
    found = set()
    for row in await uow.all(trained.where(tasks.c.trained > 0).group_by(tasks.c.federation)):
        data = Plan.model_validate(row.plan).data
        fits = (one for one in mine if one.modality == data.modality and one.label in data.classes and not one.held_out)
        if any(one.at <= row.last for one in fits):
            found.add(row.federation)
    return {"datasets": sorted({f"{site.settings.hospital}/{one.dataset}" for one in mine}), "federations": sorted(found)}


async def _erase(site: Site, request: str, by: str) -> None:
    async with site.unit() as uow:
        asked = await uow.first(select(forgettings).where(forgettings.c.request == request, forgettings.c.state == "asked"))
        if asked is None:  # another process did it meanwhile
            return
        # One person may have several numbers: with one of them all are forgotten.
        names, _ = await timelines.same_person(uow, asked.patient)
    if asked.reason != "mistake":
        for name in sorted(names):
            withdrawn.add(site, name)
    for name in sorted(names):
        await asyncio.to_thread(originals.forget, site, name)
    site.keys.create(keys.HOSPITAL, "wrap", DEFAULT)
    async with site.unit() as uow:
        row = await uow.first(select(forgettings).where(forgettings.c.request == request, forgettings.c.state == "asked"))
        if row is None:  # another process did it meanwhile
            return
        names, subjects = await timelines.same_person(uow, row.patient)
        mine = [row for table in (items, unsettled) for row in await uow.all(select(table.c.object).where(table.c.patient.in_(names)))]
        slices = await uow.all(select(parts.c.object).where(parts.c.patient.in_(names)))
        made = await uow.all(select(outputs.c.output).where(outputs.c.patient.in_(names)))
        held = await uow.all(select(held_texts.c.object).where(held_texts.c.patient.in_(names), held_texts.c.object != ""))
        affected = await _affected(uow, site, names)
        affected["datasets"] += [f"{site.settings.hospital}/{one}" for one in await timelines.projects(uow, subjects)]
        await uow.execute(delete(results).where(results.c.item.in_(select(items.c.item).where(items.c.patient.in_(names)))))
        await counting.forget(uow, names)
        for table in (items, unsettled, parts, held_texts, outputs, consents, patients):
            await uow.execute(delete(table).where(table.c.patient.in_(names)))
        for name in affected["datasets"]:  # without the patient it is another version
            which = datasets.c.dataset == name.partition("/")[2]
            await uow.execute(update(datasets).where(which).values(version=datasets.c.version + 1))
        events = await timelines.forget(uow, subjects)
        await _wrap_anew(uow, site)
        left: dict[str, Any] = {"state": "erasing", "patient": None, "affected": affected, "approved_by": by[:80]}
        left["objects"] = sorted({one.object for one in (*mine, *slices, *held)} | {one.output for one in made})
        await uow.execute(update(forgettings).where(forgettings.c.request == request).values(left))
        detail: dict[str, str | int | bool] = {"reason": row.reason, "items": len(mine), "events": events, "second_person": bool(by)}
        touched = [Entity(kind.removesuffix("s"), name) for kind, names in affected.items() for name in names[:MOST]]
        uow.audit(AuditEntry("patient.forget", "D", entities=(Entity("request", request), *touched), detail=detail))
    await finish(site)


async def _wrap_anew(uow: UnitOfWork[None], site: Site) -> None:
    for row in await uow.all(select(patients)):
        key = site.keys.unwrap(keys.HOSPITAL, row.key, keys.bound(site, row.patient))
        wrapped = site.keys.wrap(keys.HOSPITAL, key, keys.bound(site, row.patient))
        await uow.execute(update(patients).where(patients.c.patient == row.patient).values(key=wrapped))


async def finish(site: Site) -> bool:
    """Erase what is left of forgotten patients; True when there was something. Safe to repeat, also while a node runs."""
    async with site.unit() as uow:
        rows = await uow.all(select(forgettings).where(forgettings.c.state.in_(("erasing", "erased"))))
    if not rows:
        return False
    for row in rows:
        for sha256 in row.objects:
            await site.objects.delete(sha256)
    # Arrays made of images for training; whoever needs them makes them again of what is left.
    await asyncio.to_thread(samples.forget_arrays, site)
    await asyncio.to_thread(site.objects.rewrap)
    await _destroy_old(site)
    await _mark(site, rows, state="erased", objects=[])
    await compact(site)
    await _mark(site, rows, state="done")
    return True


async def _mark(site: Site, rows: Sequence[Any], **values: Any) -> None:
    async with site.unit() as uow:
        await uow.execute(update(forgettings).where(forgettings.c.request.in_([row.request for row in rows])).values(values))


async def _destroy_old(site: Site) -> None:
    """Destroy what no key is wrapped under any more."""
    used = set(await asyncio.to_thread(site.objects.versions_in_use)) | await asyncio.to_thread(originals.rewrap, site)
    async with site.unit() as uow:
        used |= {keys.version(row.key) for row in await uow.all(select(patients.c.key))}
    for old in site.keys.versions(keys.HOSPITAL)[:-1]:
        if old not in used:
            site.keys.destroy(keys.HOSPITAL, old)


async def compact(site: Site) -> None:
    """What was deleted leaves the file of the store, and its journal. A reader may be in the way for a moment."""
    for _ in range(20):
        async with site.database.engine.connect() as sql:
            busy = await cast(Inline, sql).patiently("PRAGMA wal_checkpoint(TRUNCATE)")
        if busy is not None and busy[0] == 0:
            return
        await asyncio.sleep(0.1)
    raise Problem("edge.store_busy")


async def waiting(site: Site) -> list[dict[str, Any]]:
    """Requests and what became of them; who it was is never shown."""
    async with site.unit() as uow:
        rows = await uow.all(select(forgettings).order_by(forgettings.c.at))
    shown = ("request", "reason", "asked_by", "approved_by", "state", "affected")
    return [{name: getattr(row, name) for name in shown} for row in rows]


async def count(site: Site) -> int:
    """How many patients are known here."""
    async with site.unit() as uow:
        return int((await uow.execute(select(func.count()).select_from(patients))).scalar_one())


async def trace(site: Site, patient: str, copy: Path) -> list[tuple[int, str, str]]:
    """(sequence number, time, verb) of the records about a patient in a copy of the log. Raises `Problem` (`edge.patient_unknown`)."""
    async with site.unit() as uow:
        found = await keys.known(uow, site, [patient])
    if not found:
        raise Problem("edge.patient_unknown")
    return await asyncio.to_thread(lambda: list(keys.traces(site, patient, found[patient], _records(copy))))


def _records(copy: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for seq, _, body in Folder(copy).bodies(0, 1 << 62) or ():
        yield seq, json.loads(body)
