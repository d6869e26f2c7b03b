"""What an object store must do, held against SeaweedFS and a folder."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.objects import bucket, wrapping

from medmesh.errors import Problem
from medmesh.store.objects import directory
from medmesh.store.objects.directory import DirectoryBlobs, DirectoryStore
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.memory import MemoryBlobs
from medmesh.store.objects.port import CHUNK, Digest, ObjectStore, Scratch, fetch
from medmesh.store.objects.s3 import S3Store
from medmesh.store.objects.upload import Uploads


@pytest.fixture(params=["s3", "directory", "encrypted-s3", "encrypted-directory", "encrypted-sm", "encrypted-memory"])
async def store(request: pytest.FixtureRequest, private: Path, unique: str) -> AsyncIterator[ObjectStore]:
    match request.param:
        case "directory":
            yield DirectoryStore(private / "objects", durable=True)
        case "encrypted-directory":
            yield EncryptedStore(DirectoryBlobs(private / "objects"), wrapping(private))
        case "encrypted-memory":
            yield EncryptedStore(MemoryBlobs(), wrapping(private))
        case "encrypted-sm":
            yield EncryptedStore(DirectoryBlobs(private / "objects"), wrapping(private, "sm-1"))
        case _:
            blobs = await bucket(request, private, unique)
            yield S3Store(blobs) if request.param == "s3" else EncryptedStore(blobs, wrapping(private))
            blobs.close()


async def test_what_was_put_is_read_back_whole_and_in_parts(store: ObjectStore, private: Path) -> None:
    data = os.urandom(CHUNK + 12345)
    source = private / "source"
    source.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    ref = await store.put_file(source, sha256)
    assert (ref.sha256, ref.bytes) == (sha256, len(data))
    assert await store.size(sha256) == len(data)
    pieces = [piece async for piece in store.read(sha256)]
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= CHUNK
    assert b"".join([p async for p in store.read(sha256, 100, 164)]) == data[100:164]
    assert b"".join([p async for p in store.read(sha256, len(data))]) == b""
    assert await store.put_file(source, sha256) == ref


@pytest.mark.parametrize("durable", [True, False])
async def test_a_file_that_is_taken_over_is_on_the_disk_before_it_has_its_name(
    private: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    store, source, data, done = DirectoryStore(private / "objects", durable=durable), private / "made", os.urandom(CHUNK + 5), list[str]()
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (fsync(descriptor), done.append(os.readlink(f"/proc/self/fd/{descriptor}"))))
    monkeypatch.setattr(os, "replace", lambda before, after: (done.append("named"), replace(before, after)))
    for _ in range(2):
        source.write_bytes(data)
        ref = await store.take_over(source)
        assert (ref.sha256, ref.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        assert not source.exists()
    assert b"".join([piece async for piece in store.read(ref.sha256)]) == data
    named = done.index("named")
    assert (str(source) in done[:named]) == durable


async def test_what_the_kernel_does_not_have_in_memory_is_read_in_a_thread(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, data, asked = DirectoryStore(private / "objects", durable=False), os.urandom(600_000), []
    ref = await store.put(data)

    def nothing_there(descriptor: int, parts: list[bytearray], place: int, flags: int) -> int:
        asked.append(place)
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "preadv", nothing_there)
    assert b"".join([part async for part in store.read(ref.sha256, 5)]) == data[5:]
    assert len(asked) > 1


async def test_bytes_that_are_not_their_name_are_refused_and_not_kept(store: ObjectStore, private: Path) -> None:
    source = private / "source"
    source.write_bytes(b"something else")
    wrong = hashlib.sha256(b"something").hexdigest()
    with pytest.raises(Problem) as caught:
        await store.put_file(source, wrong)
    assert caught.value.code == "objects.digest"
    assert await store.size(wrong) is None


async def test_what_is_put_while_somebody_deletes_it_is_put_without_a_fuss(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, source, data = DirectoryStore(private / "objects", durable=False), private / "made", b"the same update once more"
    source.write_bytes(data)
    ref = await store.put(data)
    digested = directory.file_digest

    def meanwhile(path: Path) -> tuple[str, int]:
        store.path(ref.sha256).unlink()
        return digested(path)

    monkeypatch.setattr(directory, "file_digest", meanwhile)
    assert await store.put_file(source, ref.sha256) == ref


async def test_a_missing_object_is_said_and_a_deleted_one_is_gone(store: ObjectStore) -> None:
    ref = await store.put(b"abc", "text/plain")
    assert await store.size(ref.sha256) == 3
    await store.delete(ref.sha256)
    assert await store.size(ref.sha256) is None
    with pytest.raises(Problem) as caught:
        [piece async for piece in store.read(ref.sha256)]
    assert caught.value.code == "objects.missing"


@pytest.fixture(params=["s3", "directory"])
async def scratch(request: pytest.FixtureRequest, private: Path, unique: str) -> AsyncIterator[Scratch]:
    if request.param == "directory":
        yield DirectoryStore(private / "scratch", durable=False)
        return
    blobs = await bucket(request, private, unique)
    yield S3Store(blobs)
    blobs.close()


async def test_what_is_old_and_not_needed_is_swept(scratch: Scratch) -> None:
    needed, other = [(await scratch.put(data)).sha256 for data in (b"needed", b"other")]
    assert await scratch.sweep(time.time() - 60, ()) == 0
    assert await scratch.sweep(time.time() + 60, {needed}) == 1
    assert [await scratch.size(name) for name in (needed, other)] == [6, None]


async def test_a_download_goes_on_where_it_stopped_and_an_altered_one_is_refused(store: ObjectStore, private: Path) -> None:
    data = os.urandom(300_000)
    ref = await store.put(data)
    target = private / "copy"
    (private / "copy.part").write_bytes(data[:100_000])
    assert (await fetch(store, ref, target)).read_bytes() == data
    target.unlink()
    (private / "copy.part").write_bytes(b"x" * 100_000)
    with pytest.raises(Problem) as caught:
        await fetch(store, ref, target)
    assert caught.value.code == "objects.digest"
    assert not target.exists()
    assert (await fetch(store, ref, target)).read_bytes() == data


async def test_an_upload_survives_repeats_gaps_and_altered_pieces(store: ObjectStore, private: Path) -> None:
    data = os.urandom(CHUNK + 1000)
    sha256 = hashlib.sha256(data).hexdigest()
    uploads = Uploads(private / "uploads", limit=2 * CHUNK, reserve=0)
    parts = [data[:CHUNK], data[CHUNK:]]

    async def send(offset: int, piece: bytes, digest: str | None = None) -> int:
        return await uploads.append("me", sha256, offset, len(data), [piece], digest or hashlib.sha256(piece).hexdigest())

    with pytest.raises(Problem) as caught:
        await send(CHUNK, parts[1])
    assert caught.value.code == "objects.offset"
    with pytest.raises(Problem) as caught:
        await send(0, parts[0], hashlib.sha256(b"").hexdigest())
    assert caught.value.code == "objects.digest"
    assert await uploads.offset("me", sha256) == 0
    assert await send(0, parts[0]) == CHUNK
    assert await send(0, parts[0]) == CHUNK
    assert await uploads.offset("somebody else", sha256) == 0
    again = Uploads(private / "uploads", limit=2 * CHUNK, reserve=0)
    assert await again.offset("me", sha256) == CHUNK
    assert await send(CHUNK, parts[1]) == len(data)
    ref = await again.finish("me", sha256, store)
    assert ref.bytes == await store.size(sha256) == len(data)
    assert await again.finish("me", sha256, store) == ref
    with pytest.raises(Problem) as caught:
        await uploads.append("me", sha256, 0, 3 * CHUNK, [b"x"], hashlib.sha256(b"x").hexdigest())
    assert caught.value.code == "objects.too_large"


async def test_a_piece_is_vouched_for_by_the_digest_of_everything_up_to_its_end(store: ObjectStore, private: Path) -> None:
    data = os.urandom(2 * CHUNK + 1000)
    digest = Digest()
    digest.update(data)
    sha256, marks = digest.hexdigest(), digest.marks
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert marks == [hashlib.sha256(data[: n * CHUNK]).hexdigest() for n in (1, 2)]

    async def send(uploads: Uploads, place: int, said: str, *, altered: bool = False) -> int:
        piece = bytearray(data[place * CHUNK : (place + 1) * CHUNK])
        piece[-1] ^= altered
        parts = [bytes(piece[:700]), b"", bytes(piece[700:])]
        return await uploads.append("me", sha256, place * CHUNK, len(data), parts, said, upto=True)

    first = Uploads(private / "uploads", limit=3 * CHUNK, reserve=0)
    assert await send(first, 0, marks[0]) == CHUNK
    # Another process knows nothing of what came before it, and looks at it again.
    again = Uploads(private / "uploads", limit=3 * CHUNK, reserve=0)
    assert await send(again, 1, marks[1]) == 2 * CHUNK
    with pytest.raises(Problem) as caught:
        await send(again, 2, sha256, altered=True)
    assert caught.value.code == "objects.digest"
    assert await again.offset("me", sha256) == 0, "what cannot be told apart begins anew"
    for place, said in enumerate((*marks, sha256)):
        reached = await send(again, place, said)
    assert reached == len(data)
    assert (await again.finish("me", sha256, store)).bytes == len(data)
    assert b"".join([piece async for piece in store.read(sha256)]) == data


async def test_what_lies_half_here_and_was_damaged_begins_anew(private: Path) -> None:
    data = os.urandom(2 * CHUNK)
    digest = Digest()
    digest.update(data)
    sha256 = digest.hexdigest()
    await Uploads(private / "uploads", limit=2 * CHUNK, reserve=0).append(
        "me", sha256, 0, len(data), [data[:CHUNK]], digest.marks[0], upto=True
    )
    (path,) = (private / "uploads").iterdir()
    with path.open("r+b") as file:
        file.write(b"other bytes")
    again = Uploads(private / "uploads", limit=2 * CHUNK, reserve=0)
    with pytest.raises(Problem) as caught:
        await again.append("me", sha256, CHUNK, len(data), [data[CHUNK:]], digest.marks[1], upto=True)
    assert caught.value.code == "objects.digest"
    assert await again.offset("me", sha256) == 0


async def test_an_upload_on_a_full_disk_is_refused_with_nothing_stored(private: Path) -> None:
    uploads = Uploads(private / "uploads", limit=CHUNK, reserve=1 << 60)
    with pytest.raises(Problem) as caught:
        await uploads.append("me", "0" * 64, 0, 1, [b"x"], hashlib.sha256(b"x").hexdigest())
    assert caught.value.code == "objects.full"
    assert await uploads.offset("me", "0" * 64) == 0
