"""Training on real servers: jobs that learn, that survive the death of the service, and that end when they must."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.packages import piped, tiny
from tests.platform import Platform, platform

from medmesh.canonical import canonical
from medmesh.contracts.message import ObjectRef, new_id
from medmesh.contracts.training import CancelJob, GetJob, JobFailed, JobFinished, JobProgressed, JobStarted, JobView, SubmitJob
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.imaging import plain, reading
from medmesh.learning import isolation, weights
from medmesh.learning.package import pack
from medmesh.service.runtime import running
from medmesh.store.objects.port import fetch
from medmesh_training import claims
from medmesh_training.domain import Item, Schedule, check_counts, check_pipeline, held_out
from medmesh_training.service import SERVICE

pytestmark = pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")

STEPS = 24
SETTINGS: dict[str, Any] = {"checkpoint_steps": 5, "learning_rate": 0.5, "batch_size": 16, "lease_seconds": 60, "poll_seconds": 0.1}
SLOW = "\nimport time\n_build = build\ndef build(size):\n    time.sleep(0.15)\n    return _build(size)\n"
KILLED_OFTEN = """
import os
_build, _built = build, []
def build(size):
    _built.append(size)
    if len(_built) == 3:
        os.kill(os.getpid(), 9)
    return _build(size)
"""
LINK = "\nimport os\nfrom medmesh.learning import weights\nweights.save = lambda tensors, path: os.symlink({target!r}, path)\n"
NONSENSE = "\nfrom medmesh.learning import numpy_adapter\nnumpy_adapter.NumpyAdapter.train = lambda *_: float('nan')\n"


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    async with platform(servers, private, SERVICE, settings={"training": SETTINGS}) as made:
        yield made


@asynccontextmanager
async def another(p: Platform, name: str = "second", **changed: Any) -> AsyncIterator[None]:
    """A second instance of the service on the same bus and database."""
    own = p.runtimes["training"].settings.model_copy(update={"state": p.folder / "state" / name, **changed})
    own.state.mkdir(parents=True)
    async with running(SERVICE, own):
        yield


def png(brightness: int, generator: np.random.Generator) -> bytes:
    made = io.BytesIO()
    Image.fromarray((generator.integers(0, 100, (16, 16)) + brightness).astype(np.uint8)).save(made, "PNG")
    return made.getvalue()


async def items(p: Platform, count: int = 60) -> list[dict[str, Any]]:
    """Bright images are tumours."""
    generator = np.random.default_rng(3)
    made = []
    for place in range(count):
        label = ("none", "tumour")[place % 2]
        stored = await p.stores.kept.put(png(120 * (place % 2), generator), "image/png")
        made.append({"item": f"item-{place}", "object": stored.model_dump(), "label": label})
    return made


async def job_of(p: Platform, held: list[dict[str, Any]], code: str = "", **changed: Any) -> SubmitJob:
    package = await p.stores.kept.put(tiny(p.folder, code).archive)
    stored = await p.stores.kept.put(canonical({"items": held}))
    return SubmitJob(**{"package": package, "dataset": "brains", "version": 1, "content": stored, "steps": STEPS, "seed": 5, **changed})


def researcher(p: Platform) -> str:
    return p.person("li", "researcher")


async def submit(p: Platform, command: SubmitJob) -> str:
    done = await p.send(command, researcher(p))
    assert done.succeeded, done.problem
    assert done.result
    job: str = done.result["job"]
    return job


async def refused(p: Platform, command: SubmitJob | CancelJob) -> str:
    done = await p.send(command, researcher(p))
    assert done.problem
    code: str = done.problem["code"]
    return code


async def finished(p: Platform, job: str) -> JobFinished:
    return (await p.wait(JobFinished, lambda found: found.data.job == job)).data


async def failed(p: Platform, job: str) -> str:
    return (await p.wait(JobFailed, lambda found: found.data.job == job)).data.code


async def progressed(p: Platform, job: str, step: int) -> None:
    await p.wait(JobProgressed, lambda found: found.data.job == job and found.data.step >= step)


async def view(p: Platform, job: str) -> JobView:
    return await p.ask(GetJob(job=job), JobView, researcher(p))


def steps_told(p: Platform, job: str) -> list[int]:
    return [found.data.step for found in p.emitted(JobProgressed) if found.data.job == job]


def starts(p: Platform, job: str) -> list[tuple[int, int]]:
    return [(found.data.attempt, found.data.resumed_at) for found in p.emitted(JobStarted) if found.data.job == job]


async def test_a_job_learns_tells_of_every_checkpoint_and_leaves_proof(p: Platform) -> None:
    content = await items(p)
    command = await job_of(p, content)
    id_ = new_id()
    answers = [await p.send(command, researcher(p), id=id_) for _ in range(2)]
    assert answers[0].result
    job = answers[0].result["job"]
    done = await finished(p, job)
    assert steps_told(p, job) == [5, 10, 15, 20, 24]
    assert starts(p, job) == [(1, 0)]
    aside = sum(held_out(Item.model_validate(item, extra="ignore")) for item in content)
    assert (done.metrics["samples_trained"], done.metrics["samples_held_out"]) == (60 - aside, aside)
    assert done.metrics["balanced_accuracy"] > 0.9
    assert 0 <= done.metrics["balanced_accuracy_low"] < done.metrics["balanced_accuracy_high"] <= 1
    trained = weights.load(await fetch(p.stores.kept, done.weights, p.folder / "weights"))
    assert trained["weight"].shape == (64, 2) and np.abs(trained["weight"]).max() > 0
    seen = await view(p, job)
    assert (seen.state, seen.attempt, seen.step, seen.weights, seen.failure) == ("finished", 1, STEPS, done.weights, None)

    # The same data in another order, a stranger to the first job, is the same training.
    again = await submit(p, await job_of(p, content[::-1]))
    assert (await finished(p, again)).weights == done.weights
    other = await submit(p, await job_of(p, content, seed=6))
    assert (await finished(p, other)).weights != done.weights
    assert {found.data.job for found in p.emitted(JobStarted)} == {job, again, other}, "a command delivered twice is one job"

    piped_package = pack(piped(p.folder))
    through = await submit(p, await job_of(p, content, package=await p.stores.kept.put(piped_package.archive)))
    assert (await finished(p, through)).metrics["balanced_accuracy"] > 0.9
    stated = piped_package.manifest.images().pipeline
    asked = [record for record in await p.audited("training") if record["sub"] == "training.submit"]
    named = [[(e["id"], e["digest"]) for e in record["entities"] if e["type"] == "pipeline"] for record in asked]
    assert stated is not None and named == [[], [], [], [("mri-8", stated.hash)]]

    records = [record for record in await p.audited("training") if any(e["id"] == job for e in record["entities"])]
    assert [(record["sub"], record["out"]) for record in records] == [("training.submit", 0), ("training.finish", 0)]
    assert records[0]["agents"][0]["who"] == "person:li"
    digests = {entity["type"]: entity["digest"] for entity in records[1]["entities"]}
    assert digests == {"job": "", "package": command.package.sha256, "dataset": command.content.sha256, "weights": done.weights.sha256}
    assert not list((p.runtimes["training"].settings.state / "attempts").iterdir()), "no image stays behind"
    with pytest.raises(Problem) as caught:
        await p.ask(GetJob(job=job), JobView, p.person("an", "annotator"))
    assert caught.value.code == "access.denied"


async def test_a_service_killed_in_the_middle_resumes_to_the_same_weights(p: Platform) -> None:
    content = await items(p)
    undisturbed = await finished(p, await submit(p, await job_of(p, content)))
    await p.runtimes["training"].cancel_background()
    job = await submit(p, await job_of(p, content, SLOW))

    lone = p.runtimes["training"].settings.model_copy(update={"state": p.folder / "lone", "lease_seconds": 1.0})
    lone.state.mkdir()
    file = p.folder / "settings.json"
    file.write_text(lone.model_dump_json())
    killed = subprocess.Popen([sys.executable, "-m", "medmesh.service", "training", "--settings", str(file)], stdout=subprocess.DEVNULL)
    try:
        await progressed(p, job, 10)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    async with another(p):
        done = await finished(p, job)
    assert done.weights == undisturbed.weights
    (first, second) = starts(p, job)
    assert first == (1, 0) and second[0] == 2 and 10 <= second[1] < STEPS, "it went on from a checkpoint"
    assert steps_told(p, job) == [5, 10, 15, 20, 24], "no checkpoint is told twice, none is missing"


async def test_a_service_that_is_stopped_gives_its_job_back_at_once(p: Platform) -> None:
    content = await items(p)
    job = await submit(p, await job_of(p, content, SLOW))
    await progressed(p, job, 5)
    await p.runtimes["training"].cancel_background()
    assert (await view(p, job)).state == "queued"
    async with another(p):  # the lease would have lasted a minute
        await finished(p, job)
    assert [attempt for attempt, _ in starts(p, job)] == [1, 2]
    assert steps_told(p, job) == [5, 10, 15, 20, 24]


@pytest.mark.parametrize("place", ["checkpoint", "finish"])
async def test_an_instance_that_was_thought_dead_changes_nothing_when_it_wakes(
    servers: RunningServers, private: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The first attempt freezes right before it commits, the job is taken over, and the first goes on while the second runs."""
    frozen, taken, lost = asyncio.Event(), asyncio.Event(), asyncio.Event()
    real, real_keep = getattr(claims, place), claims.keep

    async def freezing(runtime: Any, held: claims.Claim, *arguments: Any) -> None:
        if held.attempt == 1 and (place == "finish" or arguments[0] == 15):
            frozen.set()
            await taken.wait()
        if held.attempt == 2:
            taken.set()
            await asyncio.wait_for(lost.wait(), 10)
        try:
            await real(runtime, held, *arguments)
        except claims.Lost:
            lost.set()
            raise

    async def keep(runtime: Any, held: claims.Claim, seconds: float) -> None:
        if not (held.attempt == 1 and frozen.is_set()):
            await real_keep(runtime, held, seconds)

    monkeypatch.setattr(claims, place, freezing)
    monkeypatch.setattr(claims, "keep", keep)
    async with platform(servers, private, SERVICE, settings={"training": {**SETTINGS, "lease_seconds": 0.5}}) as p:
        content = await items(p)
        job = await submit(p, await job_of(p, content))
        await frozen.wait()
        async with another(p, lease_seconds=60.0):
            done = await finished(p, job)
        undisturbed = await finished(p, await submit(p, await job_of(p, content)))
        assert lost.is_set(), "what the first attempt still wrote was refused"
        assert undisturbed.weights == done.weights
        assert starts(p, job) == [(1, 0), (2, 10 if place == "checkpoint" else STEPS)]
        assert steps_told(p, job) == [5, 10, 15, 20, 24]
        assert len([found for found in p.emitted(JobFinished) if found.data.job == job]) == 1
        ends = [record["entities"][0]["id"] for record in await p.audited("training") if record["sub"] == "training.finish"]
        assert ends.count(job) == 1


async def test_what_a_package_does_is_final_and_what_is_done_to_its_worker_is_tried_again(servers: RunningServers, private: Path) -> None:
    planted = private / "planted"  # sound weights, but not in the worker's folder
    weights.save({"weight": np.zeros((64, 2), np.float32), "bias": np.zeros(2, np.float32)}, planted)
    cases = (
        ("\ndef build(size):\n    raise ValueError('Zhang Wei, 1961')\n", "worker.failed", 1),
        ("\nimport os\nos._exit(3)\n", "worker.crashed", 1),
        ("\nimport os\nos.kill(os.getpid(), 9)\n", "worker.crashed", 2),
        (LINK.format(target=str(planted)), "weights.malformed", 1),
        (NONSENSE, "training.answer", 1),
    )
    async with platform(servers, private, SERVICE, settings={"training": {**SETTINGS, "max_attempts": 2}}) as p:
        content = await items(p, 20)
        often_killed = await submit(p, await job_of(p, content, KILLED_OFTEN))
        undisturbed = await submit(p, await job_of(p, content))
        submitted = [await submit(p, await job_of(p, content, code)) for code, _, _ in cases]
        assert (await finished(p, often_killed)).weights == (await finished(p, undisturbed)).weights
        assert len(starts(p, often_killed)) > 3, "only attempts without a new checkpoint count"
        for job, (code, expected, attempts) in zip(submitted, cases, strict=True):
            assert await failed(p, job) == expected, code
            seen = await view(p, job)
            assert (seen.state, seen.attempt) == ("failed", attempts), code
            assert seen.failure and seen.failure.startswith(f"{expected}: ")
            assert "Zhang" not in seen.failure
        records = [record for record in await p.audited("training") if record["sub"] == "training.fail"]
        ends = {record["entities"][0]["id"]: (record["out"], record["why"]) for record in records}
        assert ends == {job: (8, expected) for job, (_, expected, _) in zip(submitted, cases, strict=True)}


async def test_a_job_whose_instances_die_again_and_again_is_given_up(
    servers: RunningServers, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dead(*_: Any) -> None:
        return None

    monkeypatch.setattr(claims, "keep", dead)
    settings = {**SETTINGS, "lease_seconds": 0.3, "max_attempts": 1}
    async with platform(servers, private, SERVICE, settings={"training": settings}) as p:
        job = await submit(p, await job_of(p, await items(p, 20), "\nimport time\ntime.sleep(60)\n"))
        await p.wait(JobStarted)
        async with another(p):
            assert await failed(p, job) == "training.gave_up"
        assert starts(p, job) == [(1, 0)]
        assert (await p.audited("training"))[-1]["out"] == 8


async def test_what_cannot_be_trained_is_refused_before_it_is_queued(p: Platform) -> None:
    good = await items(p, 20)

    async def code_of(held: list[dict[str, Any]], **changed: Any) -> str:
        return await refused(p, await job_of(p, held, **changed))

    assert await code_of([*good[1:], {**good[0], "label": None}]) == "training.unlabelled"
    assert await code_of([*good[1:], {**good[0], "label": "Zhang Wei"}]) == "training.foreign_labels"
    assert await code_of([*good, good[0]]) == "training.content"
    assert await code_of([{"item": "a"}]) == "training.content"
    assert await code_of(good[:1]) == "training.too_few"
    assert await code_of(good, steps=2_000_000) == "training.too_long"
    assert await code_of(good, seed=2**60) == "request.invalid"
    assert await code_of(good, package=await p.stores.kept.put(b"no package")) == "package.malformed"
    assert await code_of(good, content=ObjectRef(sha256="0" * 64, bytes=2)) == "objects.missing"
    wrong = await p.send(await job_of(p, [{**good[0], "label": "Zhang Wei"}, *good[1:]]), researcher(p))
    assert wrong.problem and "1 of 20" in wrong.problem["title"] and "Zhang" not in str(wrong.problem)
    assert not p.emitted(JobStarted)
    assert {record["out"] for record in await p.audited("training")} == {4}

    broken = await p.stores.kept.put(b"\x89PNG\r\n\x1a\nbroken", "image/png")
    neither = await p.stores.kept.put(b"text", "image/png")
    for stored, why in ((broken, "imaging.unreadable"), (neither, "imaging.not_dicom")):
        job = await submit(p, await job_of(p, [{**good[0], "object": stored.model_dump()}, *good[1:]]))
        assert await failed(p, job) == "training.item"
        said = (await view(p, job)).failure
        assert said and why in said and stored.sha256[:12] in said


async def test_a_job_is_cancelled_while_it_waits_and_while_it_runs(p: Platform) -> None:
    content = await items(p, 20)
    slow = await submit(p, await job_of(p, content, SLOW, steps=1000))
    waiting = await submit(p, await job_of(p, content))
    await progressed(p, slow, 5)
    assert (await view(p, waiting)).state == "queued"
    for job in (waiting, slow, slow):
        assert (await p.send(CancelJob(job=job), researcher(p))).succeeded
        assert await failed(p, job) == "training.cancelled"
    told = steps_told(p, slow)
    after = await submit(p, await job_of(p, content))
    await finished(p, after)  # the runner was free again
    assert steps_told(p, slow) == told
    assert not starts(p, waiting)
    assert [(await view(p, job)).state for job in (slow, waiting)] == ["cancelled", "cancelled"]
    assert len([found for found in p.emitted(JobFailed) if found.data.job == slow]) == 1
    assert await refused(p, CancelJob(job=after)) == "training.ended"
    assert await refused(p, CancelJob(job="unknown")) == "request.not_found"


def test_png_jpeg_and_dicom_of_one_image_give_the_same_sample() -> None:
    pixels = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4, np.ones((8, 8), dtype=np.uint8))
    image = Image.fromarray(pixels)
    files = {}
    for kind in ("PNG", "JPEG"):
        made = io.BytesIO()
        image.save(made, kind, **({"quality": 95} if kind == "JPEG" else {}))
        files[kind] = made.getvalue()
    deep = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint16) * 257).save(deep, "PNG")
    dicom = reading.wrap(
        image,
        patient_id="",
        patient_name="",
        study_uid="1.2.3",
        series_uid="1.2.3.1",
        sop_uid="1.2.3.1.1",
        modality="MR",
        study_date="",
        extra={},
    )
    expected = pixels[::8, ::8][None]
    assert np.array_equal(plain.image(files["PNG"], 8, 1), expected)
    assert np.array_equal(plain.image(deep.getvalue(), 8, 1), expected)
    assert np.array_equal(plain.image(dicom, 8, 1), expected)
    assert np.abs(plain.image(files["JPEG"], 8, 1).astype(int) - expected).max() <= 4


def test_a_job_goes_on_with_the_pipeline_that_it_was_submitted_with(private: Path) -> None:
    data = pack(piped(private)).manifest.images()
    assert data.pipeline is not None
    how = Schedule(checkpoint_steps=5, batch_size=8, learning_rate=0.1, pipeline=data.pipeline.hash)
    check_pipeline(data, how)
    for other in (how.model_copy(update={"pipeline": "0" * 64}), how.model_copy(update={"pipeline": None})):
        with pytest.raises(Problem) as caught:
            check_pipeline(data, other)
        assert caught.value.code == "pipelines.hash"


def named(number: int, **facts: str) -> Item:
    return Item(item=f"item-{number}", object=ObjectRef(sha256="0" * 64, bytes=1), **facts)  # type: ignore[arg-type]


def test_about_a_fifth_is_held_out_and_an_item_keeps_its_side() -> None:
    assert 180 < sum(held_out(named(n)) for n in range(1000)) < 220
    # Pinned: with another rule, what earlier models were trained on would be measured on.
    assert [n for n in range(30) if held_out(named(n))] == [2, 8, 13, 14, 20]
    assert {held_out(named(n, group="one patient")) for n in range(30)} == {held_out(named(0, group="one patient"))}
    assert [held_out(named(2, split=split)) for split in ("train", "val", "test")] == [False, True, True], "as it was published"


@pytest.mark.parametrize("answer", [[[3, 0], [0, 2]], [[2, 0]], [[2, 0], [-1, 4]], [[2, 0], ["x", 3]], None, [[2], [3]]])
def test_counts_that_do_not_add_up_are_not_believed(answer: Any) -> None:
    assert check_counts([[1, 1], [0, 3]], [2, 3]) == [[1, 1], [0, 3]]
    with pytest.raises(Problem) as caught:
        check_counts(answer, [2, 3])
    assert caught.value.code == "training.answer"


def test_the_service_starts_without_a_framework() -> None:
    code = "import sys, medmesh_training.service; sys.exit(any(m in sys.modules for m in ('torch', 'mindspore', 'pydicom', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONWARNINGS": "ignore"}).returncode == 0
