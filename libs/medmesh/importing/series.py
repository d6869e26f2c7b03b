"""DICOM files as series: those of one volume together, whatever their names; everything else as it lies."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pydicom

from medmesh.errors import Problem
from medmesh.importing.formats import files
from medmesh.importing.port import Source, Without


def together(source: Source) -> Iterator[tuple[str, dict[str, bytes] | Problem]]:
    """As `formats.files.together`, with the files of one DICOM series as one item under the name of its first file."""
    found: dict[str, list[str]] = {}
    for name in source.names:
        if uid := _series(source, name):
            found.setdefault(uid, []).append(name)
    volumes = [names for names in found.values() if len(names) > 1]
    for names in volumes:
        try:
            parts = {}
            for name in names:
                with source.open(name) as file:
                    parts[name] = file.read()
            yield names[0], parts
        except OSError:
            yield names[0], Problem("intake.unreadable")
        except Problem as problem:
            yield names[0], problem
    yield from files.together(Without(source, frozenset(name for names in volumes for name in names)))


def _series(source: Source, name: str) -> str:
    """The UID of the series that a file belongs to; empty where it is no DICOM file."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        with source.open(name) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
            return str(header.get("SeriesInstanceUID") or "")
    except Exception:  # pydicom has many errors for what is no DICOM file: who reads it says which
        return ""
