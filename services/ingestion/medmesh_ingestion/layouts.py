"""An archive in a published layout on its way into a version: images, volumes and masks, with split, group and labels as published.

The layout's importer reads the archive where it lies. A grey image is cleaned like one that somebody sent by itself; what is none, by
its format. The patient or group becomes a pseudonym, and the item is named after its place in the layout, so that no image of the set
gets lost as another's copy.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import zipfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from medmesh.errors import Problem
from medmesh.importing import registry
from medmesh.importing.cleaning import DICOM, Clean, Project
from medmesh.importing.formats import cleaned
from medmesh.importing.port import File, Importer, Item, Plan, Source
from medmesh.importing.sources import Limits, opened
from medmesh.quality.rules import BLOCKING
from medmesh.telemetry import log
from medmesh_ingestion.cleaning import Rejected, clean
from medmesh_ingestion.domain import MAX_CLASSES, MAX_LABEL, Facts, Label, reasons
from medmesh_ingestion.intake import Kept, Part

TAKEN = ("image", "volume", "mask")
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


async def take_in_layout(
    archive: Path, importer: Importer, folder: Path, key: bytes, limits: Limits, largest: int
) -> tuple[list[Kept], dict[str, int], dict[str, Any]]:
    """The items that may be kept, cleaned, in `folder`; how many were rejected for which reason; and what the set is.

    `largest` bounds the bytes of one file. Raises `Problem`: `ingestion.layout` for a set with errors (by code: names of files stay out
    of it), `ingestion.nothing_accepted`.
    """
    with opened(archive, limits) as source, Pieces(source) as pieces:
        plan = await asyncio.to_thread(importer.plan, source)
        if plan.errors:
            codes = Counter(finding.code.partition(".")[2] for finding in plan.findings if finding.severity == "error")
            raise Problem("ingestion.layout", layout=importer.name, errors=plan.errors, reasons=reasons(codes))
        desk = _Desk(importer, plan, pieces, folder, key, largest)
        kept: list[Kept] = []
        rejected: Counter[str] = Counter()
        items = importer.items(source)
        while (item := await asyncio.to_thread(next, items, None)) is not None:
            one = await asyncio.to_thread(desk.take, item)
            if isinstance(one, Rejected):
                rejected[one.reason] += 1
            else:
                kept.append(one)
    if not kept:
        raise Problem("ingestion.nothing_accepted", rejected=rejected.total(), reasons=reasons(rejected) or "empty")
    about = {"layout": importer.name, "title": plan.title, "licence": plan.licence[:MAX_LICENCE], "manifest": plan.manifest}
    return kept, dict(rejected), about


@dataclass(frozen=True, slots=True)
class _Desk:
    """Where one item after the other is cleaned."""

    importer: Importer
    plan: Plan
    pieces: Pieces
    folder: Path
    key: bytes
    largest: int

    def take(self, item: Item) -> Kept | Rejected:
        """The item with its files cleaned, in the folder under their hashes."""
        if item.kind not in TAKEN:
            return Rejected(f"kind_{item.kind}")
        if not item.files or (item.missing and item.kind == "image"):
            return Rejected("pending")
        made: list[Part] = []
        for file in item.files:
            if self.pieces.size(file) > self.largest:
                return Rejected("too_large")
            try:
                found = self._cleaned(item.kind, self.pieces.read(file))
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
            made.append(Part(file.role, file.part if file.part.startswith("channel") else "", path, sha256, media_type))
        first = next((part for part in made if part.role == "image"), made[0])
        name = hmac.digest(self.key, f"item\0{self.importer.name}\0{item.key}".encode(), "sha256").hex()[:16]
        label, facts = _label(item, self.plan, self.importer), _facts(item, self.importer, self.key)
        return Kept(name, first.path, first.sha256, label, facts, first.media_type, tuple(made) if len(made) > 1 else ())

    def _cleaned(self, kind: str, data: bytes) -> tuple[bytes, str] | Rejected:
        """A grey image as DICOM; colour, volumes and arrays in their own format, without identity."""
        if kind == "image":
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


def _facts(item: Item, importer: Importer, key: bytes) -> Facts:
    unit = item.unit
    group = None if unit is None else hmac.digest(key, f"group\0{importer.name}\0{unit}".encode(), "sha256").hex()[:16]
    labels: dict[str, str | list[str]] = {}
    for name, value in sorted(item.labels.items()):
        labels[name] = [one[:MAX_LABEL] for one in value] if isinstance(value, tuple) else str(value)[:MAX_LABEL]
    return Facts(item.kind, item.split, group, labels)


class Pieces:
    """The bytes of an item's files: a file, a member of a zip, or a row of an array, which is read forward."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._stack = ExitStack()
        self._at: tuple[str, str, int] | None = None
        self._member: BinaryIO | None = None
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def size(self, file: File) -> int:
        """Bytes of a whole file; of a row none: it is small."""
        return 0 if "[" in file.part else self._source.size(file.name)

    def read(self, file: File) -> bytes:
        """A row of two dimensions, or of three with colours, as PNG; one of three as .npy; anything else as it is."""
        if "[" not in file.part:
            with self._source.open(file.name) as opened_:
                return opened_.read()
        key, _, row = file.part.rstrip("]").partition("[")
        pixels = self._row(file.name, key, int(row))
        buffer = io.BytesIO()
        if pixels.ndim == 2 or pixels.shape[2] == 3:
            Image.fromarray(pixels).save(buffer, "PNG")
        else:
            np.save(buffer, pixels)
        return buffer.getvalue()

    def _row(self, name: str, key: str, row: int) -> NDArray[np.uint8]:
        if self._at is None or self._at[:2] != (name, key) or self._at[2] > row:
            self._open(name, key)
            self._at = (name, key, 0)
        assert self._member is not None
        size = int(np.prod(self._shape[1:]))
        while self._at[2] < row:
            self._member.read(size)
            self._at = (name, key, self._at[2] + 1)
        data = self._member.read(size)
        self._at = (name, key, row + 1)
        return np.frombuffer(data, np.uint8).reshape(self._shape[1:])

    def _open(self, name: str, key: str) -> None:
        self._stack.close()
        archive = self._stack.enter_context(zipfile.ZipFile(self._stack.enter_context(self._source.open(name))))
        self._member = self._stack.enter_context(archive.open(f"{key}.npy"))  # type: ignore[assignment]
        version = npy.read_magic(self._member)  # type: ignore[no-untyped-call]
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        self._shape, fortran, _ = read(self._member)  # type: ignore[no-untyped-call]
        if fortran:
            raise Problem("imaging.unreadable", reason="columns first")
