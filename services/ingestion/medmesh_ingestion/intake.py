"""An archive's files on their way into a version: labelled, cleaned one by one, and stored when nothing can be refused any more."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from medmesh.errors import Problem
from medmesh.importing import port
from medmesh.importing.cleaning import DICOM, Project, is_image
from medmesh.importing.columns import FILE as COLUMNS
from medmesh.importing.columns import Reader, described
from medmesh.importing.formats.files import together
from medmesh.importing.port import Source
from medmesh.importing.records import Names
from medmesh.importing.rows import Written
from medmesh.security.residue import wipe
from medmesh.store.objects.port import ObjectStore
from medmesh.text import Sieve
from medmesh_ingestion.cleaning import Rejected, clean, item_of
from medmesh_ingestion.domain import LABEL_FILE, Facts, FilePart, Label, Sample, agreed, find_label_file, read_labels, reasons
from medmesh_ingestion.rows import VOUCHED, Tables, rows_of, vouched

_AT_ONCE = 8
_MAX_LABEL_FILE = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Part:
    """A cleaned file of an item that has several, and what it is to it: `image`, `mask`, ...; `part` names a channel."""

    role: str
    part: str
    path: Path
    sha256: str
    media_type: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A cleaned file that waits to be stored; its bytes lie in `path`. `parts` are all files of an item that has several."""

    item: str
    path: Path
    sha256: str
    label: Label | None
    facts: Facts | None = None
    media_type: str = DICOM
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Taken:
    """What of an archive may be kept, cleaned, in files; how many were rejected for which reason; and which published set it is."""

    kept: list[Kept]
    rejected: Mapping[str, int]
    tables: tuple[Written, ...] = ()
    about: Mapping[str, Any] | None = None


def taken(kept: list[Kept], rejected: Counter[str], tables: Tables, about: Mapping[str, Any] | None = None) -> Taken:
    """Raises `Problem` (`ingestion.nothing_accepted`)."""
    rejected += tables.rejected
    written = tables.finish()
    if not kept and not written:
        raise Problem("ingestion.nothing_accepted", rejected=rejected.total(), reasons=reasons(rejected) or "empty")
    return Taken(kept, dict(rejected), written, about)


@asynccontextmanager
async def private_folder(parent: Path) -> AsyncIterator[Path]:
    """A folder for originals, gone when the block ends."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        await asyncio.shield(asyncio.to_thread(wipe, folder))


async def take_in(source: Source, folder: Path, project: Project, max_file_bytes: int) -> Taken:
    """The files that may be kept, cleaned, in `folder` under numbers, and rows of the tables that `columns.toml` names.

    Raises `Problem`: `ingestion.labels`, `importing.columns`, `ingestion.nothing_accepted`. Nothing is stored here.
    """
    names = [PurePosixPath(name) for name in source.names]
    labels_at = find_label_file(names)
    columns = described(source)
    beside = {str(labels_at), *columns, *(name for name in source.names if name.rpartition("/")[2] in (COLUMNS, VOUCHED))}
    images = [name for name in names if str(name) not in beside]
    labels: dict[PurePosixPath, Label] = {}
    if labels_at is not None:
        if source.size(str(labels_at)) > _MAX_LABEL_FILE:
            raise Problem("ingestion.labels", row=1, reason="the file is too large")
        labels = await asyncio.to_thread(read_labels, _bytes(source, str(labels_at)), labels_at.parent, set(images))
    kept: dict[str, Kept] = {}
    rejected: Counter[str] = Counter()
    large = frozenset(name for name in source.names if source.size(name) > max_file_bytes) - beside
    if large:
        rejected["too_large"] = len(large)
    every = _together(port.Part(source, (name for name in source.names if name not in large and name not in beside)), project)
    for number in count():
        one = await asyncio.to_thread(next, every, None)
        if one is None:
            break
        name, parts = one
        found = await asyncio.to_thread(_cleaned, parts, folder / f"{number:06d}", project)
        if isinstance(found, Rejected):
            rejected[found.reason] += 1
            continue
        label, before = _label(name, parts, labels), kept.get(found.item)
        if before is not None:
            # The same item again, or another one that claims to be the same: the first by name stays, nothing is overwritten.
            same = before.sha256 == found.sha256
            rejected["duplicate" if same else "uid_conflict"] += 1
            if not same:
                continue
            label, found = agreed(before.label, label), before
        kept[found.item] = replace(found, label=label, facts=_told(found.facts, label, project.key))
    tables, sieve = Tables(folder), Sieve(vouched(source))
    for name, (named, about) in columns.items():
        await tables.fill(rows_of(source, name, Reader(named, about, Names(project.key, "files"), sieve)))
    return taken(list(kept.values()), rejected, tables)


async def store(kept: Sequence[Kept], target: ObjectStore) -> list[Sample]:
    """Put the files into the store; storing one again is harmless."""
    samples: list[Sample] = []
    for start in range(0, len(kept), _AT_ONCE):
        some = kept[start : start + _AT_ONCE]
        paths = {one.sha256: one.path for one in some} | {part.sha256: part.path for one in some for part in one.parts}
        refs = {ref.sha256: ref for ref in await asyncio.gather(*(target.put_file(path, sha256) for sha256, path in paths.items()))}
        for one in some:
            made = refs[one.sha256].model_copy(update={"media_type": one.media_type})
            files = tuple(
                FilePart(part.role, part.part, refs[part.sha256].model_copy(update={"media_type": part.media_type})) for part in one.parts
            )
            samples.append(Sample(one.item, made, one.label.label if one.label else None, one.facts, files))
    return samples


def holds_images(source: Source) -> bool:
    """Whether this is an archive for this service at all, even one that is refused: it has a file of labels or columns, or an image."""
    return any(PurePosixPath(name).name.lower() in (LABEL_FILE, COLUMNS) or _starts_as_image(source, name) for name in source.names)


def _starts_as_image(source: Source, name: str) -> bool:
    with source.open(name) as file:
        return is_image(file.read(132))


def _bytes(source: Source, name: str) -> bytes:
    with source.open(name) as file:
        return file.read()


def _together(source: Source, project: Project) -> Iterator[tuple[str, dict[str, bytes] | Problem]]:
    """Each item's files: of volumes those of a DICOM series, whatever their names."""
    from medmesh.importing import series

    return series.together(source) if project.volumes else together(source)


def _label(name: str, parts: Mapping[str, bytes] | Problem, labels: Mapping[PurePosixPath, Label]) -> Label | None:
    """Of an item by its name, of a series by any of its files. Raises `Problem` (`ingestion.labels`) where two of them differ."""
    names = [name] if isinstance(parts, Problem) or name not in parts else list(parts)
    found: Label | None = None
    for one in names:
        found = agreed(found, labels.get(PurePosixPath(one)))
    return found


def _cleaned(parts: Mapping[str, bytes] | Problem, path: Path, project: Project) -> Kept | Rejected:
    """An item, cleaned; it now lies in `path`. Raises `Problem` (`importing.*`) for what spoils the whole archive."""
    if isinstance(parts, Problem):
        if parts.code.startswith("importing."):
            raise parts
        return Rejected(parts.code.partition(".")[2])
    found = clean(parts if len(parts) > 1 else next(iter(parts.values())), project)
    if isinstance(found, Rejected):
        return found
    path.write_bytes(found.data)
    group, named, _ = found.modality.partition(":")  # volume or signal, of what is no DICOM image
    facts = Facts(group, None, found.patient if found.uid else None, {}) if named else None  # DICOM says whose it is
    return Kept(item_of(found, project.key), path, hashlib.sha256(found.data).hexdigest(), None, facts, found.media_type)


def _told(facts: Facts | None, label: Label | None, key: bytes) -> Facts | None:
    """With the pseudonym of the patient where the label file says whose a volume or signal is; a DICOM object says it itself."""
    if facts is None or facts.group is not None or label is None or not label.patient:
        return facts
    return replace(facts, group=hmac.digest(key, f"group\0files\0{label.patient}".encode(), "sha256").hex()[:16])
