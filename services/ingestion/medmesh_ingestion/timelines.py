"""The timelines of data sets: events of what is public, or what somebody may bring, in the table that a hospital's node has too.

Nothing that identifies anybody is kept: no numbers, no source, no text in which rules for free text doubt. Timelines are their maker's
alone; what others may use is a version made of them, once it is released.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.canonical import digest
from medmesh.contracts.ingestion import AskCohort, CohortView, DefineCohort, ExportTimeline, ImportTimeline
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.importing.rows import MEDIA_TYPE
from medmesh.service import labels
from medmesh.service.dispatch import Work
from medmesh.store.objects.port import fetch
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.timeline import cohorts, records
from medmesh.timeline.records import OPEN
from medmesh.timeline.tables import codings, events, merges, subjects
from medmesh_ingestion.domain import Table, TablePart, content
from medmesh_ingestion.making import Found, Origin, create, erase, version_of
from medmesh_ingestion.ports import HANDLERS, Ports
from medmesh_ingestion.tables import METADATA, datasets, timelines

if TYPE_CHECKING:
    from medmesh.timeline.events import Event
    from medmesh.timeline.export import Exported
    from medmesh.timeline.taking import Outcome

SHARD = 100_000
"""Events in a file of an export, which are in memory at once."""
SPLITS = {"train": 0.8, "tuning": 0.1, "held_out": 0.1}
"""Shares of patients, by their pseudonyms."""
EVENTS = "events"
_INBOX = METADATA.tables["inbox"]


@HANDLERS.slow(ImportTimeline)
async def import_timeline(command: Envelope[ImportTimeline], work: Work[Ports]) -> dict[str, Any]:
    """Many transactions, and killed and begun again it goes on: what is known is known again. The archive is erased after it."""
    wanted = command.data
    async with work.unit() as uow:
        handled = await uow.first(select(_INBOX).where(_INBOX.c.consumer == work.consumer, _INBOX.c.event_id == work.event_id))
        if handled is None:
            await _begin(uow, wanted)
    if handled is not None:  # it died between its end and this
        await erase(work.ports, wanted.archive)
        return {}
    outcome = await _taken_in(wanted, work)
    work.result = {"dataset": wanted.dataset, **outcome.document(places=False)}
    done = outcome.appended
    detail: dict[str, str | int | bool] = {"format": outcome.reader, "stored": done.stored, "revised": done.revised, "known": done.known}
    detail |= {"merges": outcome.merges, "rejected": outcome.report.severities["error"] + outcome.refused.total()}
    archive = wanted.archive.sha256
    async with work.finish() as uow:
        entities = (Entity("dataset", wanted.dataset), Entity("archive", archive, digest=archive))
        uow.audit(AuditEntry("timeline.import", "C", entities=entities, detail=detail))
    await erase(work.ports, wanted.archive)
    return work.result


async def _begin(uow: UnitOfWork[Ports], wanted: ImportTimeline) -> None:
    """The data set with its label, and whose its timelines are. Raises `Problem` (`request.not_found`)."""
    await uow.execute(upsert(datasets).values(dataset=wanted.dataset, newest=0, created_at=uow.now).on_conflict_do_nothing())
    values = {"dataset": wanted.dataset, "maker": uow.actor.text, "created_at": uow.now}
    await uow.execute(upsert(timelines).values(values).on_conflict_do_nothing())
    await _own(uow, wanted.dataset)
    # Nobody has seen what is in the archive: it may hold anything that whoever sends it could read.
    await labels.made(uow, "dataset", wanted.dataset, wanted=wanted.label, outside=True)


async def _own(uow: UnitOfWork[Ports], dataset: str) -> None:
    """Raises `Problem` (`request.not_found`) unless they are the actor's."""
    row = await uow.first(select(timelines.c.maker).where(timelines.c.dataset == dataset))
    if row is None or row.maker != uow.actor.text:
        raise Problem("request.not_found", kind="timeline", id=dataset)


async def _taken_in(wanted: ImportTimeline, work: Work[Ports]) -> Outcome:
    """Raises `Problem`: `importing.*`, `timeline.unrecognised`, `timeline.no_reader`, `ingestion.nothing_accepted`."""
    from medmesh.importing.port import Report
    from medmesh.importing.sources import Limits, opened
    from medmesh.text import Sieve
    from medmesh.timeline import readers
    from medmesh.timeline.identity import Namer
    from medmesh.timeline.reading import Reading
    from medmesh.timeline.taking import Outcome, batch
    from medmesh_ingestion.intake import private_folder
    from medmesh_ingestion.rows import vouched

    settings, names = work.ports.settings, Namer(work.ports.key)
    stored = await work.ports.stores.holding(wanted.archive.sha256)
    if (await stored.size(wanted.archive.sha256) or 0) > settings.max_bytes:
        raise Problem("ingestion.archive_too_large", what="bytes", limit=settings.max_bytes)
    async with private_folder(work.ports.folder) as folder:
        path = await fetch(stored, wanted.archive, folder / "archive")
        limits = Limits(settings.max_files, settings.max_bytes, settings.max_ratio)
        with opened(path, limits, archive_only=True) as source:
            chosen = readers.named(wanted.reader) if wanted.reader else await asyncio.to_thread(readers.recognised, source)
            reading, sieve = Reading(Report()), Sieve(vouched(source))
            outcome = Outcome(chosen.NAME, reading.report, reading.left_out)
            found = chosen.read(source, reading)
            while some := await asyncio.to_thread(batch, found, names, outcome, sieve):
                placed, told = some
                async with work.unit() as uow:
                    # One import at a time: a patient of two of them is one new row.
                    await uow.execute(text(f"LOCK TABLE {subjects.name} IN SHARE ROW EXCLUSIVE MODE"))
                    outcome.appended += await records.append(uow, wanted.dataset, placed, OPEN)
                    outcome.merges += await _merged(uow, told, names, outcome)
    return outcome


async def _merged(uow: UnitOfWork[Ports], told: Any, names: Any, outcome: Outcome) -> int:
    from medmesh.timeline.identity import merge

    new = 0
    for one in told:
        try:
            new += await merge(uow, [one], names)
        except Problem as problem:
            outcome.report.error(problem.code, outcome.reader, key=one.key)
    return new


@HANDLERS.on(DefineCohort)
async def define_cohort(command: Envelope[DefineCohort], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """The same definition again is the version it has."""
    wanted = command.data
    await _own(uow, wanted.dataset)
    await uow.first(select(datasets.c.dataset).where(datasets.c.dataset == wanted.dataset).with_for_update())
    definition = cohorts.read(wanted.definition)
    version = await cohorts.save(uow, wanted.dataset, definition)
    about = (Entity("dataset", wanted.dataset), Entity("cohort", definition.name, str(version), definition.digest))
    uow.audit(AuditEntry("timeline.define", "C", entities=about))
    return {"cohort": definition.name, "version": version, "digest": definition.digest}


@HANDLERS.answers(AskCohort)
async def ask_cohort(query: Envelope[AskCohort], uow: UnitOfWork[Ports]) -> CohortView:
    """Counts, small ones hidden."""
    wanted = query.data
    await _own(uow, wanted.dataset)
    definition, version = await cohorts.load(uow, wanted.dataset, wanted.cohort, wanted.version or None)
    found = await cohorts.answer(uow, wanted.dataset, definition, version, OPEN)
    about = (Entity("dataset", wanted.dataset), Entity("cohort", definition.name, str(version), found.digest))
    uow.audit(AuditEntry("timeline.ask", "E", entities=about, detail={"samples": len(found.members)}))
    told = found.told()
    facts = {name: told.pop(name) for name in ("cohort", "version", "definition", "patients")}
    return CohortView(**facts, counts=told)


@HANDLERS.slow(ExportTimeline)
async def export_timeline(command: Envelope[ExportTimeline], work: Work[Ports]) -> dict[str, Any]:
    """The timelines as they stand become a version; the same again is the version they became."""
    from medmesh_ingestion.intake import private_folder

    wanted = command.data
    async with private_folder(work.ports.folder) as folder:
        async with work.unit() as uow:
            await _own(uow, wanted.dataset)
            origin = await _origin(uow, wanted)
            known = await version_of(uow, wanted.dataset, origin.sha256)
            done = None if known else await _written(uow, wanted, folder / "meds", origin)
        if done is None:
            assert known is not None
            work.result = {"dataset": wanted.dataset, "version": known.version}
            work.unchanged()
            return work.result
        found = await _stored(done, folder / "meds", work.ports)
    manifest = await work.ports.stores.kept.put(await asyncio.to_thread(content, *found.whole), "application/json")
    async with work.finish() as uow:
        work.result = {"dataset": wanted.dataset, "version": await create(uow, wanted.dataset, origin, manifest, found)}
        about = (Entity("dataset", wanted.dataset), Entity("timeline", origin.sha256, digest=manifest.sha256))
        facts: dict[str, str | int | bool] = {"events": done.exported.events, "patients": done.exported.subjects, "texts": wanted.texts}
        uow.audit(AuditEntry("timeline.export", "E", entities=about, detail=facts))
    return work.result


async def _origin(uow: UnitOfWork[Ports], wanted: ExportTimeline) -> Origin:
    """What the export is made from: whatever changes timelines adds a row, and rows never change. Raises `Problem`
    (`timeline.no_cohort`)."""
    mine = events.c.project == wanted.dataset
    newest = await uow.first(select(func.count(), func.max(events.c.event_id)).where(mine))
    rest = [await uow.first(select(func.max(table.c.n))) for table in (merges, codings)]
    state: dict[str, Any] = {"events": list(newest or ()), "rest": [row[0] for row in rest if row is not None], "texts": wanted.texts}
    if wanted.cohort is not None:
        definition, version = await cohorts.load(uow, wanted.dataset, wanted.cohort)
        state |= {"cohort": definition.digest, "version": version}
    return Origin(digest({"timeline": state}), "timeline", {"texts": wanted.texts})


@dataclass(frozen=True, slots=True)
class _Written:
    exported: Exported
    splits: Counter[str]


async def _written(uow: UnitOfWork[Ports], wanted: ExportTimeline, target: Path, origin: Origin) -> _Written:
    """In the folder `target`, as MEDS. Raises `Problem` (`timeline.empty`)."""
    from medmesh.timeline.export import Sample, export

    labelled: dict[str, list[Sample]] = {}
    only = None
    if wanted.cohort is not None:
        definition, version = await cohorts.load(uow, wanted.dataset, wanted.cohort)
        chosen = await cohorts.answer(uow, wanted.dataset, definition, version, OPEN)
        only = sorted({one.subject_id for one in chosen.members})
        known = [Sample(one.subject_id, one.prediction_time, one.label) for one in chosen.members if one.label is not None]
        labelled = {definition.name: known} if known else {}
    key, splits = uow.ports.key, Counter[str]()
    names = {row.subject_id: row.patient for row in await uow.all(select(subjects.c.subject_id, subjects.c.patient))}

    def side(subject: int) -> str:
        return side_of(names[subject], key)

    async def counted() -> AsyncIterator[tuple[int, list[Event]]]:
        async for subject, timeline in records.stream(uow, wanted.dataset, OPEN, only=only):
            splits[side(subject)] += len(timeline)
            yield subject, timeline

    name = wanted.cohort or wanted.dataset
    done = await export(target, name, counted(), side, release=origin.sha256[:12], texts=wanted.texts, labels=labelled, shard=SHARD)
    if not done.events:
        raise Problem("timeline.empty", project=wanted.dataset)
    return _Written(done, splits)


def side_of(patient: str, key: bytes) -> str:
    """On which side a patient stands, in every export: the same for everything that is known of them."""
    from medmesh.imaging.pseudonyms import mac

    place = int.from_bytes(mac(key, "side", patient)[:8], "big") / 2**64
    for name, share in SPLITS.items():
        if place < share:
            return name
        place -= share
    return "held_out"


async def _stored(done: _Written, folder: Path, ports: Ports) -> Found:
    """The files of an export, and its events as a table of the version."""
    from medmesh.timeline.export import SCHEMA, digest_of, rows_in

    files, parts = {}, []
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        name = path.relative_to(folder).as_posix()
        ref = await ports.stores.kept.put_file(path, (await asyncio.to_thread(digest_of, path))[0])
        files[name] = ref.model_copy(update={"media_type": MEDIA_TYPE if name.endswith(".parquet") else "application/json"})
        if name.startswith("data/"):
            parts.append(TablePart(files[name], rows_in(path)))
    fields = tuple({"name": one.name, "kind": str(one.type)} for one in SCHEMA)
    table = Table(EVENTS, EVENTS, "", fields, done.exported.events, done.exported.subjects, dict(done.splits), {}, tuple(parts))
    about = {"layout": "meds", "title": f"MEDS 0.4: {done.exported.name}", "licence": ""}
    return Found([], [table], {}, about, files)
