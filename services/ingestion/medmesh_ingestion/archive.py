"""The door for archives that somebody else made. `medmesh.importing.sources` reads them where they lie; this door adds the words in
which it refuses, which repeat no name (it may be a patient's), and two things that it does not let in.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from posixpath import basename

from medmesh.errors import Problem
from medmesh.importing.formats.content import START
from medmesh.importing.formats.nifti import NIFTI
from medmesh.importing.port import Source
from medmesh.importing.sources import Limits, opened

_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\x28\xb5\x2f\xfd")


@contextmanager
def opened_archive(archive: Path, limits: Limits) -> Iterator[Source]:
    """The files of a zip, tar or tar.gz, everything about them checked but the bytes, which are when they are read within the block.

    Raises `Problem`, also for what is found within it: `ingestion.archive_unreadable`, `ingestion.archive_too_large`,
    `ingestion.archive_unsafe` for an entry that leads out, is a link, is an archive again or belongs to a training package, `objects.full`.
    """
    try:
        with opened(archive, limits, archive_only=True) as source:
            for number, name in enumerate(source.names, start=1):
                _let_in(source, number, name)
            yield source
    except Problem as problem:
        raise _said(problem) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Problem("objects.full") from None
        raise


def _let_in(source: Source, number: int, name: str) -> None:
    # A package that somebody trains with is no data: the archive is erased once its images are taken in.
    if basename(name) == "medmesh.toml":
        raise Problem("ingestion.archive_unsafe", entry=number, reason="belongs to a training package")
    with source.open(name) as file:
        start = file.read(START)
    # Known by its first bytes; the preamble of a DICOM file may hold anything and is not kept.
    if start[128:132] != b"DICM" and not NIFTI.matches(start) and (start.startswith(_MAGIC) or start[257:262] == b"ustar"):
        raise Problem("ingestion.archive_unsafe", entry=number, reason="is an archive itself")


def _said(problem: Problem) -> Problem:
    """The same in the words of this door, without a name."""
    match problem.code:
        case "importing.unreadable":
            return Problem("ingestion.archive_unreadable", reason=problem.params["reason"])
        case "importing.unsafe":
            return Problem("ingestion.archive_unsafe", entry=problem.params["entry"], reason=problem.params["reason"])
        case "importing.too_large":
            return Problem("ingestion.archive_too_large", what=problem.params["what"], limit=problem.params["limit"])
    return problem
