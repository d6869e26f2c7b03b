"""A source as one zip whose bytes depend on nothing but its files: the same data is the same archive, on every machine."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Mapping
from typing import BinaryIO

from medmesh.importing.port import Source

_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
PIECE = 1 << 20


def pack(
    source: Source, target: BinaryIO, tick: Callable[[int], None] = lambda done: None, beside: Mapping[str, bytes] | None = None
) -> None:
    """Write every file of the source, in the order of their names, uncompressed; then what belongs `beside` them, in place of files of the
    same name at the top. `tick` is told the bytes done."""
    done, beside = 0, dict(beside or {})
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in source.names:
            if name in beside:
                continue
            with source.open(name) as file, archive.open(_info(name), "w", force_zip64=True) as member:
                shutil.copyfileobj(file, member, PIECE)
            done += source.size(name)
            tick(done)
        for name, data in sorted(beside.items()):
            archive.writestr(_info(name), data)


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _FIRST_DAY)
    info.external_attr = 0o600 << 16
    info.create_system = 3
    return info
