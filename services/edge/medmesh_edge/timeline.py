"""The hospital's timelines: taking in, showing, merging. What is text, and who it is of, lies under each patient's key.

An import is many transactions, and killed and started again it goes on: what is known is known again. Its record is written when it ends;
the patients are named in records of their own, with the events.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from medmesh.errors import Problem
from medmesh.importing.port import Report
from medmesh.importing.sources import opened
from medmesh.security.keyring.memory import MemoryKey
from medmesh.security.keys import read_secret
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.timeline import cohorts, readers, records, terms
from medmesh.timeline.cohorts import Answer, Definition
from medmesh.timeline.events import Event, Identity, Merge
from medmesh.timeline.identity import PEOPLE, Namer, merge
from medmesh.timeline.reading import Reading
from medmesh.timeline.records import Cipher, Placed
from medmesh.timeline.tables import subjects
from medmesh.timeline.taking import Outcome, batch
from medmesh.timeline.terms import Suggestion, Vocabulary
from medmesh_edge import patients, withdrawn
from medmesh_edge.ethics import admitted, usable

if TYPE_CHECKING:
    from medmesh.timeline.export import Exported
    from medmesh_edge.ports import Site
from medmesh_edge.storing import held_out

TUNING = 0.1
"""The share of those who are not held out that a model is tuned on."""


class _Sealed:
    def __init__(self, key: MemoryKey) -> None:
        self._key = key

    def seal(self, content: bytes, bound: str) -> str:
        return self._key.wrap(patients.PATIENT, content, f"timeline\0{bound}".encode())

    def unseal(self, sealed: str, bound: str) -> bytes:
        return self._key.unwrap(patients.PATIENT, sealed, f"timeline\0{bound}".encode())


class PatientVault:
    """See `medmesh.timeline.records.Vault`: the keys of the hospital's patients."""

    keeps = True

    def __init__(self, site: Site) -> None:
        self._site = site

    async def ciphers(self, uow: UnitOfWork[Any], wanted: Iterable[str], *, make: bool) -> Mapping[str, Cipher]:
        found = await (patients.ensure if make else patients.known)(uow, self._site, wanted)
        return {pseudonym: _Sealed(key) for pseudonym, key in found.items()}


def namer(site: Site) -> Namer:
    """Names under the hospital's key; the authorities of its settings are its own."""
    return Namer(read_secret(site.layout.site_key).strip(), site.settings.authorities)


def dataset(site: Site, project: str) -> Entity:
    """The project's timeline as audit names it."""
    return Entity("dataset", f"{site.settings.hospital}/{project}")


async def ingest(
    site: Site,
    path: Path,
    project: str,
    *,
    reader: str | None = None,
    ethics: str = "",
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda events: None,
) -> Outcome:
    """Take in everything in a file, folder or archive under the approval `ethics`; with `dry_run` only say what that would be. Of who was
    forgotten, or did not agree, nothing is taken in. Raises `Problem`, `ethics.*` among them."""
    names, vault = namer(site), PatientVault(site)
    with opened(path) as source:
        chosen = readers.named(reader) if reader else await asyncio.to_thread(readers.recognised, source)
        reading = Reading(Report())
        outcome = Outcome(chosen.NAME, reading.report, reading.left_out)
        found = chosen.read(source, reading)
        while some := await asyncio.to_thread(batch, found, names, outcome):
            events, told = some
            progress(outcome.events)
            if dry_run:
                outcome.appended.patients |= {one.subject.patient for one in events}
                outcome.merges += len(told)
                continue
            async with site.unit() as uow:
                events = await _admitted(uow, site, ethics, events, outcome)
                done = await records.append(uow, project, events, vault, consent=ethics or None)
                outcome.merges += await _merge(uow, site, told, names, outcome)
                keys = await patients.known(uow, site, done.patients)
                for record in patients.about_patients(site, "patient.ingest", "C", keys, (dataset(site, project),)):
                    uow.audit(record)
            outcome.appended += done
    if not dry_run:
        done = outcome.appended
        detail: dict[str, str | int | bool] = {
            "format": outcome.reader,
            "stored": done.stored,
            "revised": done.revised,
            "known": done.known,
        }
        detail |= {"merges": outcome.merges, "rejected": reading.report.severities["error"] + outcome.refused.total()}
        about = (dataset(site, project), *((Entity("ethics", ethics),) if ethics else ()))
        async with site.unit() as uow:
            uow.audit(AuditEntry("timeline.import", "C", entities=about, detail=detail))
    return outcome


async def _admitted(uow: UnitOfWork[Any], site: Site, ethics: str, events: list[Placed], outcome: Outcome) -> list[Placed]:
    """Those that may be taken in today."""
    away = withdrawn.away(site, {one.subject.patient for one in events})
    by: dict[str, set[str]] = defaultdict(set)
    for one in events:
        by[_kind(one.draft.modality)].add(one.subject.patient)
    agreed = {kind: await admitted(uow, site, ethics, kind, who) for kind, who in by.items()}
    found = []
    for one in events:
        if one.subject.patient in away:
            outcome.refused["intake.withdrawn"] += 1
        elif one.subject.patient not in agreed[_kind(one.draft.modality)]:
            outcome.refused["intake.no_consent"] += 1
        else:
            found.append(one)
    return found


def _kind(modality: str) -> str:
    """Of what kind an event is to the ethics committee."""
    return {"text": "text", "imaging": "image"}.get(modality, "table")


async def _merge(uow: UnitOfWork[Any], site: Site, told: list[Merge], names: Namer, outcome: Outcome) -> int:
    new = 0
    for one in told:
        if withdrawn.away(site, {names.subject(one.survivor).patient, names.subject(one.loser).patient}):
            outcome.refused["intake.withdrawn"] += 1
            continue
        try:
            new += await merge(uow, [one], names)
        except Problem as problem:
            outcome.report.error(problem.code, outcome.reader, key=one.key)
    return new


async def show(site: Site, project: str, identity: Identity) -> list[Event]:
    """One person's events in order. Raises `Problem` (`edge.patient_unknown`). That it was looked at is recorded."""
    subject = namer(site).subject(identity)
    async with site.unit() as uow:
        found = await records.of(uow, project, subject.subject_id, PatientVault(site))
        keys = await patients.known(uow, site, [subject.patient])
        if not keys:
            raise Problem("edge.patient_unknown")
        for record in patients.about_patients(site, "timeline.read", "R", keys, (dataset(site, project),)):
            uow.audit(record)
    return found


async def join(site: Site, survivor: Identity, loser: Identity, *, undone: bool = False) -> None:
    """Say that two numbers are one person, or take that back. Raises `Problem` (`edge.patient_unknown`, `timeline.merge_*`,
    `timeline.not_merged`)."""
    names = namer(site)
    both = [names.subject(one).patient for one in (survivor, loser)]
    async with site.unit() as uow:
        keys = await patients.known(uow, site, both)
        if len(keys) != len(set(both)):
            raise Problem("edge.patient_unknown")
        await merge(uow, [Merge(survivor, loser, PEOPLE, uow.now.isoformat(), undone)], names)
        for record in patients.about_patients(site, "timeline.unmerge" if undone else "timeline.merge", "U", keys, ()):
            uow.audit(record)


async def define(site: Site, project: str, text: bytes) -> tuple[Definition, int]:
    """Save a cohort's definition; answers it and its version. Raises `Problem` (`timeline.cohort_invalid`)."""
    definition = cohorts.read(text)
    async with site.unit() as uow:
        version = await cohorts.save(uow, project, definition)
        about = (dataset(site, project), Entity("cohort", definition.name, str(version), definition.digest))
        uow.audit(AuditEntry("timeline.define", "C", entities=about))
    return definition, version


async def ask(site: Site, project: str, name: str, version: int | None = None) -> Answer:
    """Who is in a saved cohort. Raises `Problem` (`timeline.no_cohort`). That it was asked is recorded, with what was answered."""
    async with site.unit() as uow:
        definition, number = await cohorts.load(uow, project, name, version)
        found = await cohorts.answer(uow, project, definition, number, PatientVault(site), await usable(uow, site))
        about = (dataset(site, project), Entity("cohort", name, str(number), found.digest))
        uow.audit(AuditEntry("timeline.ask", "E", entities=about, detail={"samples": len(found.members)}))
    return found


async def export(site: Site, target: Path, project: str, *, cohort: str | None = None, texts: bool = False) -> Exported:
    """Write timelines as a MEDS data set into the folder `target`: everybody's, or those of a cohort, with its labels. The split is the
    images': who is held out there is held out here. Raises `Problem` (`timeline.target`, `timeline.no_cohort`)."""
    from medmesh.timeline.export import Sample, export

    chosen = None if cohort is None else await ask(site, project, cohort)
    only = None if chosen is None else sorted({one.subject_id for one in chosen.members})
    labels = (
        {}
        if chosen is None
        else {cohort: [Sample(m.subject_id, m.prediction_time, m.label) for m in chosen.members if m.label is not None]}
    )
    key = read_secret(site.layout.site_key).strip()
    async with site.unit() as uow:
        names = {row.subject_id: row.patient for row in await uow.all(select(subjects))}

        def split(subject: int) -> str:
            if held_out(names[subject], key, site.settings.holdout):
                return "held_out"
            return "tuning" if held_out(f"tuning\0{names[subject]}", key, TUNING) else "train"

        people = records.stream(uow, project, PatientVault(site), only=only, usable=await usable(uow, site))
        release = str(chosen.version) if chosen else "1"
        done = await export(
            target, cohort or project, people, split, release=release, texts=texts, labels={k: v for k, v in labels.items() if k and v}
        )
        sha256, _ = done.files["data/0.parquet"]
        detail: dict[str, str | int | bool] = {"events": done.events, "patients": done.subjects, "texts": texts}
        uow.audit(
            AuditEntry(
                "timeline.export", "E", entities=(dataset(site, project), Entity("dataset", done.name, release, sha256)), detail=detail
            )
        )
    return done


async def suggest(site: Site, project: str, vocabulary: Vocabulary, count: int = 3) -> list[tuple[str, int, list[Suggestion]]]:
    """(local code, events, suggestions) of what has no standard code. Nothing is changed."""
    async with site.unit() as uow:
        return [(code, number, vocabulary.suggest(terms.words(code), count)) for code, number in await terms.uncoded(uow, project)]


async def confirm(site: Site, project: str, local: str, name: str, code: str, by: str) -> str:
    """A person says what a local code means, or with an empty `code` that it means nothing yet. Raises `Problem` (`timeline.not_local`)."""
    async with site.unit() as uow:
        read_as = await terms.confirm(uow, project, local, name, code, by)
        # The hospital's words may name anybody: the record has their hash.
        about = (dataset(site, project), Entity("code", code or "none", digest=hashlib.sha256(local.encode()).hexdigest()))
        uow.audit(AuditEntry("timeline.confirm", "U", entities=about, detail={"taken_back": not code}))
    return read_as


async def card(site: Site, project: str, language: str, *, page: bool) -> str:
    """The data card of a project's timelines as an HTML page, else as Markdown. That it was made is recorded."""
    from medmesh.timeline import cards

    async with site.unit() as uow:
        facts = await cards.gather(uow, project, PatientVault(site))
        uow.audit(AuditEntry("timeline.card", "R", entities=(dataset(site, project),)))
    return cards.page(facts, language) if page else cards.markdown(facts, language)
