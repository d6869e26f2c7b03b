"""Blobs in two places: a hot one that has every name that matters, and a cold one that bodies may have been moved to.

A cold place may be away: a disk that is not mounted looks like an empty folder. It therefore bears a mark, and what lacks it is away.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medmesh.errors import Problem
from medmesh.store.objects.blobs import Blobs, Source
from medmesh.store.objects.directory import DirectoryBlobs

_MARK = "00/tier"


class Cold:
    """A cold place. Every call raises `Problem` (`archive.cold_away`) while it is away."""

    def __init__(self, open_blobs: Callable[[], Blobs]) -> None:
        self._open = open_blobs
        self._blobs: Blobs | None = None

    @classmethod
    def folder(cls, path: Path) -> Cold:
        """A folder that is there: it is never made, as where a disk is not mounted it would be made beside it."""

        def opened() -> Blobs:
            if not path.is_dir():
                raise NotADirectoryError
            return DirectoryBlobs(path)

        return cls(opened)

    def mark(self) -> str | None:
        """Whose it is; None where nobody has marked it."""
        with self._there() as blobs:
            found = blobs.get(_MARK)
            return None if found is None else b"".join(found).decode("ascii", "replace")

    def claim(self, mark: str) -> None:
        """Mark it."""
        with self._there() as blobs:
            blobs.put(_MARK, io.BytesIO(mark.encode()), len(mark))

    def get(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes] | None:
        """See `Blobs`; None where it is there and the name is not."""
        with self._there() as blobs:
            found = blobs.get(name, start, end)
        if found is None and self.mark() is None:
            raise Problem("archive.cold_away", reason="its mark is missing")
        return None if found is None else self._pieces(found)

    def put(self, name: str, source: Source, length: int) -> None:
        """See `Blobs`."""
        with self._there() as blobs:
            blobs.put(name, source, length)

    def delete(self, name: str) -> None:
        """See `Blobs`."""
        if self.mark() is None:
            raise Problem("archive.cold_away", reason="its mark is missing")
        with self._there() as blobs:
            blobs.delete(name)

    def _pieces(self, found: Iterator[bytes]) -> Iterator[bytes]:
        with self._there():
            yield from found

    @contextmanager
    def _there(self) -> Iterator[Blobs]:
        try:
            self._blobs = self._blobs or self._open()
            yield self._blobs
        except Problem:
            raise
        except Exception as error:  # of a disk, of a network, of an S3 service: whatever it is, it is not the object's
            raise Problem("archive.cold_away", reason=type(error).__name__) from None


class TieredBlobs:
    """See `Blobs`: what is not in the hot place is looked for in the cold one, and `wished` hears its name; all else is the hot place's."""

    def __init__(self, hot: Blobs, cold: Callable[[], Cold], wished: Callable[[str], None]) -> None:
        self._hot = hot
        self._cold = cold
        self._wished = wished
        self.put, self.delete, self.names, self.ready, self.close = hot.put, hot.delete, hot.names, hot.ready, hot.close

    def get(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes] | None:
        """See `Blobs`. Raises `Problem` (`archive.cold_away`)."""
        found = self._hot.get(name, start, end)
        if found is not None or name.endswith(".key"):
            return found
        found = self._cold().get(name, start, end)
        if found is not None:
            self._wished(name)
        return found
