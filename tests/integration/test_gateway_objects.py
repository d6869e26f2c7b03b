"""Objects over real HTTPS: in pieces, to whoever may see something they are part of, and on a disk that is full."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.world import World

from medmesh.client import download, upload
from medmesh.contracts.labels import ObjectView, SecurityLabel
from medmesh.errors import Problem


async def test_objects_go_up_and_down_in_pieces(world: World, private: Path) -> None:
    admin = await world.admin()
    researcher = await world.user(admin, "li", "researcher")
    data = os.urandom(20 * 2**20)
    (private / "data").write_bytes(data)
    steps: list[int] = []
    ref = await upload(researcher, private / "data", progress=lambda done, total: steps.append(done))
    assert steps == [8 * 2**20, 16 * 2**20, 20 * 2**20]
    assert await upload(researcher, private / "data") == ref
    (private / "copy.part").write_bytes(data[: 5 * 2**20])
    await download(researcher, ref, private / "copy")
    assert (private / "copy").read_bytes() == data
    with pytest.raises(Problem) as caught:
        await download(researcher, ref.model_copy(update={"sha256": "0" * 64}), private / "none")
    assert caught.value.code == "objects.missing"
    with pytest.raises(Problem) as caught:
        await download(admin, ref, private / "forbidden")
    assert caught.value.code == "access.denied"


async def test_a_file_is_read_by_whoever_may_see_something_it_is_part_of(world: World, private: Path) -> None:
    """Knowing its name is not enough, whichever route reads it; hidden and absent are told alike; a node is asked nothing."""
    admin = await world.admin()
    researcher = await world.user(admin, "li", "researcher")
    (private / "data").write_bytes(b"image")
    ref, absent = await upload(researcher, private / "data"), "0" * 64
    other = await upload(researcher, Path(__file__))
    own = ObjectView(known=True, kind="dataset", id="chest", label=SecurityLabel(), owner="platform", organisations=("platform",))
    secret = own.model_copy(update={"id": "secret", "label": SecurityLabel(level="core", compartments=("renji",))})
    world.p.files.append(("ingestion", ref.sha256, secret))

    async def told(path: str, method: str = "GET", query: dict[str, str] | None = None) -> Any:
        with pytest.raises(Problem) as caught:
            await researcher.request(method, path, query=query)
        return json.loads(json.dumps(caught.value.document()).replace(ref.sha256, absent))

    assert await told(f"/v1/objects/{ref.sha256}") == await told(f"/v1/objects/{absent}")
    for path in (f"/v1/objects/{ref.sha256}/unchanged?since={other.sha256}", f"/v1/objects/{other.sha256}/unchanged?since={ref.sha256}"):
        assert (await told(path))["code"] == "objects.missing"
    copy = {"offset": "0", "total": "5", "base": ref.sha256, "length": "5"}
    assert (await told(f"/v1/uploads/{ref.sha256}", "PUT", copy))["code"] == "objects.missing"
    auditor, refused = await world.user(admin, "shen", "auditor"), list[dict[str, Any]]()
    async with asyncio.timeout(20):
        while len(refused) < 4:
            refused = await world.records(auditor, verb="access.denied", entity="dataset:secret")
    assert [one["policy"]["rules"] for one in refused] == [["label"]] * 4
    world.p.files.append(("annotation", ref.sha256, own))
    assert (await download(researcher, ref, private / "copy")).read_bytes() == b"image"
    # What a node sent is a single hospital's update: a person reads it only once it is a part of something they may see.
    (private / "update").write_bytes(b"weights")
    async with world.node("renji") as node:
        sent = await upload(node, private / "update")
        assert (await download(node, sent, private / "back")).read_bytes() == b"weights"
    assert (await told(f"/v1/objects/{sent.sha256}"))["code"] == "objects.missing"
    world.p.files.append(("federation", sent.sha256, own.model_copy(update={"kind": "federation", "id": "f"})))
    assert (await download(researcher, sent, private / "model")).read_bytes() == b"weights"


async def test_a_disk_that_fills_up_refuses_the_piece_and_the_upload_goes_on_when_there_is_room(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    researcher = await world.user(await world.admin(), "li", "researcher")
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(3_000_000))
    room = 1_000_000

    def limited(descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
        data = b"".join(parts)
        fits = max(0, min(len(data), room - offset))
        if not fits:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.pwrite(descriptor, data[:fits], offset)

    with monkeypatch.context() as full:
        full.setattr(os, "pwritev", limited)
        with pytest.raises(Problem) as caught:
            await upload(researcher, path)
    assert (caught.value.code, caught.value.status) == ("objects.full", 507)
    ref = await upload(researcher, path)
    assert (await download(researcher, ref, tmp_path / "back")).read_bytes() == path.read_bytes()
