"""Every reader, and which of them a source is for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from medmesh.errors import Problem
from medmesh.importing.port import Source
from medmesh.timeline import dicom, fhir, hl7, mimic, omop
from medmesh.timeline.events import Draft, Merge
from medmesh.timeline.reading import Reader, Reading

READERS: dict[str, Reader] = {one.NAME: cast(Reader, one) for one in (fhir, hl7, omop, mimic, dicom)}
SURE = 0.5


def named(name: str) -> Reader:
    """Raises `Problem` (`timeline.no_reader`)."""
    if name not in READERS:
        raise Problem("timeline.no_reader", name=name, known=", ".join(sorted(READERS)))
    return READERS[name]


def recognised(source: Source) -> Reader:
    """The reader that is surest. Raises `Problem` (`timeline.unrecognised`)."""
    score, name = max((one.sniff(source), name) for name, one in READERS.items())
    if score < SURE:
        raise Problem("timeline.unrecognised", place=source.name)
    return READERS[name]


def read(source: Source, reading: Reading, name: str | None = None) -> Iterator[Draft | Merge]:
    """Everything in a source, by the reader of that name or the one that recognises it. Raises `Problem`."""
    return (named(name) if name else recognised(source)).read(source, reading)
