"""Named bytes, whatever they mean: what lies below a store that encrypts. `s3` and `directory` have one each; all calls block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Source(Protocol):
    """Something to read from, in pieces: a file, or what encrypts one while it is read."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; none at the end."""


class Blob(NamedTuple):
    """A name, how many bytes are there, and when they were put (POSIX time)."""

    name: str
    bytes: int
    modified: float


class Blobs(Protocol):
    """Names are of letters, digits, dots and slashes. A put is whole or has not been; the last one counts."""

    def get(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes] | None:
        """Bytes `start`..`end` in pieces, fewer when there are fewer; None when the name is unknown."""

    def put(self, name: str, source: Source, length: int) -> None:
        """Store `length` bytes under a name, replacing what it was."""

    def delete(self, name: str) -> None:
        """Forget a name, also one that is unknown."""

    def names(self, prefix: str = "") -> Iterator[Blob]:
        """Every name that begins so, in no order."""

    def ready(self) -> None:
        """Raise unless it answers."""

    def close(self) -> None:
        """Give up connections."""
