"""Objects to and from the gateway: in pieces, resumable in both directions, verified; what both sides have already is not sent again."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

from medmesh.client.gateway import Gateway, problem_of, unreachable
from medmesh.client.http import Answer, Broken
from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.port import CHUNK, Digest, file_digest
from medmesh.tasks import aside

BEGINNING = 4096
PART = 1 << 20
"""What is read of a file at once."""
_NOTHING = hashlib.sha256().hexdigest()
_under_way: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()
Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    return None


class Source(Protocol):
    """Bytes to send, wherever they lie."""

    def read(self, start: int, end: int) -> list[bytes]:
        """Bytes `start`..`end` in parts; at most `CHUNK` at once; called in a thread where they are many."""


@dataclass(frozen=True)
class Plain:
    """A file."""

    path: Path

    def read(self, start: int, end: int) -> list[bytes]:
        """See `Source`."""
        parts: list[bytes] = []
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            while start < end and (part := file.read(min(PART, end - start))):
                parts.append(part)
                start += len(part)
        return parts


@dataclass(frozen=True)
class Held:
    """Bytes that are here, in the parts they were made in."""

    parts: Sequence[bytes]

    def read(self, start: int, end: int) -> list[bytes]:
        """See `Source`."""
        found, place = [], 0
        for part in self.parts:
            if piece := part[max(0, start - place) : max(0, end - place)]:
                found.append(piece)
            place += len(part)
        return found


@dataclass(frozen=True)
class Stored:
    """An object that lies encrypted: it is opened piece by piece, and never lies in the clear beside itself."""

    store: EncryptedStore
    sha256: str

    def read(self, start: int, end: int) -> list[bytes]:
        """See `Source`."""
        return list(self.store.open(self.sha256, start, end))


async def upload(gateway: Gateway, path: Path, *, media_type: str = "application/octet-stream", progress: Progress = _silent) -> ObjectRef:
    """Send a file, going on where an earlier attempt stopped. `progress(done, total)` in bytes."""
    found = await asyncio.to_thread(digested, Plain(path), path.stat().st_size)
    ref = ObjectRef(sha256=found.hexdigest(), bytes=found.size, media_type=media_type)
    await send(gateway, ref, Plain(path), marks=found.marks, progress=progress)
    return ref


def digested(source: Source, size: int) -> Digest:
    """What there is to know of bytes before they are sent: their SHA-256, and that of their beginnings. In a thread."""
    found = Digest()
    for start in range(0, size, PART):
        for part in source.read(start, min(size, start + PART)):
            found.update(part)
    return found


async def send(
    gateway: Gateway,
    ref: ObjectRef,
    source: Source,
    *,
    marks: Sequence[str] | None = None,
    base: Path | None = None,
    progress: Progress = _silent,
) -> None:
    """Send the bytes of `ref`, going on where an earlier attempt stopped.

    `base` is an object that the platform has (its file's name is its SHA-256): pieces that are the same there, at the same place, are
    named instead of sent. Every piece is verified where it arrives by the SHA-256 of everything up to its end: those are the `marks` of
    whoever hashed it (`Digest`); without them it is read once more than is sent. Raises `Problem`.
    """
    target = f"/v1/uploads/{ref.sha256}"
    offset, complete = 0, False
    if ref.bytes > CHUNK:  # a small one is sent sooner than asked for
        offset, complete = _progress(await gateway.raw("HEAD", target))
        if marks is None and not complete:
            marks = (await asyncio.to_thread(digested, source, ref.bytes)).marks
    whole = _Whole(source, ref, marks or (), base)
    ahead: asyncio.Task[_Piece] | None = None
    try:
        while not complete:
            if ahead is None or (piece := await ahead).offset != offset:
                piece = await _piece(whole, offset)
            after = offset + piece.length
            ahead = asyncio.create_task(_piece(whole, after)) if after < ref.bytes else None
            query: dict[str, Any] = {"offset": offset, "total": ref.bytes}
            if piece.same:
                query |= {"base": piece.same, "length": piece.length}
            try:
                answer = await gateway.raw("PUT", target, piece.data, query=query, headers=piece.headers, digest=piece.upto)
            except Problem as problem:
                if piece.same and problem.code == "objects.missing":
                    whole, ahead = replace(whole, base=None), None  # the platform has forgotten it: everything is sent
                    continue
                if problem.code != "objects.offset":
                    raise
                answer = await gateway.raw("HEAD", target)  # somebody else's attempt was further, or its file is gone
            offset, complete = _progress(answer)
            progress(offset, ref.bytes)
    finally:
        if ahead is not None:
            ahead.cancel()


@dataclass(frozen=True)
class _Whole:
    source: Source
    ref: ObjectRef
    marks: Sequence[str]
    base: Path | None


@dataclass(frozen=True)
class _Piece:
    offset: int
    length: int
    data: Sequence[bytes]
    upto: str
    """SHA-256 of everything up to its end; of nothing, where nothing is sent."""
    same: str
    """The object that has the same bytes at the same place; then `data` is empty."""

    @property
    def headers(self) -> dict[str, str]:
        digest = base64.b64encode(bytes.fromhex(self.upto)).decode()
        return {"Upload-Digest": f"sha-256=:{digest}:", "Content-Type": "application/octet-stream"}


async def _piece(whole: _Whole, offset: int) -> _Piece:
    return await aside(whole.ref.bytes, lambda: _cut(whole, offset))


def _cut(whole: _Whole, offset: int) -> _Piece:
    # On a grid of whole pieces, so that what was resumed in the middle of one can be compared again from the next.
    place, total, base = offset // CHUNK, whole.ref.bytes, whole.base
    end = min(total, (place + 1) * CHUNK)
    data = whole.source.read(offset, end)
    if base is not None and _is_same(data, offset, end, base):
        return _Piece(offset, end - offset, (), _NOTHING, base.name)
    return _Piece(offset, end - offset, data, whole.ref.sha256 if end == total else whole.marks[place], "")


def _is_same(data: list[bytes], offset: int, end: int, base: Path) -> bool:
    # What differs mostly differs at its beginning: then the base need not be read.
    beginning = data[0][:BEGINNING] if data else b""
    if b"".join(Plain(base).read(offset, offset + len(beginning))) != beginning:
        return False
    return b"".join(Plain(base).read(offset, end)) == b"".join(data)


def _progress(answer: Answer) -> tuple[int, bool]:
    return int(answer.headers["upload-offset"]), answer.headers["upload-complete"] == "?1"


async def download(
    gateway: Gateway, ref: ObjectRef, target: Path, *, since: Path | None = None, progress: Progress = _silent, attempts: int = 8
) -> Path:
    """Fetch an object into `target`, going on where an earlier attempt stopped. Raises `Problem` when its bytes are not its own.

    `since` is an older object (its file's name is its SHA-256): what did not change since then is taken from there. Whoever wants the same
    file at the same time waits for the first, and has it.
    """
    async with _under_way.setdefault(target, asyncio.Lock()):
        return await _download(gateway, ref, target, since, progress, attempts)


async def _download(gateway: Gateway, ref: ObjectRef, target: Path, since: Path | None, progress: Progress, attempts: int) -> Path:
    if target.exists() and (await asyncio.to_thread(file_digest, target))[0] == ref.sha256:
        return target
    partial = _Partial(target.with_name(f"{target.name}.part"))
    if partial.path.exists():
        await asyncio.to_thread(partial.begin)
    for whole in (False, True):  # what was here already, or did not change, may be what is wrong: then all of it is fetched once more
        same = frozenset[int]() if whole else await _same(gateway, ref, since)
        await _persistently(gateway, ref, partial, progress, same, since, attempts)
        if (found := partial.whole.hexdigest()) == ref.sha256:
            partial.path.replace(target)
            return target
        partial.path.unlink()
        partial = _Partial(partial.path)
    raise Problem("objects.digest", expected=ref.sha256, found=found)


async def _persistently(
    gateway: Gateway, ref: ObjectRef, partial: _Partial, progress: Progress, same: frozenset[int], since: Path | None, attempts: int
) -> None:
    for attempt in range(attempts):
        try:
            await _fetch(gateway, ref, partial, progress, same, since)
            break
        except Broken as error:
            if attempt + 1 == attempts:
                raise unreachable(gateway.url, error) from None
            await asyncio.sleep(min(0.2 * 2**attempt, 5))


class _Partial:
    """A file that grows at its end, digested as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.whole = hashlib.sha256()

    def begin(self) -> None:
        """Take in what an earlier process left. In a thread."""
        with self.path.open("rb") as file:
            while piece := file.read(1 << 20):
                self.whole.update(piece)
                self.size += len(piece)

    def append(self, parts: Iterable[bytes]) -> None:
        """In a thread."""
        with self.path.open("ab") as file:
            for part in parts:
                file.write(part)
                self.whole.update(part)
                self.size += len(part)


async def _same(gateway: Gateway, ref: ObjectRef, since: Path | None) -> frozenset[int]:
    """The places (in pieces of `CHUNK`) at which an object is what the older one was; none when the platform cannot say."""
    if since is None or ref.bytes <= CHUNK or not since.exists() or since.name == ref.sha256:
        return frozenset()
    try:
        answer = await gateway.request("GET", f"/v1/objects/{ref.sha256}/unchanged", query={"since": since.name})
    except Problem as problem:
        if problem.code not in ("objects.missing", "request.no_route"):
            raise
        return frozenset()
    return frozenset(int(place) for place in answer["pieces"])


async def _fetch(gateway: Gateway, ref: ObjectRef, partial: _Partial, progress: Progress, same: frozenset[int], since: Path | None) -> None:
    while partial.size < ref.bytes:
        place, inside = divmod(partial.size, CHUNK)
        if place in same and since is not None and not inside:
            end = min(ref.bytes, partial.size + CHUNK)
            await asyncio.to_thread(partial.append, await asyncio.to_thread(Plain(since).read, partial.size, end))
            progress(partial.size, ref.bytes)
            continue
        after = next((other * CHUNK for other in sorted(same) if other > place), ref.bytes)
        await _range(gateway, ref, partial, after, progress)
    if not ref.bytes:
        partial.path.touch()


async def _range(gateway: Gateway, ref: ObjectRef, partial: _Partial, end: int, progress: Progress) -> None:
    async with gateway.stream(f"/v1/objects/{ref.sha256}", headers={"Range": f"bytes={partial.size}-{end - 1}"}) as answer:
        if answer.status_code >= 400:
            raise problem_of(await answer.whole())
        async for parts in answer.parts():
            if partial.size + sum(map(len, parts)) > end:  # more than was asked for: it may have no end
                partial.path.unlink(missing_ok=True)
                raise Problem("objects.digest", expected=ref.sha256, found="?")
            await aside(ref.bytes, functools.partial(partial.append, parts))
            progress(partial.size, ref.bytes)
