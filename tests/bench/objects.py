"""What encryption at rest costs: put and get of an object against the same store without it, in the same run."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from medmesh.contracts.message import ObjectRef
from medmesh.embedded.testing import RunningServers, servers
from medmesh.security.keyring.file import FileKeys
from medmesh.store.objects.directory import DirectoryBlobs, DirectoryStore
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.envelope import Wrapping
from medmesh.store.objects.port import ObjectStore
from medmesh.store.objects.s3 import S3Blobs, S3Store
from tests.bench.common import Measure, Run, medians

SIZES = {"256KiB": (256 * 2**10, 40), "64MiB": (64 * 2**20, 2)}


def measure(names: Sequence[str]) -> list[Measure]:
    """Every figure of the area whose name begins with one of these."""
    found = asyncio.run(_all())
    return [one for one in found if not names or one.name.startswith(tuple(names))]


async def _all() -> list[Measure]:
    with tempfile.TemporaryDirectory(prefix="medmesh-bench-") as place:
        folder = Path(place)
        async with servers(folder / "servers", nats=False, postgres=False, s3=True) as running:
            return [measure for where in ("s3", "directory") for measure in await _where(folder, where, running)]


async def _where(folder: Path, where: str, running: RunningServers) -> list[Measure]:
    stores = [await _store(folder, where, suite, running) for suite in ("", "intl-1", "sm-1")]
    return [measure for size, (count, many) in SIZES.items() for measure in await _of_size(f"{where}.", size, count, many, stores)]


async def _of_size(where: str, size: str, count: int, many: int, stores: Sequence[ObjectStore]) -> list[Measure]:
    refs: dict[int, list[ObjectRef]] = {}

    def put(place: int) -> Run:
        async def once() -> float:
            data = [os.urandom(count) for _ in range(many)]
            began = perf_counter()
            refs[place] = [await stores[place].put(one) for one in data]
            return many * count / 2**20 / (perf_counter() - began)

        return once

    def get(place: int) -> Run:
        async def once() -> float:
            began = perf_counter()
            for ref in refs[place]:
                async for _ in stores[place].read(ref.sha256):
                    pass
            return many * count / 2**20 / (perf_counter() - began)

        return once

    found = []
    for verb, call in (("put", put), ("get", get)):
        floor, intl, sm = await medians(*(call(place) for place in range(3)))
        for suite, value in (("intl-1", intl), ("sm-1", sm)):
            name = f"objects.{where}{verb}_{size}_{suite}"
            found.append(Measure(name, value, "MiB/s", floor, "the same store, plain", floor, better="more"))
    return found


async def _store(folder: Path, where: str, suite: str, running: RunningServers) -> ObjectStore:
    label = suite or "plain"
    if where == "directory":
        if not suite:
            return DirectoryStore(folder / "plain", durable=True)
        blobs: DirectoryBlobs | S3Blobs = DirectoryBlobs(folder / label)
    else:
        keys = folder / "s3.json"
        if not keys.exists():
            keys.touch(mode=0o600)
            keys.write_text(json.dumps({"access_key": running.s3_access_key, "secret_key": running.s3_secret_key}))
        blobs = await S3Blobs.open(running.s3_url, f"bench-{label}", keys)
        if not suite:
            return S3Store(blobs)
    return EncryptedStore(blobs, Wrapping(FileKeys(folder / f"keys-{label}").ensure("objects", suite=suite), "objects", suite))
