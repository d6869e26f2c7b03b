"""What lies sealed: whole and in parts as it was put, in the clear nowhere, and not at all once anybody altered it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.objects import bucket, wrapping

from medmesh.errors import Problem
from medmesh.store.objects.blobs import Blobs
from medmesh.store.objects.directory import DirectoryBlobs
from medmesh.store.objects.encrypted import INLINE, EncryptedStore, Window
from medmesh.store.objects.envelope import PIECE, Wrapping
from medmesh.store.objects.memory import MemoryBlobs


@pytest.fixture(params=["s3", "directory", "memory"])
async def encrypted(request: pytest.FixtureRequest, private: Path, unique: str) -> AsyncIterator[EncryptedStore]:
    blobs: Blobs
    match request.param:
        case "directory":
            blobs = DirectoryBlobs(private / "objects")
        case "memory":
            blobs = MemoryBlobs()
        case _:
            blobs = await bucket(request, private, unique)
    yield EncryptedStore(blobs, wrapping(private))
    blobs.close()


SIZES = (0, 1, 1000, INLINE, INLINE + 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 17)


def bodies(store: EncryptedStore) -> dict[str, bytes]:
    return {blob.name: b"".join(store.blobs.get(blob.name) or ()) for blob in sorted(store.blobs.names())}


def replace(store: EncryptedStore, name: str, content: bytes) -> None:
    store.blobs.put(name, io.BytesIO(content), len(content))


async def whole(store: EncryptedStore, sha256: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in store.read(sha256, start, end)])


async def problem(store: EncryptedStore, sha256: str) -> str:
    with pytest.raises(Problem) as caught:
        await whole(store, sha256)
    return caught.value.code


@pytest.mark.parametrize("size", SIZES)
async def test_every_size_and_range_comes_back_and_nothing_of_it_lies_in_the_clear(encrypted: EncryptedStore, size: int) -> None:
    data = (b"CANARY-" * (size // 7 + 1))[:size]
    ref = await encrypted.put(data)
    assert await encrypted.size(ref.sha256) == size
    assert await whole(encrypted, ref.sha256) == data
    for start, end in ((0, 1), (size // 2, size // 2 + 3), (PIECE - 1, PIECE + 1), (size - 1, size), (size, None), (5, 5), (0, size + 9)):
        if start >= 0:
            assert await whole(encrypted, ref.sha256, start, end) == data[start : size if end is None else end]
    assert all(b"CANARY" not in content for content in bodies(encrypted).values())
    assert [ref.sha256] == list(encrypted.objects())
    await encrypted.delete(ref.sha256)
    assert bodies(encrypted) == {}


def tamperings() -> dict[str, Callable[[bytes], bytes]]:
    sealed = PIECE + 16

    def flipped(place: int) -> Callable[[bytes], bytes]:
        return lambda body: body[:place] + bytes((body[place] ^ 1,)) + body[place + 1 :]

    return {
        "first byte": flipped(0),
        "middle": flipped(sealed + 7),
        "last tag": lambda body: body[:-1] + bytes((body[-1] ^ 1,)),
        "cut in a piece": lambda body: body[:-5],
        "last piece gone": lambda body: body[: 3 * sealed],
        "empty": lambda body: b"",
        "first piece gone": lambda body: body[sealed:],
        "two pieces swapped": lambda body: body[sealed : 2 * sealed] + body[:sealed] + body[2 * sealed :],
        "a piece doubled": lambda body: body[:sealed] + body[:sealed] + body[2 * sealed :],
    }


@pytest.mark.parametrize("how", tamperings())
async def test_a_body_that_was_altered_cut_or_put_in_another_order_does_not_open(encrypted: EncryptedStore, how: str) -> None:
    ref = await encrypted.put(os.urandom(3 * PIECE + 17))
    (name,) = (blob.name for blob in encrypted.blobs.names() if not blob.name.endswith(".key"))
    replace(encrypted, name, tamperings()[how](bodies(encrypted)[name]))
    assert await problem(encrypted, ref.sha256) == "objects.damaged"


async def test_a_body_with_more_behind_it_says_only_what_was_put(encrypted: EncryptedStore) -> None:
    data = os.urandom(PIECE + 17)
    ref = await encrypted.put(data)
    (name,) = (blob.name for blob in encrypted.blobs.names() if not blob.name.endswith(".key"))
    replace(encrypted, name, bodies(encrypted)[name] + b"more")
    assert await whole(encrypted, ref.sha256) == data


async def test_headers_cannot_be_altered_or_exchanged(encrypted: EncryptedStore) -> None:
    first, second = await encrypted.put(os.urandom(PIECE + 1)), await encrypted.put(os.urandom(PIECE + 1))
    name, other = (f"{ref.sha256[:2]}/{ref.sha256}.key" for ref in (first, second))
    before = bodies(encrypted)
    header = json.loads(before[name])
    for changed in ({"bytes": PIECE}, {"piece": PIECE * 2}, {"suite": "sm-1"}, {"body": json.loads(before[other])["body"]}):
        replace(encrypted, name, json.dumps({**header, **changed}).encode() + b"\n")
        assert await problem(encrypted, first.sha256) in ("keyring.refused", "objects.damaged")
    replace(encrypted, name, before[other])
    assert await problem(encrypted, first.sha256) == "keyring.refused"
    replace(encrypted, name, b"nonsense")
    assert await problem(encrypted, first.sha256) == "objects.damaged"
    replace(encrypted, name, before[name])
    assert len(await whole(encrypted, first.sha256)) == PIECE + 1
    encrypted.blobs.delete(f"{first.sha256[:2]}/{first.sha256}.{header['body']}")
    assert await problem(encrypted, first.sha256) == "objects.damaged"


async def test_a_suite_that_is_not_allowed_is_not_read(private: Path) -> None:
    made = EncryptedStore(DirectoryBlobs(private / "objects"), wrapping(private, "sm-1"))
    ref = await made.put(b"data")
    strict = made.under(Wrapping(made.wrapping.keys, "objects", "intl-1", frozenset(("intl-1",))))
    assert await problem(strict, ref.sha256) == "security.suite"


async def test_turning_the_key_over_touches_no_body_goes_on_where_it_stopped_and_frees_the_old_one(encrypted: EncryptedStore) -> None:
    data = [os.urandom(size) for size in (10, INLINE + 1, PIECE + 1, 2000)]
    refs = [await encrypted.put(content) for content in data]
    keys = encrypted.wrapping.keys
    before = {name: content.partition(b"\n")[2] if name.endswith(".key") else content for name, content in bodies(encrypted).items()}
    keys.create("objects", "wrap", "sm-1")
    assert encrypted.versions_in_use() == {1: 4}

    class Killed(Exception):
        pass

    def kill(done: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        encrypted.rewrap(kill)
    assert encrypted.versions_in_use() == {1: 2, 2: 2}
    seen: list[int] = []
    assert encrypted.rewrap(seen.append) == 2
    assert seen == [1, 2, 3, 4]
    assert encrypted.rewrap() == 0
    assert encrypted.versions_in_use() == {2: 4}
    after = {name: content.partition(b"\n")[2] if name.endswith(".key") else content for name, content in bodies(encrypted).items()}
    assert after == before
    keys.destroy("objects", 1)
    assert [await whole(encrypted, ref.sha256) for ref in refs] == data
    keys.destroy("objects", 2)
    assert await problem(encrypted, refs[0].sha256) == "keyring.gone"


async def test_two_that_put_the_same_object_at_once_leave_one_whole_object(encrypted: EncryptedStore) -> None:
    data = os.urandom(2 * PIECE + 5)
    barrier = threading.Barrier(4)

    class Together:
        """Lets all four begin before any has finished."""

        def __init__(self, inner: Blobs) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def get(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes] | None:
            found = self.inner.get(name, start, end)
            if found is None and not barrier.broken:
                barrier.wait(30)
            return found

    stores = [EncryptedStore(Together(encrypted.blobs), encrypted.wrapping) for _ in range(4)]  # type: ignore[arg-type]
    refs = await asyncio.gather(*(store.put(data) for store in stores))
    assert len(set(refs)) == 1
    assert await whole(encrypted, refs[0].sha256) == data
    assert encrypted.sweep(time.time() - 60) == 0, "a body may belong to somebody who is not done yet"
    left = len(bodies(encrypted)) - 2
    assert encrypted.sweep(time.time() + 60) == left
    assert len(bodies(encrypted)) == 2
    assert await whole(encrypted, refs[0].sha256) == data


async def test_a_window_gives_any_place_of_what_lies_sealed(encrypted: EncryptedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever order it is asked in, also over the edges of its pieces and beyond the end; on the way each piece is opened once."""
    monkeypatch.setattr("medmesh.store.objects.encrypted.WINDOW", 2 * PIECE)
    data = os.urandom(5 * PIECE + 17)
    ref = await encrypted.put(data)
    opened, before = list[tuple[int, int]](), encrypted.open

    def counted(sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        opened.append((start, min(end or len(data), len(data))))
        return before(sha256, start, end)

    monkeypatch.setattr(encrypted, "open", counted)

    def look() -> None:
        window, step = Window(encrypted, ref), PIECE // 3
        assert window.size == len(data)
        assert b"".join(window.at(place, step) for place in range(0, len(data), step)) == data
        assert sum(end - start for start, end in opened) == len(data) and len(opened) < 6
        for start, size in ((len(data) - 5, 5), (0, 8), (PIECE - 1, 2), (PIECE + 1, 3 * PIECE), (len(data) - 3, 9), (0, len(data))):
            assert window.at(start, size) == data[start : start + size]
        window.close()
        assert window.at(3, 4) == data[3:7]

    await asyncio.to_thread(look)
    with pytest.raises(Problem) as missing:
        await asyncio.to_thread(Window(encrypted, ref.model_copy(update={"sha256": "0" * 64})).at, 0, 1)
    assert missing.value.code == "objects.missing"
