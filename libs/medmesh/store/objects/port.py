"""What medmesh may ask of an object store; `s3` and `directory` pass the same contract suite."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem

CHUNK = 8 * 2**20
"""No piece of an object that is held in memory is larger than this."""
PART = 256 * 1024
"""What is handed on at once: TLS makes two copies of it on its way out, which take memory that the one before has just left."""
ENCLOSED = 2 * 2**20
"""Bytes of an object that may come with the fact that names it: for more, a transfer that goes on where it was cut is worth a request."""


class ObjectStore(Protocol):
    """Immutable objects by content. Writing one that exists is a no-op; reading verifies nothing until `fetch` has all of it."""

    async def size(self, sha256: str) -> int | None:
        """How many bytes, or None when it is not there."""

    def read(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Bytes `start`..`end` in pieces of at most `CHUNK`. Raises `Problem` (`objects.missing`)."""

    async def put_file(self, path: Path, sha256: str) -> ObjectRef:
        """Store a file whose content has this digest. Raises `Problem` (`objects.digest`) and stores nothing when it has not."""

    async def put(self, data: bytes, media_type: str = "application/octet-stream") -> ObjectRef:
        """Store bytes that are small enough to hold."""

    async def delete(self, sha256: str) -> None:
        """Forget an object; also when it is not there."""

    async def ready(self) -> None:
        """Raise unless the store answers."""


class Scratch(ObjectStore, Protocol):
    """Of what is short-lived."""

    async def sweep(self, before: float, needed: Collection[str]) -> int:
        """Forget what was written before the POSIX time `before` and is not among the `needed`, with what a kill left half written;
        answers how many that were."""


class Digest:
    """SHA-256 of bytes as they come, and of each beginning of them that ends at a whole `CHUNK`: who has those can vouch for every piece of
    an upload without looking at it again."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self.size = 0
        self.marks: list[str] = []

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes."""
        view = memoryview(data)
        while view:
            part = view[: CHUNK - self.size % CHUNK]
            self._whole.update(part)
            self.size += len(part)
            if self.size % CHUNK == 0:
                self.marks.append(self._whole.hexdigest())
            view = view[len(part) :]

    def hexdigest(self) -> str:
        """Of what came so far."""
        return self._whole.hexdigest()


def file_digest(path: Path) -> tuple[str, int]:
    """(SHA-256, size) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()


async def fetch(store: ObjectStore, ref: ObjectRef | str, target: Path) -> Path:
    """Copy an object into the file `target`, going on where an earlier copy stopped. Raises `Problem` when the bytes are not its own."""
    sha256 = ref if isinstance(ref, str) else ref.sha256
    # Two that want one object at once would write into the same partial file: the second waits and finds it whole.
    async with _FETCHING.setdefault(target.absolute(), asyncio.Lock()):
        return await _fetch(store, sha256, target)


_FETCHING: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()


async def _fetch(store: ObjectStore, sha256: str, target: Path) -> Path:
    if target.exists() and (await asyncio.to_thread(file_digest, target))[0] == sha256:
        return target
    partial = target.with_name(f"{target.name}.part")
    start = partial.stat().st_size if partial.exists() else 0
    with partial.open("ab") as file:
        async for piece in store.read(sha256, start):
            await asyncio.to_thread(file.write, piece)
    found, _ = await asyncio.to_thread(file_digest, partial)
    if found != sha256:
        partial.unlink()
        raise Problem("objects.digest", expected=sha256, found=found)
    partial.replace(target)
    return target


async def load(store: ObjectStore, ref: ObjectRef, *, limit: int = 64 * 2**20) -> bytes:
    """A small object's bytes, verified. Raises `Problem`."""
    if ref.bytes > limit:
        raise Problem("objects.too_large", bytes=ref.bytes, limit=limit)
    data = b"".join([piece async for piece in store.read(ref.sha256)])
    if (found := hashlib.sha256(data).hexdigest()) != ref.sha256:
        raise Problem("objects.digest", expected=ref.sha256, found=found)
    return data
