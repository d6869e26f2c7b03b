"""What an object store must do, held against SeaweedFS and a folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.store.objects.directory import DirectoryStore
from medmesh.store.objects.port import CHUNK, ObjectStore, fetch
from medmesh.store.objects.s3 import S3Store
from medmesh.store.objects.upload import Uploads


@pytest.fixture(params=["s3", "directory"])
async def store(request: pytest.FixtureRequest, private: Path, unique: str) -> AsyncIterator[ObjectStore]:
    if request.param == "directory":
        yield DirectoryStore(private / "objects", durable=True)
        return
    running: RunningServers = request.getfixturevalue("servers")
    keys = private / "s3.json"
    keys.write_text(json.dumps({"access_key": running.s3_access_key, "secret_key": running.s3_secret_key}))
    keys.chmod(0o600)
    made = await S3Store.open(running.s3_url, f"test-{unique}", keys)
    yield made
    made.close()


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


async def test_bytes_that_are_not_their_name_are_refused_and_not_kept(store: ObjectStore, private: Path) -> None:
    source = private / "source"
    source.write_bytes(b"something else")
    wrong = hashlib.sha256(b"something").hexdigest()
    with pytest.raises(Problem) as caught:
        await store.put_file(source, wrong)
    assert caught.value.code == "objects.digest"
    assert await store.size(wrong) is None


async def test_a_missing_object_is_said_and_a_deleted_one_is_gone(store: ObjectStore) -> None:
    ref = await store.put(b"abc", "text/plain")
    assert await store.size(ref.sha256) == 3
    await store.delete(ref.sha256)
    assert await store.size(ref.sha256) is None
    with pytest.raises(Problem) as caught:
        [piece async for piece in store.read(ref.sha256)]
    assert caught.value.code == "objects.missing"


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
        return await uploads.append("me", sha256, offset, len(data), piece, digest or hashlib.sha256(piece).hexdigest())

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
        await uploads.append("me", sha256, 0, 3 * CHUNK, b"x", hashlib.sha256(b"x").hexdigest())
    assert caught.value.code == "objects.too_large"


async def test_an_upload_on_a_full_disk_is_refused_with_nothing_stored(private: Path) -> None:
    uploads = Uploads(private / "uploads", limit=CHUNK, reserve=1 << 60)
    with pytest.raises(Problem) as caught:
        await uploads.append("me", "0" * 64, 0, 1, b"x", hashlib.sha256(b"x").hexdigest())
    assert caught.value.code == "objects.full"
    assert await uploads.offset("me", "0" * 64) == 0
