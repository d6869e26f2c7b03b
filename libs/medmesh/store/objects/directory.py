"""Bytes in a folder: plain objects for the scratch spool of services on one machine, and named ones below a store that encrypts."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import math
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem
from medmesh.store.objects.blobs import Blob, Source
from medmesh.store.objects.port import PART, file_digest

_AT_ONCE: int = getattr(os, "RWF_NOWAIT", 0)
PLACES = 1024
"""Objects whose path is remembered: it is asked for several times while one comes and goes, and to spell it takes longer than to look."""
_HEXADECIMAL = frozenset("0123456789abcdef")
_PIECE = 1 << 20
"""What is read and written of a file at once: small enough that the C library keeps the memory for the next."""


class DirectoryStore:
    """See `medmesh.store.objects.port.ObjectStore`. `durable` waits for the disk before an object counts as stored."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self.folder = folder
        self._durable = durable
        self.path = lru_cache(maxsize=PLACES)(self._path)
        """Where an object lies. Raises `Problem` for what is no name of one."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _path(self, sha256: str) -> Path:
        if len(sha256) != 64 or not _HEXADECIMAL.issuperset(sha256):
            raise Problem("objects.missing", sha256=sha256[:64])
        return self.folder.joinpath(sha256[:2], sha256)

    async def size(self, sha256: str) -> int | None:
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    async def read(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        try:
            file = self.path(sha256).open("rb")
        except FileNotFoundError:
            raise Problem("objects.missing", sha256=sha256) from None
        with file:
            place, end = start, (1 << 62) if end is None else end
            while place < end and (piece := await _part(file.fileno(), place, min(PART, end - place))):
                place += len(piece)
                yield piece

    async def put_file(self, path: Path, sha256: str) -> ObjectRef:
        return await asyncio.to_thread(self._take, path, sha256)

    def keep(self, parts: Sequence[bytes | memoryview], sha256: str) -> None:
        """Bytes that were digested a moment ago. Blocks."""
        target = self.path(sha256)
        if target.exists():
            return
        temporary = self._temporary(target)
        try:
            with temporary.open("xb", buffering=0) as file:
                for part in parts:
                    while part:
                        part = part[file.write(part) :]
            self._settle(temporary, target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _full(error) from None

    async def take_over(self, path: Path) -> ObjectRef:
        """Take over a file of ours that nobody writes to any more: it is digested while the disk takes it."""
        try:
            (sha256, size), _ = await asyncio.gather(asyncio.to_thread(file_digest, path), asyncio.to_thread(self._flush, path))
        except OSError as error:
            raise _full(error) from None
        return await asyncio.to_thread(self.adopt, path, sha256, size)

    def adopt(self, path: Path, sha256: str, size: int) -> ObjectRef:
        """Take over a file of ours, digested while we wrote it: moved where it lies on the same disk, else copied. Blocks."""
        target = self.path(sha256)
        if target.exists():
            path.unlink()
            return ObjectRef(sha256=sha256, bytes=size)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            self._settle(path, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise _full(error) from None
            self._take(path, sha256)
            path.unlink()
        return ObjectRef(sha256=sha256, bytes=size)

    def _take(self, source: Path, sha256: str) -> ObjectRef:
        target = self.path(sha256)
        if target.exists():  # somebody may delete it meanwhile: nothing more is asked of it
            found, size = file_digest(source)
            if found == sha256:
                return ObjectRef(sha256=sha256, bytes=size)
        temporary = self._temporary(target)
        try:
            # A copy, and the copy is what is hashed: whoever owns the source may still be writing to it.
            shutil.copyfile(source, temporary)
            found, size = file_digest(temporary)
            if found != sha256:
                raise Problem("objects.digest", expected=sha256, found=found)
            self._settle(temporary, target)
        except OSError as error:
            raise _full(error) from None
        finally:
            temporary.unlink(missing_ok=True)
        return ObjectRef(sha256=sha256, bytes=size)

    async def put(self, data: bytes, media_type: str = "application/octet-stream") -> ObjectRef:
        sha256 = hashlib.sha256(data).hexdigest()
        await asyncio.to_thread(self.keep, [data], sha256)
        return ObjectRef(sha256=sha256, bytes=len(data), media_type=media_type)

    def _temporary(self, target: Path) -> Path:
        target.parent.mkdir(mode=0o700, exist_ok=True)
        return target.with_name(f".{target.name}.{secrets.token_hex(4)}")

    def _settle(self, temporary: Path, target: Path) -> None:
        self._flush(temporary)
        os.replace(temporary, target)

    def _flush(self, path: Path) -> None:
        if self._durable:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    async def delete(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)

    async def sweep(self, before: float, needed: Collection[str]) -> int:
        return await asyncio.to_thread(self._sweep, before, needed)

    def _sweep(self, before: float, needed: Collection[str]) -> int:
        stale = [path for path in self.folder.glob("??/*") if path.name not in needed and _written(path) < before]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    async def ready(self) -> None:
        self.folder.stat()


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


class DirectoryBlobs:
    """See `medmesh.store.objects.blobs.Blobs`: durable before a put returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._place = str(folder)  # to put paths together takes as long as to open a file
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def get(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes] | None:
        try:
            file = open(f"{self._place}/{name}", "rb")  # noqa: SIM115
        except FileNotFoundError:
            return None
        return _pieces(file, start, end)

    def put(self, name: str, source: Source, length: int) -> None:
        above, _, own = f"{self._place}/{name}".rpartition("/")
        temporary = f"{above}/.{own}.{secrets.token_hex(4)}"
        try:
            with _new_file(temporary) as file:
                while piece := source.read(_PIECE):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, f"{above}/{own}")
        except BaseException as error:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            if isinstance(error, OSError):
                raise _full(error) from None
            raise

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{self._place}/{name}")

    def names(self, prefix: str = "") -> Iterator[Blob]:
        for folder in sorted(self.folder.iterdir()):
            for path in folder.iterdir():
                if not path.name.startswith(".") and (name := f"{folder.name}/{path.name}").startswith(prefix):
                    found = path.stat()
                    yield Blob(name, found.st_size, found.st_mtime)

    def ready(self) -> None:
        self.folder.stat()

    def close(self) -> None:
        """Nothing is held."""


def _new_file(path: str) -> BinaryIO:
    """Of ours alone; its folder is made with the first."""
    try:
        return open(path, "wb", opener=_private)
    except FileNotFoundError:
        Path(path).parent.mkdir(mode=0o700, exist_ok=True)
        return open(path, "wb", opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _pieces(file: BinaryIO, start: int, end: int | None) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = (1 << 62) if end is None else end - start
        while left > 0 and (piece := file.read(min(_PIECE, left))):
            left -= len(piece)
            yield piece


def _full(error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Problem("objects.full")
    return error


async def _part(descriptor: int, place: int, length: int) -> bytes:
    """Bytes of a file, as many as there are: at once where the kernel has the last of them in memory, else in a thread."""
    try:
        os.preadv(descriptor, [bytearray(1)], place + length - 1, _AT_ONCE)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
            raise
        return await asyncio.to_thread(os.pread, descriptor, length, place)
    return os.pread(descriptor, length, place)
