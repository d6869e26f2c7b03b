"""An archive in a published layout on its way into a version: its images, with split, group and labels as they were published.

The layout's importer reads the archive where it lies. Each image is cleaned like one that somebody sent by itself; its patient or group
becomes a pseudonym, and its item is named after its place in the layout, so that no image of the set gets lost as another's copy.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from medmesh.errors import Problem
from medmesh.importing import registry
from medmesh.importing.port import Importer, Item, Plan, Source
from medmesh.importing.sources import Limits as SourceLimits
from medmesh.importing.sources import opened
from medmesh_ingestion.archive import Limits
from medmesh_ingestion.cleaning import Rejected, clean
from medmesh_ingestion.domain import MAX_CLASSES, MAX_LABEL, Facts, Label, reasons
from medmesh_ingestion.intake import Kept

PUBLISHED = 0.9
"""Scores from here on are of published layouts, not of file formats."""


def layout_of(archive: Path, limits: Limits) -> Importer | None:
    """The importer of a published layout; None for anything else, also for what the ordinary door refuses in its own words."""
    try:
        with opened(archive, _limits(limits)) as source:
            found = registry.recognised(source)
            return found if found.sniff(source) >= PUBLISHED else None
    except Problem:
        return None


async def take_in_layout(
    archive: Path, importer: Importer, folder: Path, key: bytes, limits: Limits
) -> tuple[list[Kept], dict[str, int], dict[str, Any]]:
    """The images that may be kept, cleaned, in `folder`; how many items were rejected for which reason; and what the set is.

    Raises `Problem`: `ingestion.layout` for a set with errors (by code: names of files stay out of it), `ingestion.nothing_accepted`.
    """
    with opened(archive, _limits(limits)) as source, ExitStack() as stack:
        plan = await asyncio.to_thread(importer.plan, source)
        if plan.errors:
            codes = Counter(finding.code.removeprefix("importing.") for finding in plan.findings if finding.severity == "error")
            raise Problem("ingestion.layout", layout=importer.name, errors=plan.errors, reasons=reasons(codes))
        pictures = stack.enter_context(_Pictures(source))
        kept: list[Kept] = []
        rejected: Counter[str] = Counter()
        items = importer.items(source)
        while (one := await asyncio.to_thread(_next, items, pictures, plan, importer, folder, key)) is not None:
            if isinstance(one, Rejected):
                rejected[one.reason] += 1
            else:
                kept.append(one)
    if not kept:
        raise Problem("ingestion.nothing_accepted", rejected=rejected.total(), reasons=reasons(rejected) or "empty")
    about = {"layout": importer.name, "title": plan.title, "licence": plan.licence, "manifest": plan.manifest}
    return kept, dict(rejected), about


def _next(items: Iterator[Item], pictures: _Pictures, plan: Plan, importer: Importer, folder: Path, key: bytes) -> Kept | Rejected | None:
    """The next item, cleaned; None at the end."""
    item = next(items, None)
    if item is None:
        return None
    if item.kind != "image":
        return Rejected(f"kind_{item.kind}")
    if item.missing:
        return Rejected("pending")
    found = clean(pictures.read(item), key, frozenset(importer.meant))
    if isinstance(found, Rejected):
        return found
    sha256 = hashlib.sha256(found.data).hexdigest()
    path = folder / sha256
    path.write_bytes(found.data)
    name = hmac.digest(key, f"item\0{importer.name}\0{item.key}".encode(), "sha256").hex()[:16]
    return Kept(name, path, sha256, _label(item, plan, importer), _facts(item, importer, key))


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
    labels = {name: list(value) if isinstance(value, tuple) else str(value) for name, value in sorted(item.labels.items())}
    return Facts(item.kind, item.split, group, labels)


class _Pictures:
    """The bytes of an item's image, as a file or as a row of an array, which is read forward."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._stack = ExitStack()
        self._at: tuple[str, str, int] | None = None
        self._member: BinaryIO | None = None
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> _Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, item: Item) -> bytes:
        """PNG, JPEG or DICOM bytes."""
        (file,) = (file for file in item.files if file.role == "image")
        if not file.part:
            with self._source.open(file.name) as opened_:
                return opened_.read()
        key, _, row = file.part.rstrip("]").partition("[")
        buffer = io.BytesIO()
        Image.frombytes(*self._row(file.name, key, int(row))).save(buffer, "PNG")
        return buffer.getvalue()

    def _row(self, name: str, key: str, row: int) -> tuple[str, tuple[int, int], bytes]:
        if self._at is None or self._at[:2] != (name, key) or self._at[2] > row:
            self._open(name, key)
            self._at = (name, key, 0)
        assert self._member is not None
        height, width, *channels = self._shape[1:]
        size = height * width * (channels[0] if channels else 1)
        while self._at[2] < row:
            self._member.read(size)
            self._at = (name, key, self._at[2] + 1)
        data = self._member.read(size)
        self._at = (name, key, row + 1)
        return "RGB" if channels else "L", (width, height), data

    def _open(self, name: str, key: str) -> None:
        from numpy.lib import format as npy

        self._stack.close()
        archive = self._stack.enter_context(zipfile.ZipFile(self._stack.enter_context(self._source.open(name))))
        self._member = self._stack.enter_context(archive.open(f"{key}.npy"))  # type: ignore[assignment]
        version = npy.read_magic(self._member)  # type: ignore[no-untyped-call]
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        self._shape, fortran, _ = read(self._member)  # type: ignore[no-untyped-call]
        if fortran:
            raise Problem("imaging.unreadable", reason="columns first")


def _limits(limits: Limits) -> SourceLimits:
    return SourceLimits(files=limits.files, bytes=limits.bytes, ratio=limits.ratio)
