"""How an item that is no DICOM object is kept: its cleaned files in one ZIP (stored, nothing compressed), with its name and format.

The name stands in it because objects are named by their content: two patients with equal files share none, and each is opened with the
patient's own key. Files are called 0, 1, ...: their own names are patients', often.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

from medmesh.canonical import canonical, parse
from medmesh.errors import Problem

MEDIA_TYPE = "application/zip"
_FIRST = "item.json"
_START = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class Stored:
    """`files` in their order, the one that describes the others first, under the names by which they know each other."""

    item: str
    format: str
    files: Mapping[str, bytes]


def is_stored(raw: bytes) -> bool:
    """Whether an object is one of these."""
    return raw.startswith(_START) and raw[30 : 30 + len(_FIRST)] == _FIRST.encode()


def pack(stored: Stored) -> bytes:
    """Equal content gives equal bytes."""
    made = io.BytesIO()
    about = {"item": stored.item, "format": stored.format, "files": list(stored.files)}
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, data in ((_FIRST, canonical(about)), *((str(n), one) for n, one in enumerate(stored.files.values()))):
            archive.writestr(zipfile.ZipInfo(name), data)
    return made.getvalue()


def unpack(raw: bytes) -> Stored:
    """What `pack` wrote. Raises `Problem` (`formats.damaged`)."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            about = parse(archive.read(_FIRST))
            files = {str(name): archive.read(str(place)) for place, name in enumerate(about["files"])}
            return Stored(str(about["item"]), str(about["format"]), files)
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, json.JSONDecodeError, NotImplementedError, RuntimeError):
        raise Problem("formats.damaged", place="a stored item", where="the archive", reason="it is not as it was written") from None
