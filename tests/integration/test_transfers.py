"""Weights over a bad network: what was sent is not sent again, what did not change is not sent at all."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.proxies import Network, network
from tests.world import World

from medmesh.client import Gateway, download, upload
from medmesh.client.transfer import Plain, send
from medmesh.contracts.message import ObjectRef
from medmesh.store.objects.port import CHUNK

pytestmark = [pytest.mark.slow]
SLACK = 400_000
"""Headers, handshakes, and what TLS adds."""


@pytest.fixture
async def line(world: World) -> AsyncIterator[tuple[Gateway, Network]]:
    """A hospital's client, and the network it goes over."""
    async with network(urlsplit(world.url).port or 0) as (port, between):
        node = world.node("renji")
        files = world.p.folder / "renji.pem", world.p.folder / "renji.key"
        url = f"https://127.0.0.1:{port}"
        async with node, Gateway(url, ca=world.ca, identity=files, credentials=node.credentials) as far:
            yield far, between


def made(folder: Path, name: str, size: int, *, like: bytes = b"", changed: tuple[int, ...] = ()) -> tuple[Path, ObjectRef]:
    """A file of `size` random bytes under its SHA-256; or `like` with some of its pieces changed."""
    data = bytearray(like or random.Random(name).randbytes(size))
    for place in changed:
        data[place * CHUNK + 17] ^= 1
    sha256 = hashlib.sha256(data).hexdigest()
    (folder / sha256).write_bytes(data)
    return folder / sha256, ObjectRef(sha256=sha256, bytes=len(data))


async def test_what_was_cut_off_goes_on_where_it_was(line: tuple[Gateway, Network], tmp_path: Path) -> None:
    far, between = line
    size = 5 * CHUNK + 12_345
    path, ref = made(tmp_path, "cut", size)
    between.cut_after = [CHUNK // 2, 2 * CHUNK, 3 * CHUNK // 2]
    assert await upload(far, path) == ref
    assert between.cuts == 3
    assert between.up < size + 3 * CHUNK + SLACK, "more was sent again than a piece a cut"
    between.cut_after = [3 * CHUNK // 2, CHUNK, 2 * CHUNK]
    found = await download(far, ref, tmp_path / "back")
    assert (between.cuts, found.read_bytes()) == (6, path.read_bytes())
    assert between.down < size + 3 * 2 * 2**20 + SLACK, "a download goes on at the byte it came to"


async def test_a_download_goes_on_in_another_process(line: tuple[Gateway, Network], tmp_path: Path) -> None:
    far, between = line
    path, ref = made(tmp_path, "again", 2 * CHUNK)
    await upload(far, path)
    (tmp_path / "back.part").write_bytes(path.read_bytes()[: CHUNK + 5])
    before = between.down
    assert (await download(far, ref, tmp_path / "back")).read_bytes() == path.read_bytes()
    assert between.down - before < CHUNK + SLACK


async def test_what_is_wrong_of_what_was_here_already_is_fetched_once_more(line: tuple[Gateway, Network], tmp_path: Path) -> None:
    """A disk that altered the beginning of a download, or of the older object that it is taken from."""
    far, between = line
    path, ref = made(tmp_path, "altered", 2 * CHUNK)
    older, _ = made(tmp_path, "older", 0, like=path.read_bytes(), changed=(1,))
    await upload(far, path)
    await upload(far, older)
    (tmp_path / "back.part").write_bytes(bytes(CHUNK))
    before = between.down
    assert (await download(far, ref, tmp_path / "back")).read_bytes() == path.read_bytes()
    assert ref.bytes < between.down - before < ref.bytes + CHUNK + SLACK
    older.write_bytes(bytes(2 * CHUNK))
    assert (await download(far, ref, tmp_path / "once more", since=older)).read_bytes() == path.read_bytes()
    assert [one.name for one in tmp_path.glob("*.part")] == []


async def test_those_who_want_the_same_at_once_all_have_it_and_it_travels_once(line: tuple[Gateway, Network], tmp_path: Path) -> None:
    far, between = line
    path, ref = made(tmp_path, "same", 2 * CHUNK)
    assert await upload(far, path) == ref
    before = between.down
    found = await asyncio.gather(*(download(far, ref, tmp_path / "copy") for _ in range(4)))
    assert {one.read_bytes() == path.read_bytes() for one in found} == {True}
    assert between.down - before < ref.bytes + SLACK


async def test_long_lines_and_lost_segments(line: tuple[Gateway, Network], tmp_path: Path) -> None:
    far, between = line
    path, ref = made(tmp_path, "slow", CHUNK + 1)
    between.delay = 2.0
    assert await upload(far, path) == ref
    between.delay, between.loss = 0.0, 0.05
    assert (await download(far, ref, tmp_path / "back")).read_bytes() == path.read_bytes()


async def test_what_did_not_change_does_not_travel(line: tuple[Gateway, Network], tmp_path: Path) -> None:
    """Frozen layers: four of five pieces are as they were, in both directions."""
    far, between = line
    old, old_ref = made(tmp_path, "old", 5 * CHUNK - 3)
    await send(far, old_ref, Plain(old))
    new, new_ref = made(tmp_path, "new", 0, like=old.read_bytes(), changed=(2,))
    before = between.up
    await send(far, new_ref, Plain(new), base=old)
    assert between.up - before < CHUNK + SLACK
    before = between.down
    found = await download(far, new_ref, tmp_path / "back", since=old)
    assert found.read_bytes() == new.read_bytes()
    assert between.down - before < CHUNK + SLACK
    # A base that the platform never had: everything is sent.
    other, _ = made(tmp_path, "other", 0, like=old.read_bytes(), changed=(0, 1))
    third, third_ref = made(tmp_path, "third", 0, like=old.read_bytes(), changed=(0, 1, 2))
    await send(far, third_ref, Plain(third), base=other)
    assert (await download(far, third_ref, tmp_path / "third")).read_bytes() == third.read_bytes()
