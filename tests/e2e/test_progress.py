"""People see how far a hospital is with what takes long: the model that comes to it over a slow line, and its update that goes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.hospitals import consented, federation, until, with_images
from tests.packages import tiny
from tests.proxies import network
from tests.world import World, small_world

from medmesh.cli import views
from medmesh.contracts.federation import FederationView
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.learning import isolation
from medmesh.store.objects.port import CHUNK
from medmesh_edge.api import _page, status
from medmesh_edge.node import running
from medmesh_edge.settings import Settings
from medmesh_federation.service import SERVICE as FEDERATION

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
NAMES = ("huashan", "renji")
NUMBERS = 5 * CHUNK // 8
"""Of four bytes each: two pieces and a half."""
LARGE = f"""

def build(size: int) -> dict[str, np.ndarray]:
    return {{"weight": np.zeros((size * size, 2), np.float32), "bias": np.zeros(2, np.float32), "more": np.zeros({NUMBERS}, np.float32)}}


def train(model, samples, schedule, on_step):
    # No piece stays what it was, nor is what another hospital sends.
    model["more"] = np.arange({NUMBERS}, dtype=np.float32) + float(samples.x.mean())
    return 0.5
"""


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(servers, private, ports, FEDERATION, settings={"federation": {"tick_seconds": 0.1}}) as made:
        yield made


async def test_who_waits_for_a_slow_line_sees_how_far_it_is(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    researcher, approver, folders = await with_images(world, NAMES)
    tiny(world.p.folder, LARGE)
    package = world.p.folder / "package-source"
    with (package / "medmesh.toml").open("a") as manifest:
        manifest.write(f'\n[[tensors]]\nname = "more"\nshape = [{NUMBERS}]\ndtype = "F32"\n')
    async with AsyncExitStack() as stack:
        port, between = await stack.enter_async_context(network(urlsplit(world.url).port or 0))
        between.rate = CHUNK / 3
        Settings.load(folders["huashan"]).model_copy(update={"gateway": f"https://127.0.0.1:{port}"}).save(folders["huashan"])
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        made = await federation(
            world,
            researcher,
            approver,
            NAMES,
            package,
            rounds=1,
            baseline=False,
            lease_seconds=60,
        )
        await consented(nodes, made)
        shown: dict[tuple[str, int], str] = {}
        local: dict[tuple[str, int], str] = {}
        async with asyncio.timeout(120):
            while (view := await researcher.ask(f"/v1/federations/{made['federation']}", FederationView)).state != "completed":
                views.now(view)
                line = next(one for one in reversed(capsys.readouterr().out.splitlines()) if one.strip().startswith("huashan "))
                if (said := next(one.progress for one in view.participants if one.hospital == "huashan")) is not None:
                    assert (said.round, said.phase == "train" or said.total == size(view)) == (1, True)
                    shown.setdefault((said.phase, said.done), line)  # once it has answered, it is no longer said
                found = await status(nodes[0])
                if found["work"]:
                    (work,) = found["work"]
                    local[work["phase"], work["done"]] = _page(found, "en")
                await asyncio.sleep(0.1)

        async def rests() -> bool:
            return not (await status(nodes[0]))["work"]

        await until(rests, 10)
    for seen in (shown, local):
        assert ("send", 0) in seen, "before the first piece has arrived"
        for phase in ("fetch", "send"):
            partly = [done for one, done in seen if one == phase and 0 < done < size(view)]
            assert len(partly) >= 2, (phase, list(seen))
            assert partly == sorted(partly)
    for (phase, done), line in shown.items():
        if 0 < done < size(view):
            assert f"1 {phase} {100 * done // size(view)} % of 20.0 MiB" in line, "as people read it at the platform"
    assert all(str(done) in page for (_, done), page in local.items()), "and at the hospital"


def size(view: FederationView) -> int:
    """Of a model, as it travels."""
    return view.rounds[0].base.bytes
