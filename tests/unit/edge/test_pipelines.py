"""A plan's pipeline at the node: each item once, whenever it is killed; under patients' keys; refused where it would not be the same."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import func, insert, select, update
from tests.integration.test_forget import ALONE, EACH, PATIENTS, everything, pacs, prepare
from tests.unit.federated.test_plan import plan

from medmesh.cli.edge.pipelines import pipelines as command
from medmesh.contracts.data import ImageSchema
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import plan_hash
from medmesh.contracts.registry import Manifest
from medmesh.errors import Problem
from medmesh.learning import weights
from medmesh.pipelines import pipeline, steps
from medmesh.pipelines.samples import decoded
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh_conversion.domain import preprocess
from medmesh_edge import forgetting, intake, models, patients, pipelines, preparing, samples
from medmesh_edge import outputs as outputs_of
from medmesh_edge.outgoing import is_transient
from medmesh_edge.ports import Site, site
from medmesh_edge.tables import federations, outputs

DECLARED = """
name = "small"
[[steps]]
step = "scale"
shape = [16, 16]
[[steps]]
step = "normalise"
how = "percentile"
"""


def schema(text: str = DECLARED, size: int = 16) -> ImageSchema:
    stated = pipeline.read(text).stated()
    return ImageSchema(modality="MR", image_size=size, channels=1, classes=("none", "tumour"), pipeline=stated)


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Site]:
    async with site(prepare(private / "node", ALONE)) as opened:
        await intake.ingest(opened, pacs(private), "brain")
        yield opened


async def made(at: Site) -> int:
    async with at.unit() as uow:
        return int((await uow.execute(select(func.count()).select_from(outputs))).scalar_one())


async def all_rows(at: Site) -> Any:
    return await preparing.items_of(at, schema())


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the first step was done."""
    calls, whole = [0], steps.Scale.apply

    def apply(self: Any, data: Any) -> Any:
        calls[0] += 1
        return whole(self, data)

    monkeypatch.setattr(steps.Scale, "apply", apply)
    return calls


async def test_a_worker_is_given_what_the_pipeline_makes_and_nothing_is_made_twice(at: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, told = counted(monkeypatch), []
    found = await all_rows(at)
    await pipelines.ensure(at, schema(), found, lambda done, total: told.append((done, total)))
    assert calls == [PATIENTS * EACH] and told[-1] == (PATIENTS * EACH,) * 2
    path, count = await samples.prepare(at, schema(), held_out=False)
    x = weights.load(path)["x"]
    assert count == len(x) == PATIENTS * EACH and x.shape[1:] == (1, 16, 16) and x.dtype == np.float32
    assert calls == [PATIENTS * EACH], "read, not made"
    applied = pipeline.read(DECLARED)
    for place, row in enumerate(found):
        raw = b"".join(patients.images(at, patients.opened(at, row.patient, row.key)).open(row.object))
        assert np.array_equal(x[place, 0], applied.apply(decoded(raw, schema())).values)
    calls[0] = 0
    samples.forget_arrays(at)
    other = schema(DECLARED.replace("16, 16", "8, 8"), 8)
    await samples.prepare(at, other, held_out=False)
    assert calls == [PATIENTS * EACH] and await made(at) == 2 * PATIENTS * EACH, "another pipeline has outputs of its own"
    assert other.pipeline is not None and await pipelines.clear(at, other.pipeline.hash[:12]) == PATIENTS * EACH
    assert [row["items"] for row in await pipelines.listed(at)] == [PATIENTS * EACH]


@pytest.mark.parametrize("place", ["before the objects", "before the rows", "after the rows"])
async def test_killed_anywhere_it_goes_on_with_what_is_missing(private: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    folder = prepare(private / "node", ALONE)

    class Killed(BaseException):
        pass

    batches = 0

    async with site(folder) as at:
        await intake.ingest(at, pacs(private), "brain")
        make, keep = pipelines._make, pipelines._keep

        def making(*given: Any) -> Any:
            nonlocal batches
            batches += 1
            if batches == 2 and place == "before the objects":
                raise Killed
            return make(*given)

        async def keeping(*given: Any) -> Any:
            if batches == 2 and place == "before the rows":
                raise Killed
            kept = await keep(*given)
            if batches == 1 and place == "after the rows":
                raise Killed
            return kept

        with monkeypatch.context() as patch:
            patch.setattr(pipelines, "_make", making)
            patch.setattr(pipelines, "_keep", keeping)
            with pytest.raises(Killed):
                await samples.prepare(at, schema(), held_out=False)
    calls = counted(monkeypatch)
    async with site(folder) as at:
        assert await made(at) == pipelines.BATCH
        path, count = await samples.prepare(at, schema(), held_out=False)
        assert calls == [PATIENTS * EACH - pipelines.BATCH] and await made(at) == count == PATIENTS * EACH
        whole = weights.load(path)["x"]
        assert len({one.tobytes() for one in whole}) == count
        assert not list(at.layout.objects.rglob("*.new"))


async def test_what_was_made_of_a_forgotten_patient_goes(at: Site) -> None:
    one = forgetting.who(at, "PID-KANARY-1")
    await samples.prepare(at, schema(), held_out=False)
    async with at.unit() as uow:
        theirs = [row.output for row in await uow.all(select(outputs.c.output).where(outputs.c.patient == one))]
    assert len(theirs) == EACH and all(name.encode() in everything(at.layout.folder) for name in theirs)
    row = next(row for row in await all_rows(at) if row.patient != one)
    async with at.unit() as uow:
        output = (await uow.first(select(outputs.c.output).where(outputs.c.object == row.object))).output
    with pytest.raises(Problem):
        b"".join(at.objects.open(output))  # the hospital's key alone opens no patient's
    assert pipelines.read(at, row, output).shape == (1, 16, 16)
    _, done = await forgetting.ask(at, one, "requested", "li")
    assert done
    after = everything(at.layout.folder)
    assert not any(name.encode() in after for name in theirs) and one.encode() not in after
    _, left = await samples.prepare(at, schema(), held_out=False)
    assert left == (PATIENTS - 1) * EACH == await made(at)


async def test_a_patient_forgotten_while_it_runs_is_not_named_again(at: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    one = forgetting.who(at, "PID-KANARY-1")
    keep, forgotten = pipelines._keep, False

    async def keeping(*given: Any) -> Any:
        nonlocal forgotten
        if not forgotten:
            forgotten = True
            await forgetting.ask(at, one, "requested", "li")
        return await keep(*given)

    monkeypatch.setattr(pipelines, "_keep", keeping)
    with pytest.raises(Problem) as stopped:  # the round is asked for again
        await samples.prepare(at, schema(), held_out=False)
    assert stopped.value.code == "edge.patient_forgotten" and await made(at) == (PATIENTS - 1) * EACH, "the others' are kept"
    monkeypatch.undo()
    _, left = await samples.prepare(at, schema(), held_out=False)
    assert left == (PATIENTS - 1) * EACH == await made(at)
    assert one.encode() not in everything(at.layout.folder)


async def test_another_version_of_a_step_is_refused_before_anything_runs(at: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, calls = schema(), counted(monkeypatch)
    monkeypatch.setattr(steps.Normalise, "version", 2)
    with pytest.raises(Problem, match="normalise") as refused:
        await samples.prepare(at, wanted, held_out=False)
    assert refused.value.code == "pipelines.version" and calls == [0] and await made(at) == 0


async def test_items_that_do_not_fit_are_counted_and_the_others_are_kept(at: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Problem, match="16x16") as refused:
        await samples.prepare(at, schema(size=32), held_out=False)
    assert refused.value.code == "pipelines.items" and refused.value.params["count"] == PATIENTS * EACH
    whole, calls = steps.Scale.apply, 0

    def apply(self: Any, data: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Problem("pipelines.unfit", step="scale", reason="it is the third")
        return whole(self, data)

    monkeypatch.setattr(steps.Scale, "apply", apply)
    with pytest.raises(Problem, match=r"does not fit 1 of 15 items; the first: .*it is the third"):
        await samples.prepare(at, schema(), held_out=False)
    assert await made(at) == PATIENTS * EACH - 1


async def test_what_a_federation_needs_is_made_ahead_and_told(at: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = plan(data=schema())
    async with at.unit() as uow:
        values = {"federation": "f", "plan": wanted.model_dump(mode="json"), "plan_hash": plan_hash(wanted), "package": {}, "reason": ""}
        await uow.execute(insert(federations).values(state="invited", at=uow.now, **values))
    ahead = preparing.Ahead(at)
    assert not await ahead.step() and await made(at) == 0 and await preparing.progress(at) == [], "before it takes part nothing is done"
    async with at.unit() as uow:
        await uow.execute(update(federations).values(state="accepted"))
    assert wanted.data.kind == "images" and wanted.data.pipeline is not None
    said = {"federation": "f", "pipeline": "small", "hash": wanted.data.pipeline.hash, "items": PATIENTS * EACH}
    assert await preparing.progress(at) == [{**said, "done": 0}]
    with monkeypatch.context() as patch:
        failing = counted(patch)
        patch.setattr(steps.Normalise, "apply", steps.Orient().apply)
        for _ in range(3):
            await ahead.step()
        assert failing == [PATIENTS * EACH], "what does not fit is not tried again and again"
    await preparing.Ahead(at).step()
    assert await preparing.progress(at) == [{**said, "done": PATIENTS * EACH}]
    arguments = ["--folder", str(at.layout.folder)]
    shown = json.loads((await asyncio.to_thread(CliRunner().invoke, command, arguments, standalone_mode=False)).stdout)
    assert shown["federations"] == [{**said, "done": PATIENTS * EACH}] and shown["kept"][0]["items"] == PATIENTS * EACH
    assert 0 < shown["kept"][0]["mib"] <= shown["disk"]["mib"] < shown["disk"]["most_mib"] == 100 * 1024


OTHER = DECLARED.replace("16, 16", "8, 8")
EVERY = PATIENTS * EACH


def most(at: Site, items: float) -> None:
    """Room for so many of the larger outputs."""
    at.settings = at.settings.model_copy(update={"pipelines_gib": items * outputs_of.at_most(schema()) / 2**30})


def on_disk(at: Site, names: set[str]) -> int:
    return sum(path.stat().st_size for path in at.layout.objects.rglob("*") if path.is_file() and path.name[:64] in names)


async def kept(at: Site, of: ImageSchema) -> dict[str, str]:
    assert of.pipeline is not None
    return {row.object: row.output for row in await at.database.look(pipelines.MADE, pipeline=of.pipeline.hash)}


async def test_outputs_take_no_more_than_they_may_and_what_was_used_least_lately_goes(at: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    most(at, EVERY + 3)
    found, other = await all_rows(at), schema(OTHER, 8)
    first, _ = await samples.prepare(at, schema(), held_out=False)
    before, was = first.read_bytes(), await kept(at, schema())
    lately = {row.object for row in found[:3]}
    async with at.unit() as uow:
        long_ago = uow.now - timedelta(days=1)
        await uow.execute(update(outputs).where(outputs.c.object.not_in(lately)).values(used=long_ago))
    await samples.prepare(at, other, held_out=False)
    left = await kept(at, schema())
    assert lately <= set(left) < set(was) and len(await kept(at, other)) == EVERY
    names = {*was.values(), *(await kept(at, other)).values()}
    shown = await pipelines.disk(at)
    assert on_disk(at, names) <= await outputs_of.taken(at) <= outputs_of.most(at) and 0 < shown["mib"] <= shown["most_mib"]
    gone = set(was.values()) - set(left.values())
    assert gone and not any(at.objects.header(name) for name in gone), "with their keys"
    samples.forget_arrays(at)
    calls = counted(monkeypatch)
    path, _ = await samples.prepare(at, schema(), held_out=False)
    assert calls == [len(gone)] and path.read_bytes() == before, "made again, the same"
    assert await outputs_of.taken(at) <= outputs_of.most(at)


async def test_what_cannot_fit_is_said_before_anything_is_made(at: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    most(at, EVERY - 0.5)
    calls, here = counted(monkeypatch), set(at.objects.objects())
    with pytest.raises(Problem, match="may take") as refused:
        await samples.prepare(at, schema(), held_out=False)
    assert refused.value.code == "pipelines.full" and calls == [0] and set(at.objects.objects()) == here
    most(at, EVERY)
    assert (await samples.prepare(at, schema(), held_out=False))[1] == EVERY

    def full(*_: Any) -> Any:
        raise Problem("objects.full")

    samples.forget_arrays(at)
    monkeypatch.setattr(EncryptedStore, "put_now", full)
    with pytest.raises(Problem) as refused:
        await samples.prepare(at, schema(OTHER, 8), held_out=False)
    assert refused.value.code == "pipelines.disk" and not is_transient(refused.value), "the round ends with it"


async def test_what_another_process_takes_away_while_it_is_read_is_made_again(at: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = await samples.prepare(at, schema(), held_out=False)
    before = path.read_bytes()
    samples.forget_arrays(at)
    read, reads, here = pipelines.read, 0, asyncio.get_running_loop()
    names = list((await kept(at, schema())).values())

    def reading(*given: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads == 3:
            asyncio.run_coroutine_threadsafe(outputs_of.remove(at, names), here).result()
        return read(*given)

    with monkeypatch.context() as patch:
        patch.setattr(pipelines, "read", reading)
        path, _ = await samples.prepare(at, schema(), held_out=False)
    assert path.read_bytes() == before and await made(at) == EVERY
    samples.forget_arrays(at)
    for name in names[:4]:  # as a kill leaves it: the row is still there
        at.objects.remove(name)
    path, _ = await samples.prepare(at, schema(), held_out=False)
    assert path.read_bytes() == before


async def test_federations_that_do_not_fit_together_do_not_take_turns_ahead_of_their_rounds(
    at: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    most(at, EVERY + 3)
    async with at.unit() as uow:
        for name, wanted in (("f", plan(data=schema())), ("g", plan(data=schema(OTHER, 8)))):
            values = {"federation": name, "plan": wanted.model_dump(mode="json"), "plan_hash": plan_hash(wanted), "package": {}}
            await uow.execute(insert(federations).values(state="accepted", reason="", at=uow.now, **values))
    calls, ahead = counted(monkeypatch), preparing.Ahead(at)
    for _ in range(4):
        await ahead.step()
    assert len(await kept(at, schema())) == EVERY and calls[0] < 2 * EVERY
    await samples.prepare(at, schema(OTHER, 8), held_out=False)
    assert len(await kept(at, schema(OTHER, 8))) == EVERY, "its round has what it needs"


async def test_outputs_of_an_earlier_release_are_counted(private: Path) -> None:
    folder = prepare(private / "node", ALONE)
    async with site(folder) as at:
        await intake.ingest(at, pacs(private), "brain")
        await samples.prepare(at, schema(), held_out=False)
        before = await kept(at, schema())
    store = sqlite3.connect(folder / "store.db")
    for statement in ("DROP TABLE unsettled", *(f"ALTER TABLE pipeline_outputs DROP COLUMN {name}" for name in ("bytes", "used"))):
        store.execute(statement)
    store.close()
    async with site(folder) as at:
        assert await kept(at, schema()) == before
        assert on_disk(at, set(before.values())) <= await outputs_of.taken(at)
        samples.forget_arrays(at)
        most(at, EVERY + 3)
        await samples.prepare(at, schema(OTHER, 8), held_out=False)
        assert len(await kept(at, schema())) < EVERY and await outputs_of.taken(at) <= outputs_of.most(at)


async def test_a_model_is_shown_what_it_was_trained_on(at: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    path, count = await samples.prepare(at, schema(), held_out=False)
    trained, calls = weights.load(path)["x"], counted(monkeypatch)
    manifest = Manifest.model_construct(model="m", version=1, classes=("none", "tumour"), onnx=ObjectRef(sha256="0" * 64, bytes=1))
    manifest = manifest.model_copy(update={"preprocess": preprocess(schema())})
    shown: list[np.ndarray] = []

    async def infer(x: np.ndarray) -> np.ndarray:
        shown.append(x)
        return np.zeros((len(x), 2), dtype=np.float32)

    repository: Any = SimpleNamespace(active=lambda model: SimpleNamespace(manifest=manifest, infer=infer))
    assert len(await models.classify(at, repository, "m", held_out=False)) == count
    assert np.array_equal(np.concatenate(shown), trained) and calls == [0], "the same numbers, made once"
    monkeypatch.setattr(steps.Normalise, "version", 2)
    with pytest.raises(Problem) as refused:
        models.applied(manifest)
    assert refused.value.code == "pipelines.version", "such a release is not installed"
