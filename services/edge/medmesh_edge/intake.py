"""Taking in DICOM: read, check, de-identify, verify, store. A file that fails is counted by reason; its name is told to nobody."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.errors import Problem
from medmesh.quality.rules import BLOCKING
from medmesh.security.keys import read_secret
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_edge import patients, withdrawn
from medmesh_edge.ethics import admitted, kind_of
from medmesh_edge.ports import Site
from medmesh_edge.tables import datasets, items, results

BATCH = 50
LABELS = "labels.csv"


@dataclass
class Outcome:
    """What became of a folder."""

    stored: int = 0
    known: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    quality: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Label:
    """A row of `labels.csv`; `split` is "train", "test" or empty for the node to decide."""

    label: str
    split: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """One de-identified object: an image, or the values of a row."""

    item: str
    patient: str
    modality: str
    data: bytes
    quality: tuple[str, ...]
    media_type: str = "application/dicom"


def read_labels(path: Path) -> dict[str, Label]:
    """`file,label[,split]` by file name. Raises `Problem` (`intake.labels`) with the row's number and nothing of its content."""
    labels: dict[str, Label] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if not {"file", "label"} <= set(columns):
                raise Problem("intake.labels", row=1, reason="the columns file and label are needed")
            for number, row in enumerate(reader, start=2):
                name, label, split = row["file"], (row["label"] or "").strip(), (row.get("split") or "").strip()
                if not name or not label or split not in ("", "train", "test"):
                    raise Problem("intake.labels", row=number, reason="a file, a label, and train, test or nothing as split")
                if name in labels:
                    raise Problem("intake.labels", row=number, reason="the file has a label already")
                labels[name] = Label(label, split)
    except (UnicodeDecodeError, csv.Error):
        raise Problem("intake.labels", row=0, reason="not a UTF-8 CSV file") from None
    return labels


def prepare(data: bytes, key: bytes, options: str = "", rules: str = "", blocking: frozenset[str] = BLOCKING) -> Prepared:
    """De-identify one file and prove that nothing identifying is left. Raises `Problem` (`imaging.*`, `intake.residual`).

    `options` are words as `Options.parse` takes them, `rules` the hospital's own for text in pixels, TOML as `gate.read` takes it. Its
    `quality` names the rules among `blocking` that it breaks.
    """
    from medmesh.imaging.deidentify import Options, deidentify, gate
    from medmesh.imaging.reading import read, write
    from medmesh.imaging.verify import verify
    from medmesh.quality.dicom import check

    original = read(data, lazily=True)
    chosen = Options.parse(options)
    clean = deidentify(original, key, chosen, rules=(*gate.read(rules), *gate.default()) if rules else None)
    result = write(clean.dataset)
    if verify(original, result, kept=chosen.kept):
        raise Problem("intake.residual")
    item = hashlib.sha256(clean.sop_uid.encode()).hexdigest()[:32]
    return Prepared(item, clean.patient, str(clean.dataset.get("Modality") or ""), result, tuple(check(clean.dataset, blocking)))


def held_out(patient: str, key: bytes, share: float) -> bool:
    """Whether a patient's samples are for testing only: the same answer for every image of a patient, forever."""
    digest = hmac.new(key, b"held-out\0" + patient.encode(), hashlib.sha256).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


async def ingest(
    site: Site, folder: Path, dataset: str, *, ethics: str = "", progress: Callable[[int, int], None] = lambda done, total: None
) -> Outcome:
    """Take in every file below a folder, under the approval `ethics`. Killed and started again, it goes on; a file that is known already is
    not stored twice. Raises `Problem` (`intake.labels*`, `ethics.*`)."""
    labels = read_labels(folder / LABELS) if (folder / LABELS).exists() else {}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LABELS]
    missing = set(labels) - {path.name for path in files}
    if missing:
        raise Problem("intake.labels_missing", count=len(missing))
    key = read_secret(site.layout.site_key).strip()
    manner = how(site, dataset)
    outcome = Outcome()
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        prepared = await asyncio.to_thread(_all, batch, key, manner, outcome)
        await store(site, dataset, prepared, labels, key, outcome, ethics=ethics)
        progress(start + len(batch), len(files))
    await finish(site, dataset, outcome, ethics=ethics)
    return outcome


async def finish(site: Site, dataset: str, outcome: Outcome, *, ethics: str = "") -> None:
    """A new version of the data set when something is new, and the record."""
    async with site.unit() as uow:
        await complete(uow, site, dataset, outcome, ethics=ethics)


async def complete(uow: UnitOfWork[Any], site: Site, dataset: str, outcome: Outcome, *, ethics: str = "", **more: int) -> None:
    """The same within a transaction; `more` goes into the record."""
    row = upsert(datasets).values(dataset=dataset, version=1, published=0)
    if outcome.stored:
        row = row.on_conflict_do_update(index_elements=["dataset"], set_={"version": datasets.c.version + 1})
    else:
        row = row.on_conflict_do_nothing()
    await uow.execute(row)
    detail: dict[str, str | int | bool] = {"stored": outcome.stored, "known": outcome.known, "rejected": outcome.rejected.total(), **more}
    about = (Entity("dataset", f"{site.settings.hospital}/{dataset}"), *((Entity("ethics", ethics),) if ethics else ()))
    uow.audit(AuditEntry("edge.ingest", "C", entities=about, detail=detail))


class How(NamedTuple):
    """How a hospital has objects de-identified and judged: options as words, its own rules for text in pixels, and which rules of quality
    keep an object out; as `prepare` takes them."""

    options: str = ""
    rules: str = ""
    blocking: frozenset[str] = BLOCKING


def how(site: Site, dataset: str, options: str | None = None) -> How:
    """For a data set as node and policy are set, or with other options. Raises `Problem` (`imaging.option_unknown`, `imaging.gate_rules`,
    `policy.invalid`)."""
    from medmesh.imaging.deidentify import Options, gate

    rules = site.layout.gate.read_text(encoding="utf-8") if site.layout.gate.exists() else ""
    found = How(site.settings.deidentification if options is None else options, rules, site.policy().blocking(dataset))
    Options.parse(found.options)
    gate.read(found.rules)
    return found


def _all(batch: list[Path], key: bytes, manner: How, outcome: Outcome) -> list[tuple[str, Prepared]]:
    return list(_each(batch, key, manner, outcome))


def _each(batch: list[Path], key: bytes, manner: How, outcome: Outcome) -> Iterator[tuple[str, Prepared]]:
    for path in batch:
        try:
            prepared = prepare(path.read_bytes(), key, *manner)
        except Problem as problem:
            outcome.rejected[problem.code] += 1
            continue
        except OSError:
            outcome.rejected["intake.unreadable"] += 1
            continue
        if prepared.quality:
            outcome.quality.update(prepared.quality)
            outcome.rejected["intake.quality"] += 1
            continue
        yield path.name, prepared


async def store(
    site: Site,
    dataset: str,
    prepared: list[tuple[str, Prepared]],
    labels: dict[str, Label],
    key: bytes,
    outcome: Outcome,
    *,
    ethics: str = "",
) -> dict[str, str]:
    """Who may be taken in, then keys, then objects, then rows: a row never names bytes that are not there, or that nobody can open.
    Answers the items that may not, with the reason. Raises `Problem` (`ethics.*`) when nobody may."""
    if not prepared:
        return {}
    async with site.unit() as uow:
        away = withdrawn.away(site, {entry.patient for _, entry in prepared})
        kinds = sorted({kind_of(entry.modality) for _, entry in prepared})
        agreed = {kind: await admitted(uow, site, ethics, kind, {entry.patient for _, entry in prepared}) for kind in kinds}
        refused = {
            entry.item: "intake.withdrawn" if entry.patient in away else "intake.no_consent"
            for _, entry in prepared
            if entry.patient in away or entry.patient not in agreed[kind_of(entry.modality)]
        }
        outcome.rejected.update(refused.values())
        prepared = [(name, entry) for name, entry in prepared if entry.item not in refused]
        keys = await patients.ensure(uow, site, {entry.patient for _, entry in prepared})
    refs = {e.item: await patients.images(site, keys[e.patient]).put(e.data, e.media_type) for _, e in prepared}
    async with site.unit() as uow:
        if set(keys) - set(await patients.known(uow, site, keys)):
            raise Problem("edge.patient_forgotten")
        stored: set[str] = set()
        known = {row.item for row in await uow.all(select(items.c.item).where(items.c.item.in_(list(refs))))}
        for name, entry in prepared:
            label = labels.get(name)
            split = label.split if label else ""
            testing = split == "test" if split else held_out(entry.patient, key, site.settings.holdout)
            values = {
                "item": entry.item,
                "dataset": dataset,
                "patient": entry.patient,
                "modality": entry.modality,
                "object": refs[entry.item].sha256,
                "label": label.label if label else None,
                "held_out": testing,
                "ethics": ethics,
                "at": uow.now,
            }
            changed = {name: values[name] for name in ("label", "held_out", "object", "dataset", "ethics")}
            await uow.execute(upsert(items).values(values).on_conflict_do_update(index_elements=["item"], set_=changed))
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


async def take_out(site: Site, dataset: str, objects: Sequence[str]) -> int:
    """Take the items whose bytes these are out of a data set, which is another version then; how many. May be done twice."""
    async with site.unit() as uow:
        mine = (items.c.dataset == dataset) & items.c.object.in_(objects)
        await uow.execute(delete(results).where(results.c.item.in_(select(items.c.item).where(mine))))
        gone = len(await uow.all(delete(items).where(mine).returning(items.c.item)))
        if gone:
            await uow.execute(update(datasets).where(datasets.c.dataset == dataset).values(version=datasets.c.version + 1))
        kept = {row.object for row in await uow.all(select(items.c.object).where(items.c.object.in_(objects)))}
    for sha256 in sorted(set(objects) - kept):
        await site.objects.delete(sha256)
    return gone
