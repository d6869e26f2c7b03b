"""What a kill leaves of a round in the node's store goes, whole or half, and nothing that anybody names."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert, select
from tests.unit.edge.test_privacy import SETTINGS, opened
from tests.unit.federated.test_plan import plan

from medmesh.errors import Problem
from medmesh.learning import weights
from medmesh.security.keys import write_secret
from medmesh_edge import encoding, patients, sealing, training
from medmesh_edge.ports import Site, site
from medmesh_edge.rounds import Rounds
from medmesh_edge.tables import kept, unnamed

EVENT = opened(plan(), 1)
SMALL, LARGE = 4, 3 << 18
"""Numbers of a model that is one piece with its header, and of one whose body grows by itself."""
KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from medmesh.store.objects import incoming
from medmesh_edge import training
from medmesh_edge.ports import site

folder, where, model = sys.argv[1:]

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

match where:
    case "growing":
        seal, pieces = incoming.Incoming._seal, []
        def first(self, *, last):
            seal(self, last=last)
            killed()
        incoming.Incoming._seal = first
    case "half":  # the body has its name, the header has none
        incoming._write = killed
    case "writing":  # a header that is only half written
        make = incoming._all
        def half(file, data):
            make(file, data[: len(data) // 2])
            killed()
        incoming._all = half
    case "damaged":  # what a power cut may leave: the names, and not what the files say
        incoming.Incoming.wait = lambda self: (Path(folder, "objects", self.sha256[:2], self.sha256 + ".key").write_bytes(b""), killed())

async def main():
    async with site(Path(folder)) as node:
        await training.store(node, Path(model))
        killed()

asyncio.run(main())
"""


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in (folder / "objects").rglob("*") if path.is_file()}


def model(folder: Path, numbers: int, value: float = 1.0) -> Path:
    path = folder / f"model-{numbers}-{value}"
    weights.save({"a": np.full(numbers, value, np.float32)}, path)
    return path


async def rested(node: Site) -> None:
    """A node that starts, and has nothing to do."""
    sealing.clear(node)
    assert not await Rounds(node, None).step()  # type: ignore[arg-type]


async def noted(node: Site) -> list[str]:
    async with node.unit() as uow:
        return [row.object for row in await uow.all(select(unnamed))]


@pytest.fixture
def folder(private: Path) -> Path:
    (private / "node").mkdir(mode=0o700)
    SETTINGS.save(private / "node")
    return private / "node"


@pytest.mark.parametrize(
    ("where", "numbers"),
    [("sealed", SMALL), ("sealed", LARGE), ("growing", LARGE), ("half", LARGE), ("writing", SMALL), ("damaged", LARGE), ("damaged", SMALL)],
)
@pytest.mark.parametrize("again", [False, True], ids=["and never again", "and made again"])
async def test_a_kill_before_a_row_names_it_leaves_nothing(folder: Path, tmp_path: Path, where: str, numbers: int, again: bool) -> None:
    async with site(folder) as node:  # of a patient, and of a round before: they stay
        async with node.unit() as uow:
            keys = await patients.ensure(uow, node, ["p"])
        await patients.images(node, keys["p"]).put(b"an image")
        ref, *_ = await training.store(node, model(tmp_path, LARGE, 2.0))
        async with node.unit() as uow:
            await training.remember(uow, EVENT, ref)
            await sealing.named(uow, ref.sha256)
    before = files(folder)
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", KILLED, str(folder), where, str(model(tmp_path, numbers))], check=False, env={**os.environ}
    )
    assert done.returncode == -9
    assert files(folder) > before, "something is left of it"
    async with site(folder) as node:
        if again:  # the same bytes, before there was time to rest
            made, *_ = await training.store(node, model(tmp_path, numbers))
            assert b"".join(node.objects.open(made.sha256)) == model(tmp_path, numbers).read_bytes()
            async with node.unit() as uow:
                await training.remember(uow, EVENT.model_copy(update={"round": 2}), made)
                await sealing.named(uow, made.sha256)
        await rested(node)
        if again:
            assert b"".join(node.objects.open(made.sha256)) == model(tmp_path, numbers).read_bytes()
            await training.forget(node, EVENT.model_copy(update={"round": 3, "continues": {"a": "1.1"}}))
        assert await noted(node) == []
        assert b"".join(node.objects.open(ref.sha256)) == model(tmp_path, LARGE, 2.0).read_bytes()
    assert files(folder) == before


async def test_what_could_not_be_kept_is_erased_unless_a_row_names_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """The first half of a training was sealed when the second failed; and equal bytes are one object."""
    async with site(folder) as node:
        ref, *_ = await training.store(node, model(tmp_path, LARGE))
        async with node.unit() as uow:
            await training.remember(uow, EVENT, ref)
            await sealing.named(uow, ref.sha256)
        before = files(folder)
        await training.store(node, model(tmp_path, SMALL))
        with pytest.raises(Problem, match="NaN"):
            await training.store(node, model(tmp_path, LARGE, float("nan")))
        assert files(folder) > before
        await training.store(node, model(tmp_path, LARGE))
        await rested(node)
        assert files(folder) == before
        assert b"".join(node.objects.open(ref.sha256)) == model(tmp_path, LARGE).read_bytes()


async def test_one_of_which_a_power_cut_left_the_name_alone_is_sealed_anew(folder: Path, tmp_path: Path) -> None:
    """Its note went with the power, too: whoever made it makes the same again."""
    async with site(folder) as node:
        ref, *_ = await training.store(node, model(tmp_path, LARGE))
        async with node.unit() as uow:
            await sealing.named(uow, ref.sha256)
        (folder / "objects" / ref.sha256[:2] / f"{ref.sha256}.key").write_bytes(b"")
        await training.store(node, model(tmp_path, LARGE))
        assert b"".join(node.objects.open(ref.sha256)) == model(tmp_path, LARGE).read_bytes()


async def test_a_transaction_that_does_not_commit_leaves_the_note(folder: Path, tmp_path: Path) -> None:
    async with site(folder) as node:
        ref, *_ = await training.store(node, model(tmp_path, SMALL))
        with suppress(RuntimeError):
            async with node.unit() as uow:
                await training.remember(uow, EVENT, ref)
                await sealing.named(uow, ref.sha256)
                raise RuntimeError
        assert await noted(node) == [ref.sha256]
        async with node.unit() as uow:
            await uow.execute(insert(kept).values(federation="f", round=1, attempt=1, object=ref.model_dump(), at=uow.now))
            await sealing.named(uow, ref.sha256)
        assert await noted(node) == []


async def test_what_a_codec_left_out_is_noted_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(_codec: str, _signature: Any, _base: Path, _update: Path, _before: Any, encoded: Path, left: Path, **_how: Any) -> None:
        left.write_bytes(b"left out")

    monkeypatch.setattr("medmesh.federated.codecs.encode", encode)
    async with site(folder) as node:
        write_secret(node.layout.site_key, b"1" * 64)
        before = files(folder)
        _, residual = await encoding.encode(node, plan(codec="int8"), EVENT, tmp_path, tmp_path, tmp_path)
        assert await noted(node) == [residual] and files(folder) > before
        await rested(node)
        assert files(folder) == before
