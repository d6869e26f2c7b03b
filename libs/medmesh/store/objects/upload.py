"""Resumable uploads: pieces of at most 8 MiB, each verified in memory before it touches the disk, appended at known offsets.

A piece is verified by its own SHA-256, or by that of everything up to its end: then it is hashed once, as the whole is (decision 0131).
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem
from medmesh.security.residue import wipe
from medmesh.store.objects.directory import DirectoryStore
from medmesh.store.objects.port import CHUNK, ObjectStore
from medmesh.tasks import aside

_MOST_GROWING = 1024
_LOOK = 1 << 20
_VECTORS = 1024
"""More parts are not written with one call (IOV_MAX)."""


class Uploads:
    """Unfinished uploads in a private folder, one file an object and owner. `limit` is the largest object, in bytes."""

    def __init__(self, folder: Path, *, limit: int, reserve: int = 256 * 2**20) -> None:
        self._folder = folder
        self._limit = limit
        self._reserve = reserve
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._growing: OrderedDict[Path, tuple[int, Any]] = OrderedDict()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _path(self, owner: str, sha256: str) -> Path:
        return self._folder / f"{hashlib.sha256(owner.encode()).hexdigest()[:16]}-{sha256}"

    async def offset(self, owner: str, sha256: str) -> int:
        """How many bytes have arrived: where to go on."""
        path = self._path(owner, sha256)
        return path.stat().st_size if path.exists() else 0

    async def append(
        self, owner: str, sha256: str, offset: int, total: int, piece: Sequence[bytes], said: str, *, upto: bool = False
    ) -> int:
        """Write a piece, in parts as they came, at `offset`; answers the new offset. Sending a piece again is harmless. `said` is the
        piece's SHA-256; with `upto`, that of everything up to its end; empty when it came from a store of ours.

        Raises `Problem`: `objects.too_large`, `objects.piece`, `objects.digest` (the piece arrived altered; with `upto`, it or what lies
        here, and the upload begins anew), `objects.offset` (a piece is missing before this one), `objects.full`.
        """
        length = sum(map(len, piece))
        if total > self._limit:
            raise Problem("objects.too_large", bytes=total, limit=self._limit)
        if not length or length > CHUNK or offset + length > total:
            raise Problem("objects.piece", bytes=length, limit=CHUNK)
        if said and not upto:
            found = (await aside(length, partial(_digest, hashlib.sha256(), piece))).hexdigest()
            if found != said:
                raise Problem("objects.digest", expected=said, found=found)
        path = self._path(owner, sha256)
        async with self._locks[sha256]:
            have = await self.offset(owner, sha256)
            if offset > have:
                raise Problem("objects.offset", expected=have, found=offset)
            if offset + length <= have:
                return have
            self._room(length)
            await aside(length, partial(self._take, path, offset, piece, said if upto else ""))
            return offset + length

    def _room(self, length: int) -> None:
        if shutil.disk_usage(self._folder).free < self._reserve + length:
            raise Problem("objects.full")

    def _take(self, path: Path, offset: int, piece: Sequence[bytes], upto: str) -> None:
        """Digest an upload while it grows. One that does not grow at its end, or that another process began, is read for that again: at
        once where its beginning is needed, else when it is whole."""
        known, before = self._growing.pop(path, None) if offset else (0, hashlib.sha256()), None
        if known is not None and known[0] == offset:
            before = known[1]
        elif upto:
            before = _beginning(path, offset)
        grown = _digest(before.copy(), piece) if before is not None else None
        if upto and grown is not None and (found := grown.hexdigest()) != upto:
            wipe(path)  # whether the piece or what lies here is wrong cannot be told
            raise Problem("objects.digest", expected=upto, found=found)
        self._write(path, offset, piece)
        if grown is not None:
            self._growing[path] = (offset + sum(map(len, piece)), grown)
        while len(self._growing) > _MOST_GROWING:
            self._growing.popitem(last=False)

    def _write(self, path: Path, offset: int, piece: Sequence[bytes]) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            place, left = offset, [memoryview(part) for part in piece if part]
            while left:  # the last piece that fits on a disk is written in part
                written = os.pwritev(descriptor, left[:_VECTORS], place)
                place += written
                while left and written >= len(left[0]):
                    written -= len(left.pop(0))
                if written:
                    left[0] = left[0][written:]
        except OSError as error:
            os.ftruncate(descriptor, offset)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Problem("objects.full") from None
            raise
        finally:
            os.close(descriptor)

    async def whole(self, ref: ObjectRef, parts: Sequence[bytes | memoryview], store: ObjectStore) -> None:
        """Take an object of at most one piece that came at once into `store`. Raises `Problem` as `append` does."""
        length = sum(map(len, parts))
        if length > self._limit:
            raise Problem("objects.too_large", bytes=length, limit=self._limit)
        if length != ref.bytes or not 0 < length <= CHUNK:
            raise Problem("objects.piece", bytes=length, limit=CHUNK)
        found = (await aside(length, partial(_digest, hashlib.sha256(), parts))).hexdigest()
        if found != ref.sha256:
            raise Problem("objects.digest", expected=ref.sha256, found=found)
        self._room(length)
        if isinstance(store, DirectoryStore):
            await aside(length, partial(store.keep, parts, ref.sha256))
        else:
            await store.put(b"".join(parts))

    async def finish(self, owner: str, sha256: str, store: ObjectStore) -> ObjectRef:
        """Move a complete upload into `store`. Raises `Problem` (`objects.digest`), and begins anew, when the whole is not its name."""
        path = self._path(owner, sha256)
        async with self._locks[sha256]:
            if not path.exists():
                size = await store.size(sha256)
                if size is None:
                    raise Problem("objects.offset", expected=0, found=0)
                return ObjectRef(sha256=sha256, bytes=size)
            try:
                ref = await self._store(path, sha256, store)
            except Problem as problem:
                if problem.code == "objects.digest":
                    await asyncio.to_thread(wipe, path)
                raise
        self._locks.pop(sha256, None)
        return ref

    async def _store(self, path: Path, sha256: str, store: ObjectStore) -> ObjectRef:
        size, whole = self._growing.pop(path, (0, None))
        if isinstance(store, DirectoryStore) and whole is not None and size == path.stat().st_size:
            if (found := whole.hexdigest()) != sha256:
                raise Problem("objects.digest", expected=sha256, found=found)
            return await aside(size, partial(store.adopt, path, sha256, size))
        ref = await store.put_file(path, sha256)
        await asyncio.to_thread(wipe, path)
        return ref

    async def prune(self, older_than: float) -> int:
        """Forget uploads nobody went on with since the POSIX time `older_than`; answers how many."""
        stale = [path for path in self._folder.iterdir() if path.stat().st_mtime < older_than]
        for path in stale:
            await asyncio.to_thread(wipe, path)
        return len(stale)


def _digest(running: Any, piece: Sequence[bytes | memoryview]) -> Any:
    for part in piece:
        running.update(part)
    return running


def _beginning(path: Path, length: int) -> Any:
    """The running SHA-256 of a file's first bytes."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while length and (part := file.read(min(_LOOK, length))):
            found.update(part)
            length -= len(part)
    return found
