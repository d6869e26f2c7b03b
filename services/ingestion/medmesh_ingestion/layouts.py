"""An archive in a published layout on its way into a version: images, volumes and masks, with split, group and labels as published, and
questions, texts and rows beside them.

The layout's importer reads the archive where it lies. A grey image is cleaned like one that somebody sent by itself; what is none, by
its format. The patient or group becomes a pseudonym, and the item is named after its place in the layout, so that no image of the set
gets lost as another's copy.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from medmesh.errors import Problem
from medmesh.importing import registry
from medmesh.importing.cleaning import DICOM, Clean, Project, is_image
from medmesh.importing.formats import cleaned
from medmesh.importing.formats.arrays import NPY
from medmesh.importing.formats.nifti import NIFTI
from medmesh.importing.port import File, Importer, Item, Plan
from medmesh.importing.records import Names, Records
from medmesh.importing.sources import Limits, opened
from medmesh.quality.rules import BLOCKING
from medmesh.telemetry import log
from medmesh.text import Sieve
from medmesh_ingestion.cleaning import Rejected, clean
from medmesh_ingestion.domain import MAX_CLASSES, MAX_LABEL, Facts, Label, reasons
from medmesh_ingestion.intake import Kept, Part, Taken, taken
from medmesh_ingestion.pieces import Picture, Pictures, Pieces
from medmesh_ingestion.rows import Tables, vouched

TAKEN = ("image", "volume", "mask")
VOLUMES = (NIFTI.media_type, NPY.media_type)
MAX_LICENCE = 500
PUBLISHED = 0.9
"""Scores from here on are of published layouts, not of file formats."""


def layout_of(archive: Path, limits: Limits) -> Importer | None:
    """The importer of a published layout; None for anything else, also for what the ordinary door refuses in its own words."""
    try:
        with opened(archive, limits) as source:
            found = registry.recognised(source)
            return found if found.sniff(source) >= PUBLISHED else None
    except Problem:
        return None


async def take_in_layout(archive: Path, importer: Importer, folder: Path, key: bytes, limits: Limits, largest: int) -> Taken:
    """The items that may be kept, cleaned, in `folder`; the pictures that questions and texts are about; and these as rows of tables.

    `largest` bounds the bytes of one file. Raises `Problem`: `ingestion.layout` for a set with errors (by code: names of files stay out
    of it), `ingestion.nothing_accepted`.
    """
    with opened(archive, limits) as source, Pieces(source) as pieces:
        plan = await asyncio.to_thread(importer.plan, source)
        if plan.errors:
            codes = Counter(finding.code.partition(".")[2] for finding in plan.findings if finding.severity == "error")
            raise Problem("ingestion.layout", layout=importer.name, errors=plan.errors, reasons=reasons(codes))
        names = Names(key, importer.name)
        desk = _Desk(importer, plan, pieces, folder, key, names, largest)
        kept: list[Kept] = []
        rejected: Counter[str] = Counter()
        pictures = Pictures(importer)

        def sort(one: Kept | Rejected) -> None:
            if isinstance(one, Rejected):
                rejected[one.reason] += 1
            else:
                kept.append(one)

        items = importer.items(source)
        while some := await asyncio.to_thread(pictures.next, items):
            for item in some:
                sort(await asyncio.to_thread(desk.take, item))
        for name, picture in pictures.in_order(pieces.place):
            sort(await asyncio.to_thread(desk.picture, name, picture))
        records, tables = Records(importer, names, Sieve(vouched(source))), Tables(folder)
        await tables.fill(record for item in importer.items(source) for record in records.of(item))
    counts = {f"{kind} {split}".strip(): count for (kind, split), count in plan.counts.items()}
    about = {
        "layout": importer.name,
        "title": plan.title,
        "licence": plan.licence[:MAX_LICENCE],
        "manifest": plan.manifest,
        "counts": counts,
    }
    return taken(kept, rejected, tables, about)


@dataclass(frozen=True, slots=True)
class _Desk:
    """Where one item after the other is cleaned."""

    importer: Importer
    plan: Plan
    pieces: Pieces
    folder: Path
    key: bytes
    names: Names
    largest: int

    def take(self, item: Item) -> Kept | Rejected:
        """The item with its files cleaned, in the folder under their hashes."""
        if item.kind not in TAKEN:
            return Rejected(f"kind_{item.kind}")
        if not item.files or (item.missing and item.kind == "image"):
            return Rejected("pending")
        made: list[Part] = []
        for file in item.files:
            found = self._file(item.kind, file)
            if isinstance(found, Rejected):
                return found
            made.append(found)
        first = next((part for part in made if part.role == "image"), made[0])
        label, facts = _label(item, self.plan, self.importer), _facts(item, self.names)
        name = self.names.item(item.key)
        return Kept(name, first.path, first.sha256, label, facts, first.media_type, tuple(made) if len(made) > 1 else ())

    def picture(self, name: str, picture: Picture) -> Kept | Rejected:
        """What questions and texts are about, as an item without a class."""
        found = self._file("image", picture.file)
        if isinstance(found, Rejected):
            return found
        group = None if picture.unit is None else self.names.group(picture.unit)
        kind = "volume" if found.media_type in VOLUMES else "image"
        return Kept(self.names.picture(name), found.path, found.sha256, None, Facts(kind, picture.split, group, {}), found.media_type)

    def _file(self, kind: str, file: File) -> Part | Rejected:
        if self.pieces.size(file) > self.largest:
            return Rejected("too_large")
        try:
            found = self._cleaned(kind, self.pieces.read(file))
        except Problem as problem:  # damage that no header shows; the problem names a file
            return Rejected(problem.code.partition(".")[2])
        except Exception as error:  # decoders are other people's, and so is the file
            log("file.failed", level=30, kind=type(error).__name__)
            return Rejected("failed")
        if isinstance(found, Rejected):
            return found
        data, media_type = found
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.folder / sha256
        path.write_bytes(data)
        return Part(file.role, file.part if file.part.startswith("channel") else "", path, sha256, media_type)

    def _cleaned(self, kind: str, data: bytes) -> tuple[bytes, str] | Rejected:
        """A grey image as DICOM; colour, volumes and arrays in their own format, without identity."""
        if kind == "image" and is_image(data[:132]):
            found = clean(data, Project(self.key, published=True, blocking=BLOCKING - frozenset(self.importer.meant)))
            if isinstance(found, Clean):
                return found.data, DICOM
            if found.reason != "not_greyscale":
                return found
        form, _, cleaned_ = cleaned(data)
        return cleaned_, form.media_type


def _label(item: Item, plan: Plan, importer: Importer) -> Label | None:
    """The class that the set is about, in words; None where there is none, or too many to count."""
    value = item.labels.get(importer.target) if importer.target else None
    if value is None or isinstance(value, tuple) or len(plan.labels.get(importer.target, {})) > MAX_CLASSES:
        return None
    said = plan.meanings.get(importer.target, {}).get(str(value), str(value))[:MAX_LABEL]
    return Label(said, 0)


def _facts(item: Item, names: Names) -> Facts:
    group = None if item.unit is None else names.group(item.unit)
    labels: dict[str, str | list[str]] = {}
    for name, value in sorted(item.labels.items()):
        labels[name] = [one[:MAX_LABEL] for one in value] if isinstance(value, tuple) else str(value)[:MAX_LABEL]
    return Facts(item.kind, item.split, group, labels)
