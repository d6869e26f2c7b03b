"""Named bytes in this process's memory, for simulations: see `blobs`."""

from __future__ import annotations

import time
from collections.abc import Iterator

from medmesh.store.objects.blobs import Blob, Source
from medmesh.store.objects.port import CHUNK


class MemoryBlobs:
    """See `medmesh.store.objects.blobs.Blobs`."""

    def __init__(self) -> None:
        self._blobs: dict[str, tuple[bytes, float]] = {}

    def get(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes] | None:
        found = self._blobs.get(name)
        return None if found is None else _pieces(found[0][start:end])

    def put(self, name: str, source: Source, length: int) -> None:
        self._blobs[name] = (b"".join(iter(lambda: source.read(CHUNK), b"")), time.time())

    def delete(self, name: str) -> None:
        self._blobs.pop(name, None)

    def names(self, prefix: str = "") -> Iterator[Blob]:
        return (Blob(name, len(data), at) for name, (data, at) in list(self._blobs.items()) if name.startswith(prefix))

    def ready(self) -> None:
        """It is."""

    def close(self) -> None:
        """Nothing is held."""


def _pieces(data: bytes) -> Iterator[bytes]:
    return (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))
