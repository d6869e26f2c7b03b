"""DICOM files as series: those of one as one volume, or one after the other, whatever their names; everything else as it lies."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import pydicom

from medmesh.errors import Problem
from medmesh.importing.formats import files
from medmesh.importing.formats.content import bounded
from medmesh.importing.port import Part, Source


def together(source: Source) -> Iterator[tuple[str, dict[str, bytes] | Problem]]:
    """As `formats.files.together`, with the files of one DICOM series as one item under the name of its first file. A series is in memory
    as a whole: one that is too large for it is a `Problem`."""
    found = _of_several(source)
    for names in found.values():
        try:
            bounded(sum(source.size(name) for name in names), "the series")
            parts = {}
            for name in names:
                with source.open(name) as file:
                    parts[name] = file.read()
            yield names[0], parts
        except OSError:
            yield names[0], Problem("intake.unreadable")
        except Problem as problem:
            yield names[0], problem
    yield from files.together(_others(source, found))


def apart(source: Source) -> Iterator[tuple[str, str, dict[str, bytes] | Problem]]:
    """As `formats.files.together`, with the UID of the series before each: the files of a DICOM series one after the other. Empty for
    everything else, and where a series is one file."""
    found = _of_several(source)
    for uid, names in found.items():
        yield from ((uid, *one) for one in files.together(Part(source, names)))
    yield from (("", *one) for one in files.together(_others(source, found)))


def _of_several(source: Source) -> dict[str, list[str]]:
    """The names of files by the series that they belong to together."""
    found: dict[str, list[str]] = {}
    for name in source.names:
        if uid := _series(source, name):
            found.setdefault(uid, []).append(name)
    return {uid: names for uid, names in found.items() if len(names) > 1}


def _others(source: Source, found: Mapping[str, Sequence[str]]) -> Part:
    within = {name for names in found.values() for name in names}
    return Part(source, (name for name in source.names if name not in within))


def _series(source: Source, name: str) -> str:
    """The UID of the series that a file belongs to; empty where it is no DICOM file, or has several frames and is whole by itself."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        with source.open(name) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SeriesInstanceUID", "NumberOfFrames"])
            alone = int(header.get("NumberOfFrames") or 1) > 1
            return "" if alone else str(header.get("SeriesInstanceUID") or "")
    except Exception:  # pydicom has many errors for what is no DICOM file: who reads it says which
        return ""
