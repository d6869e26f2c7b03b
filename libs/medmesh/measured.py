"""Files of programs as they lie on the disk: the standard library alone, for interpreters that have nothing else."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path


def digest(path: Path) -> str:
    """SHA-256, hexadecimal; empty of a file that is gone, or that nobody may read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def mapped(part: str) -> set[str]:
    """The files with `part` in their path that this process has mapped into its memory."""
    with suppress(OSError):
        return {line.split(maxsplit=5)[5].strip() for line in Path("/proc/self/maps").read_text().splitlines() if part in line}
    return set()
