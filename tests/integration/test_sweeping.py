"""What nobody asks for any more goes from scratch after a week; what a record still needs stays."""

from __future__ import annotations

import hashlib
import os
import time

from tests.federations import living, opened, start, submit
from tests.platform import Platform

from medmesh.contracts.federation import CancelFederation, RoundCommitted, RoundStored
from medmesh.store.objects.directory import DirectoryStore
from medmesh_federation.sweeping import KEEP_SECONDS, sweep

HOSPITALS = ("huashan", "renji")


async def aged(p: Platform) -> set[str]:
    """Sweep as if all that is there were a week old; answers what is left."""
    assert isinstance(p.stores.scratch, DirectoryStore)
    long_ago = time.time() - KEEP_SECONDS - 60
    for path in p.stores.scratch.folder.glob("??/*"):
        os.utime(path, (long_ago, long_ago))
    runtime = p.runtimes["federation"]
    await sweep(runtime, runtime.ports)
    return {path.name for path in p.stores.scratch.folder.glob("??/*")}


async def test_bytes_of_which_no_command_became_go_and_what_a_federation_needs_stays(p: Platform) -> None:
    await start(p, HOSPITALS, rounds=2, baseline=False)
    round_ = (await opened(p, 1)).data
    async with living(p, *HOSPITALS):
        assert (await submit(p, round_, "huashan", 1.0)).succeeded
        orphan = (await p.stores.scratch.put(b"came with a message that the gateway was killed with")).sha256
        assert isinstance(p.stores.scratch, DirectoryStore)
        half = p.stores.scratch.path(orphan).with_name(f".{orphan}.0a0b0c0d")
        half.write_bytes(b"half")
        fresh = hashlib.sha256(b"fresh").hexdigest()
        before = {path.name for path in p.stores.scratch.folder.glob("??/*")}
        assert await aged(p) == before - {orphan, half.name}
        await p.stores.scratch.put(b"fresh")
        runtime = p.runtimes["federation"]
        assert await sweep(runtime, runtime.ports) == 0
        assert await p.stores.scratch.size(fresh) is not None, "its message may be on its way"
        assert (await submit(p, round_, "renji", 3.0)).succeeded
        second, models = (await opened(p, 2)).data, set[str]()
        for hospital in HOSPITALS:
            assert (await submit(p, second, hospital, 5.0)).succeeded
        for number in (1, 2):
            done = (await p.wait(RoundCommitted, lambda e, number=number: e.data.round == number, timeout=30)).data
            await p.wait(RoundStored, lambda e, number=number: e.data.round == number, timeout=30)
            assert done.participants == HOSPITALS
            models.add(done.model.sha256)
    assert models <= await aged(p), "models of committed rounds are fetched from here"


async def test_of_a_federation_that_came_to_nothing_no_update_is_left(p: Platform) -> None:
    federation = await start(p, HOSPITALS, rounds=1, baseline=False)
    round_ = (await opened(p, 1)).data
    async with living(p, *HOSPITALS):
        assert (await submit(p, round_, "huashan", 1.0)).succeeded
    update = hashlib.sha256((p.folder / "w-1.0").read_bytes()).hexdigest()
    assert update in await aged(p)
    assert (await p.send(CancelFederation(federation=federation, reason="enough"), p.person("li", "researcher"))).succeeded
    assert update not in await aged(p)
