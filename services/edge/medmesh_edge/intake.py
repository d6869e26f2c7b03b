"""Taking in a folder or an archive: each item cleaned, verified, judged and stored. A file that fails is counted by reason; its name is
told to nobody but who asks for it here."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.canonical import canonical
from medmesh.errors import Problem, catalogue
from medmesh.importing.formats import found
from medmesh.importing.formats.content import START
from medmesh.importing.port import Source
from medmesh.quality.rules import BLOCKING, OF_SERIES, Finding
from medmesh.security.keys import read_secret
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.text import as_text, sift
from medmesh_edge import storing
from medmesh_edge.admission import refused_of
from medmesh_edge.labels import LABELS, Label, label_of, read_labels, subject_of
from medmesh_edge.ports import Site
from medmesh_edge.tables import datasets, items

BATCH = 50
BATCH_BYTES = 64 << 20
"""Of cleaned items that wait to be stored together."""
LISTED = 10_000
"""Files that an outcome names, at most."""


class Reason(NamedTuple):
    """Why something is left out, as the catalogue says it, with what to do about it."""

    code: str
    en: str
    zh: str

    @classmethod
    def of(cls, problem: Problem) -> Reason:
        """Of a file that could not be taken in."""
        return cls(problem.code, f"{problem.detail()} {problem.hint()}".strip(), f"{problem.detail('zh')}{problem.hint('zh')}")

    @classmethod
    def refused(cls, code: str) -> Reason:
        """Of what may not be taken in (`admission`)."""
        text = catalogue()[code]
        return cls(code, f"{text.en} {text.hint_en}".strip(), f"{text.zh}{text.hint_zh}")

    @classmethod
    def broken(cls, code: str) -> Reason:
        """Of one that breaks a rule of quality."""
        return cls(f"quality.{code}", Finding(code).said("en"), Finding(code).said("zh"))


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file by its name, and why: for the hospital's own eyes."""

    name: str
    reasons: tuple[Reason, ...]

    @property
    def codes(self) -> str:
        """With commas between them."""
        return ",".join(reason.code for reason in self.reasons)


@dataclass
class Outcome:
    """What became of a folder; of a dry run, what would."""

    stored: int = 0
    known: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    quality: Counter[str] = field(default_factory=Counter)
    held: int = 0
    """Notes that wait for a person (`texts`)."""
    kinds: Counter[str] = field(default_factory=Counter)
    """What was taken in, by modality."""
    said: Counter[str] = field(default_factory=Counter)
    """Fields of files' headers that told of somebody, and are gone."""
    left_out: list[LeftOut] = field(default_factory=list)
    """The first `LISTED`."""

    def reject(self, name: str, problem: Problem) -> None:
        """Leave a file out."""
        self.rejected[problem.code] += 1
        self.leave_out(name, Reason.of(problem))

    def unfit(self, name: str, broken: Sequence[str]) -> None:
        """Leave a file out for the rules of quality that it, or its series, breaks."""
        self.quality.update(broken)
        self.rejected["intake.quality"] += 1
        self.leave_out(name, *map(Reason.broken, broken))

    def leave_out(self, name: str, *reasons: Reason) -> None:
        """List a file that was counted."""
        if len(self.left_out) < LISTED:
            self.left_out.append(LeftOut(name, reasons))


@dataclass(frozen=True, slots=True)
class Prepared:
    """One de-identified object: an image, a volume, a signal, or the values of a row."""

    item: str
    patient: str
    modality: str
    data: bytes
    quality: tuple[str, ...]
    media_type: str = "application/dicom"
    said: tuple[str, ...] = ()
    review: str = ""
    """Of a note that a person must look at before it is stored: what was found in it (`medmesh.text.Review`)."""


Rows = Callable[[bytes], Iterable[tuple[Prepared, str] | Problem]]
"""What a CSV file becomes: rows with their label, or what is amiss with one. Raises `Problem` where nothing can be read."""

Make = Callable[[str, dict[str, bytes] | Problem], list[tuple[str, Prepared]]]


def prepare(
    files: bytes | Mapping[str, bytes],
    key: bytes,
    options: str = "",
    rules: str = "",
    blocking: frozenset[str] = BLOCKING,
    volumes: bool = False,
    *,
    patient: str = "",
    modality: str = "",
) -> Prepared:
    """Clean one item and prove that nothing identifying is left. Raises `Problem` as `medmesh.importing.cleaning.clean` does.

    `options` are words as `Options.parse` takes them, `rules` the hospital's own for text in pixels, TOML as `gate.read` takes it. Its
    `quality` names the rules among `blocking` that it breaks. With `volumes` an object of several frames is one.
    """
    from medmesh.importing.cleaning import Project, clean

    made = clean(files, Project(key, options, rules, blocking=blocking, volumes=volumes), patient=patient, modality=modality)
    return Prepared(made.item, made.patient, made.modality, made.data, made.quality, made.media_type, made.said)


def prepare_note(
    text: str,
    key: bytes,
    patient: str,
    *,
    name: str = "note",
    place: str = "",
    known: tuple[str, ...] = (),
    blocking: frozenset[str] = BLOCKING,
) -> Prepared:
    """A note with what rules find in it replaced, or as it came with a review where they doubt. `place` is what it is known again by (a
    visit), without one its words are; `known` are names and numbers of the patient. Raises `Problem` (`intake.no_patient`)."""
    from medmesh.imaging.pseudonyms import pseudonym
    from medmesh.quality.tables import of_text

    if not patient.strip():
        raise Problem("intake.no_patient")
    who = pseudonym(patient, key)
    sifted = sift(text, (patient.strip(), *known))
    named = b"\0".join((b"text", name.encode(), who.encode(), place.encode() or sifted.review.digest.encode()))
    item = hmac.new(key, named, hashlib.sha256).hexdigest()[:32]
    quality = tuple(one.code for one in of_text(text) if one.code in blocking)
    said = tuple(sorted({str(one.span.kind) for one in sifted.review.judged}))
    if sifted.doubted:
        data = canonical({"item": item, "text": text, "doubted": list(sifted.doubted)})
        return Prepared(item, who, f"text:{name}", data, quality, "application/json", said, sifted.review.document())
    return Prepared(item, who, f"text:{name}", canonical({"item": item, "text": sifted.text}), quality, "application/json", said)


async def ingest(
    site: Site,
    folder: Path,
    dataset: str,
    *,
    ethics: str = "",
    modality: str = "",
    rows: Rows | None = None,
    series: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Take in every file below a folder or in an archive, under the approval `ethics`. Killed and started again, it goes on; a file that is
    known already is not stored twice. DICOM objects of a series are judged and stored together. A dry run says what would become of each,
    and writes nothing. `modality` is of files that say none, `rows` says what tables become, with `series` the DICOM objects of one are one
    volume. Raises `Problem` (`intake.labels*`, `ethics.*`, `importing.*`)."""
    from medmesh.importing.sources import opened

    key = read_secret(site.layout.site_key).strip()
    manner = how(site, dataset, volumes=series)
    outcome = Outcome()
    with opened(folder) as source:
        labels = read_labels(source)
        total = len(source.names)
        batch: list[tuple[str, Prepared]] = []
        every = _every(source, series, manner, lambda name, parts: _one(name, parts, labels, key, manner, modality, rows, outcome), outcome)
        whole = False
        try:
            while (one := await asyncio.to_thread(next, every, None)) is not None:
                done, made = one
                batch += made
                if len(batch) >= BATCH or sum(len(prepared.data) for _, prepared in batch) >= BATCH_BYTES:
                    await _take(site, dataset, batch, labels, key, outcome, ethics=ethics, dry_run=dry_run)
                    batch = []
                    progress(min(done, total), total)
            await _take(site, dataset, batch, labels, key, outcome, ethics=ethics, dry_run=dry_run)
            whole = True
        finally:
            if not dry_run and (whole or outcome.stored):  # also of what was stored before something stopped it
                await finish(site, dataset, outcome, ethics=ethics)
        progress(total, total)
    return outcome


def _every(source: Source, series: bool, manner: How, make: Make, outcome: Outcome) -> Iterator[tuple[int, list[tuple[str, Prepared]]]]:
    """What there is to store of each item, that of a series together; before it, of how many files that was. Where no rule about series
    blocks, files are taken as they lie."""
    from medmesh.importing import series as dicom
    from medmesh.importing.formats import files

    each: Iterator[tuple[str, str, dict[str, bytes] | Problem]]
    if series or not manner.blocking & OF_SERIES:
        each = (("", *one) for one in (dicom if series else files).together(source))
    else:
        each = dicom.apart(source)
    done = 0
    for uid, members in groupby(each, lambda one: one[0]):
        whole: list[tuple[str, Prepared]] = []
        for _, name, parts in members:
            done += 1
            if uid:
                whole += make(name, parts)
            elif name != LABELS:
                yield from ((done, [entry]) for entry in make(name, parts))
        if uid:
            yield done, _fit(whole, manner.blocking, outcome)


def _fit(whole: list[tuple[str, Prepared]], blocking: frozenset[str], outcome: Outcome) -> list[tuple[str, Prepared]]:
    """The objects of a series, if it breaks no rule as a whole; those alone are looked at that are fit themselves."""
    from medmesh.imaging.reading import read
    from medmesh.quality.dicom import broken, slice_of

    slices = {entry.item: slice_of(read(entry.data, lazily=True)) for _, entry in whole}
    if not (wrong := broken(list(slices.values()), blocking)):
        return whole
    for name, _ in whole:
        outcome.unfit(name, wrong)
    return []


async def _take(
    site: Site,
    dataset: str,
    batch: list[tuple[str, Prepared]],
    labels: dict[str, Label],
    key: bytes,
    outcome: Outcome,
    *,
    ethics: str,
    dry_run: bool,
) -> None:
    """Store what is sure, and hold back notes that somebody must look at; of a dry run, count."""
    sure, doubted = [one for one in batch if not one[1].review], [one for one in batch if one[1].review]
    if dry_run:
        async with site.unit() as uow:
            entries = [entry for _, entry in batch]
            refused = await refused_of(uow, site, entries, ethics)
            wanted = list({entry.item for _, entry in sure} - set(refused))
            known = {row.item for row in await uow.all(select(items.c.item).where(items.c.item.in_(wanted)))}
        outcome.known += len(known)
        outcome.stored += len(wanted) - len(known)
        outcome.held += sum(entry.item not in refused for _, entry in doubted)
        outcome.rejected.update(refused.values())
    else:
        refused = await storing.store(site, dataset, sure, labels, key, outcome, ethics=ethics)
        if any(entry.modality.startswith("text:") for _, entry in batch):
            from medmesh_edge import texts

            await texts.settled(site, [entry.item for _, entry in sure])
            refused |= await texts.hold(site, dataset, doubted, labels, outcome, ethics=ethics)
    for name, entry in batch:
        if entry.item in refused:
            outcome.leave_out(name, Reason.refused(refused[entry.item]))
        elif not entry.review:
            outcome.kinds[entry.modality] += 1
            outcome.said.update(entry.said)


async def finish(site: Site, dataset: str, outcome: Outcome, *, ethics: str = "") -> None:
    """A new version of the data set when something is new, and the record."""
    async with site.unit() as uow:
        await complete(uow, site, dataset, outcome, ethics=ethics)


async def complete(
    uow: UnitOfWork[Any], site: Site, dataset: str, outcome: Outcome, *, ethics: str = "", more: Mapping[str, int] = {}
) -> None:
    """The same within a transaction; `more` goes into the record."""
    row = upsert(datasets).values(dataset=dataset, version=1, published=0)
    if outcome.stored:
        row = row.on_conflict_do_update(index_elements=["dataset"], set_={"version": datasets.c.version + 1})
    else:
        row = row.on_conflict_do_nothing()
    await uow.execute(row)
    detail: dict[str, str | int | bool] = {"stored": outcome.stored, "known": outcome.known, "rejected": outcome.rejected.total(), **more}
    if outcome.held:
        detail["held"] = outcome.held
    about = (Entity("dataset", f"{site.settings.hospital}/{dataset}"), *((Entity("ethics", ethics),) if ethics else ()))
    uow.audit(AuditEntry("edge.ingest", "C", entities=about, detail=detail))


class How(NamedTuple):
    """How a hospital has objects de-identified and judged: options as words, its own rules for text in pixels, which rules of quality keep
    an object out, and whether its series are volumes; as `prepare` takes them."""

    options: str = ""
    rules: str = ""
    blocking: frozenset[str] = BLOCKING
    volumes: bool = False


def how(site: Site, dataset: str, options: str | None = None, *, volumes: bool = False) -> How:
    """For a data set as node and policy are set, or with other options. Raises `Problem` (`imaging.option_unknown`, `imaging.gate_rules`,
    `policy.invalid`)."""
    from medmesh.imaging.deidentify import Options, gate

    rules = site.layout.gate.read_text(encoding="utf-8") if site.layout.gate.exists() else ""
    found = How(site.settings.deidentification if options is None else options, rules, site.policy().blocking(dataset), volumes)
    Options.parse(found.options)
    gate.read(found.rules)
    return found


def _one(
    name: str,
    parts: dict[str, bytes] | Problem,
    labels: dict[str, Label],
    key: bytes,
    manner: How,
    modality: str,
    rows: Rows | None,
    outcome: Outcome,
) -> list[tuple[str, Prepared]]:
    """What there is to store of one item, under the name by which `labels` knows it. Raises `Problem` (`intake.table`)."""
    if label_of(name, labels) is None and not isinstance(parts, Problem):  # a series has the label of any of its files
        name = next((part for part in parts if label_of(part, labels) is not None), name)
    label = label_of(name, labels) or Label("", "")
    try:
        if isinstance(parts, Problem):
            raise parts
        data = next(iter(parts.values()))
        form = found(data[:START])
        if rows is not None and (name.lower().endswith(".csv") if form is None else form.name == "csv"):
            return list(_rows(name, rows(data), labels, outcome))
        patient = label.patient or subject_of(name)
        if form is None and data[128:132] != b"DICM" and (text := as_text(data)) is not None:
            made = prepare_note(text, key, patient, known=label.known, blocking=manner.blocking)
        else:
            made = prepare(parts, key, *manner, patient=patient, modality=label.modality or modality)
    except Problem as problem:
        if problem.code == "intake.table":
            raise
        outcome.reject(name, problem)
        return []
    if made.quality:
        outcome.unfit(name, made.quality)
        return []
    return [(name, made)]


def _rows(
    name: str, read: Iterable[tuple[Prepared, str] | Problem], labels: dict[str, Label], outcome: Outcome
) -> Iterator[tuple[str, Prepared]]:
    for row in read:
        if isinstance(row, Problem):
            outcome.reject(name, row)
            if feature := row.params.get("feature"):
                outcome.quality[str(feature)] += 1
            continue
        made, label = row
        if made.quality:
            outcome.unfit(name, made.quality)
            continue
        if label:
            labels[made.item] = Label(label, "")
        yield made.item, made
