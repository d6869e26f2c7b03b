"""Objects by the SHA-256 of what they say, encrypted where they lie (`envelope`). References, and who may follow them, do not change.

An object is the blob `ab/<sha256>.key`: its header and, when it is small, its body. A larger body is a blob beside it, named anew by
every writer, and the header says which one counts: two that put the same object at once do not mix, and one killed midway has put
nothing. A body may also be kept elsewhere while its header stays here (`detach`): who destroys the header has destroyed the object.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem
from medmesh.security.keyring.port import Wrapped
from medmesh.security.suites import TAG
from medmesh.store.objects import envelope
from medmesh.store.objects.blobs import Blobs, Source
from medmesh.store.objects.envelope import Header, Rejoined, Wrapping

INLINE = envelope.PIECE
"""Up to this size a body lies behind its header: one file or request instead of two, and one wait for the disk."""
WINDOW = 8 * envelope.PIECE
"""Plain bytes of a `Window` that are here at once."""


class Window:
    """An object's plain bytes, read mostly one after the other, for code in threads: never in the clear but in memory, some pieces at a
    time. Raises as `EncryptedStore.open`."""

    def __init__(self, store: EncryptedStore, ref: ObjectRef) -> None:
        self._store, self._sha256, self.size = store, ref.sha256, ref.bytes
        self._begin, self._plain = 0, b""

    def at(self, start: int, size: int) -> bytes:
        """`size` bytes from the byte `start`."""
        stop, end = min(start + size, self.size), self._begin + len(self._plain)
        if not self._begin <= start or stop > end:
            begin = start - start % envelope.PIECE
            here = self._plain[begin - self._begin :] if self._begin <= begin < end else b""
            last = -(-max(stop, begin + WINDOW) // envelope.PIECE) * envelope.PIECE  # whole pieces: none is opened twice on the way
            self._plain = here + b"".join(self._store.open(self._sha256, begin + len(here), last))
            self._begin = begin
        return self._plain[start - self._begin : stop - self._begin]

    def close(self) -> None:
        """Forget what is here."""
        self._plain = b""


class EncryptedStore:
    """See `medmesh.store.objects.port.ObjectStore`."""

    def __init__(self, blobs: Blobs, wrapping: Wrapping) -> None:
        self.blobs = blobs
        self.wrapping = wrapping

    def under(self, wrapping: Wrapping) -> EncryptedStore:
        """The same store, for objects whose keys are wrapped by somebody else."""
        return EncryptedStore(self.blobs, wrapping)

    def close(self) -> None:
        """Close idle connections."""
        self.blobs.close()

    async def ready(self) -> None:
        await asyncio.to_thread(self.blobs.ready)

    async def size(self, sha256: str) -> int | None:
        header = await asyncio.to_thread(self.header, sha256)
        return header.size if header else None

    async def read(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        pieces = await asyncio.to_thread(self.open, sha256, start, end)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    async def put_file(self, path: Path, sha256: str) -> ObjectRef:
        return await asyncio.to_thread(self.put_file_now, path, sha256)

    async def put(self, data: bytes, media_type: str = "application/octet-stream") -> ObjectRef:
        sha256 = await asyncio.to_thread(self.put_now, data)
        return ObjectRef(sha256=sha256, bytes=len(data), media_type=media_type)

    def put_now(self, data: bytes) -> str:
        """Store bytes, for code in threads; answers their SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        self._store(io.BytesIO(data), len(data), sha256, settled=True)
        return sha256

    async def delete(self, sha256: str) -> None:
        await asyncio.to_thread(self.remove, sha256)

    def remove(self, sha256: str) -> None:
        """The header first: then nothing opens the body, whatever becomes of it."""
        header = self.header(sha256)
        self.blobs.delete(_key(sha256))
        if header and header.body:
            self.blobs.delete(body_name(header))

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Plain bytes in pieces, for code in threads. Raises `Problem`: `objects.missing`, `objects.damaged`, `keyring.*`."""
        for attempt in (1, 2):
            found = self._find(sha256)
            if found is None:
                raise Problem("objects.missing", sha256=sha256)
            header, rest = found
            stop = header.size if end is None else min(end, header.size)
            if start >= stop and header.size:
                return iter(())
            first, last = start // header.piece, max(1, -(-stop // header.piece))
            begin, over = first * (header.piece + TAG), min(last * (header.piece + TAG), header.sealed_bytes)
            cipher = header.opened(self.wrapping)
            sealed = iter((rest[begin:over],)) if rest else self.blobs.get(body_name(header), begin, over)
            if sealed is not None:
                plain = envelope.open_pieces(header, cipher, sealed, first, last)
                return _between(plain, start - first * header.piece, stop - start)
            if attempt == 2:  # else somebody put the object anew between our two looks
                break
        raise Problem("objects.damaged", sha256=sha256)

    def put_file_now(self, path: Path, sha256: str) -> ObjectRef:
        """As `put_file`, for code in threads."""
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            self._store(file, size, sha256)
        return ObjectRef(sha256=sha256, bytes=size)

    def _store(self, file: BinaryIO, size: int, sha256: str, *, settled: bool = False) -> None:
        """Hash what is sealed, while it is sealed: whoever owns the source may still be writing to it, unless it is `settled`."""
        source = _Hashed(file, settled)
        if self.header(sha256) is not None:
            while source.read(envelope.PIECE):
                pass
            source.check(sha256)
            return
        header, cipher = envelope.begin(sha256, size, self.wrapping, inline=size <= INLINE)
        sealed = envelope.seal_pieces(header, cipher, source)
        if not header.body:
            parts = [header.line(), *sealed]
            source.check(sha256)
            self.blobs.put(_key(sha256), _Parts(parts), sum(map(len, parts)))
            return
        try:
            self.blobs.put(body_name(header), Rejoined(sealed), header.sealed_bytes)
            source.check(sha256)
            if self.header(sha256) is not None:  # somebody was faster
                self.blobs.delete(body_name(header))
                return
            # Wrapped again, as late as can be: a long upload may have outlived the key it began with.
            line = header.rewrapped(self.wrapping).line()
            self.blobs.put(_key(sha256), io.BytesIO(line), len(line))
        except BaseException:
            self.blobs.delete(body_name(header))
            raise

    def header(self, sha256: str) -> Header | None:
        """What is known of an object; None where there is none. Raises `Problem` (`objects.damaged`)."""
        pieces = self.blobs.get(_key(sha256), 0, envelope.HEADER)
        return None if pieces is None else Header.parse(sha256, b"".join(pieces).partition(b"\n")[0])

    def _find(self, sha256: str) -> tuple[Header, bytes] | None:
        pieces = self.blobs.get(_key(sha256))
        if pieces is None:
            return None
        line, _, rest = b"".join(pieces).partition(b"\n")
        return Header.parse(sha256, line), rest

    def at_rest(self, sha256: str) -> tuple[Header, Iterator[bytes] | None] | None:
        """Header and sealed body as they lie; None where there is no header, and for a body that is not here."""
        found = self._find(sha256)
        if found is None:
            return None
        header, rest = found
        return header, iter((rest,)) if rest else self.blobs.get(body_name(header))

    def detach(self, header: Header) -> None:
        """Leave the header alone: the body lies elsewhere, too. Nobody else may write headers meanwhile."""
        if header.body:
            self.blobs.delete(body_name(header))
        else:
            self.blobs.put(_key(header.sha256), io.BytesIO(header.line()), len(header.line()))

    def attach(self, header: Header, sealed: Iterator[bytes]) -> None:
        """The body that belongs to a header comes back. Nobody else may write headers meanwhile."""
        if header.body:
            self.blobs.put(body_name(header), Rejoined(sealed), header.sealed_bytes)
        else:
            whole = header.line() + b"".join(sealed)
            self.blobs.put(_key(header.sha256), io.BytesIO(whole), len(whole))

    def whole(self, sha256: str) -> bool:
        """Whether it is here, all of it, and says what its name says. Raises `Problem` (`keyring.*`)."""
        digest = hashlib.sha256()
        try:
            for piece in self.open(sha256):
                digest.update(piece)
        except Problem as problem:
            if problem.code not in ("objects.missing", "objects.damaged"):
                raise
            return False
        return digest.hexdigest() == sha256

    def objects(self) -> Iterator[str]:
        """The SHA-256 of every object."""
        return (blob.name[3:-4] for blob in self.blobs.names() if blob.name.endswith(".key"))

    def sweep(self, before: float) -> int:
        """Remove bodies put before a POSIX time that no header names, as writers leave them that were killed or too late; how many."""
        old = [blob.name for blob in self.blobs.names() if not blob.name.endswith(".key") and blob.modified < before]
        gone = 0
        for name in old:
            sha256, _, body = name[3:].partition(".")
            header = self.header(sha256)
            if header is None or header.body != body:
                self.blobs.delete(name)
                gone += 1
        return gone

    def rewrap(self, progress: Callable[[int], None] = lambda done: None) -> int:
        """Bring every DEK under the newest KEK; answers how many were brought. Killed and started again, it goes on."""
        newest, moved = self.wrapping.keys.versions(self.wrapping.label)[-1], 0
        for done, sha256 in enumerate(self.objects(), start=1):
            found = self._find(sha256)
            if found is not None and (held := self._holder(found[0])) is not None and held != newest:
                line = found[0].rewrapped(self.wrapping).line() + found[1]
                self.blobs.put(_key(sha256), io.BytesIO(line), len(line))
                moved += 1
            progress(done)
        return moved

    def versions_in_use(self) -> dict[int, int]:
        """How many objects wait for each version of the KEK."""
        found: dict[int, int] = {}
        for sha256 in self.objects():
            header = self.header(sha256)
            if header is not None:
                version = self._holder(header)
                if version is not None:
                    found[version] = found.get(version, 0) + 1
        return found

    def _holder(self, header: Header) -> int | None:
        """The version of our key that an object waits for; None when it is under somebody else's."""
        wrapped = Wrapped.parse(header.wrapped)
        return wrapped.version if wrapped.label == self.wrapping.label else None


class _Hashed:
    """Hashes what is read through it, unless that is known."""

    def __init__(self, source: Source, known: bool) -> None:
        self._source, self._known = source, known
        self._hash = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        piece = self._source.read(size)
        if not self._known:
            self._hash.update(piece)
        return piece

    def check(self, sha256: str) -> None:
        if self._known:
            return
        # One byte more than was announced is another content, too.
        self._hash.update(self._source.read(1))
        if (found := self._hash.hexdigest()) != sha256:
            raise Problem("objects.digest", expected=sha256, found=found)


class _Parts:
    """Reads the parts one after the other, and copies none that is asked for whole."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts[::-1]

    def read(self, size: int = -1, /) -> bytes:
        if not self._parts or not size:
            return b""
        part = self._parts.pop()
        if 0 < size < len(part):
            self._parts.append(part[size:])
            return part[:size]
        return part if size > 0 else b"".join((part, *(self._parts.pop() for _ in self._parts[:])))


def _between(pieces: Iterator[bytes], skip: int, length: int) -> Iterator[bytes]:
    for piece in pieces:
        part = piece[skip : skip + length] if skip or len(piece) > length else piece
        skip = 0
        length -= len(part)
        if part:
            yield part


def _key(sha256: str) -> str:
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise Problem("objects.missing", sha256=sha256[:64])
    return f"{sha256[:2]}/{sha256}.key"


def body_name(header: Header) -> str:
    """The blob of a body that does not lie behind its header."""
    return f"{header.sha256[:2]}/{header.sha256}.{header.body or 'apart'}"
