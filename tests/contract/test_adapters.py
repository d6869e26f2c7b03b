"""What every framework must do so that hospitals with different ones train one model: each in its own interpreter, in the sandbox.

PyTorch is the oracle: the same weights give the same answers, the same steps lead to the same weights.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from tests.frameworks import INTERPRETERS
from tests.packages import TWINS, calm_twins

from medmesh.errors import Problem
from medmesh.learning import isolation, weights
from medmesh.learning.host import Worker, worker
from medmesh.learning.package import pack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("frameworks"),
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
FORWARD, TRAINED = 1e-5, 1e-4
OTHERS = [name for name in INTERPRETERS if name != "torch"]
Arrays = dict[str, np.ndarray]


async def opened(folder: Path, framework: str) -> AsyncIterator[Worker]:
    async with worker(pack(TWINS), folder / framework, framework=framework, python=INTERPRETERS[framework]()) as w:
        yield w


@pytest.fixture
async def torch(private: Path) -> AsyncIterator[Worker]:
    async for w in opened(private, "torch"):
        yield w


@pytest.fixture(params=INTERPRETERS)
async def anybody(private: Path, request: pytest.FixtureRequest) -> AsyncIterator[Worker]:
    async for w in opened(private, request.param):
        yield w


@pytest.fixture(params=OTHERS)
async def other(private: Path, request: pytest.FixtureRequest) -> AsyncIterator[Worker]:
    async for w in opened(private, request.param):
        yield w


def samples(folder: Path) -> Path:
    dice = np.random.default_rng(5)
    y = dice.integers(0, 2, 48)
    weights.save({"x": (dice.integers(0, 120, (48, 1, 8, 8)) + 100 * y[:, None, None, None]).astype(np.uint8), "y": y}, folder / "data")
    return folder / "data"


async def fresh(w: Worker, private: Path) -> Path:
    """First weights whose statistics are none of the usual zeros and ones."""
    await w.call("initial", seed=3, out=str(w.folder / "initial"))
    made, dice = weights.load(w.folder / "initial"), np.random.default_rng(6)
    made["1.running_mean"] = dice.normal(0, 0.3, 4).astype(np.float32)
    made["1.running_var"] = dice.uniform(0.5, 2, 4).astype(np.float32)
    made["1.num_batches_tracked"] = np.array(7, np.int64)
    weights.save(made, private / "base")
    return private / "base"


async def answers(w: Worker, base: Path, data: Path) -> np.ndarray:
    out = w.folder / "answers"
    await w.call("predict", weights=w.give(base, "base"), data=w.give(data, "data"), out=str(out))
    return weights.load(out)["logits"]


async def trained(w: Worker, base: Path, data: Path, *, steps: int = 5, out: str = "out", **further: object) -> Path:
    schedule = {"steps": steps, "batch_size": 16, "learning_rate": 0.05, "seed": 2**47 + 11, **further}
    await w.call("train", weights=w.give(base, "base"), data=w.give(data, "data"), out=str(w.folder / out), **schedule)
    return w.folder / out


def apart(one: Arrays, two: Arrays) -> float:
    """The largest difference; counters of batches are no weights, and not every framework counts."""
    assert one.keys() == two.keys()
    return max(float(np.abs(one[name] - two[name]).max()) for name in one if one[name].dtype.kind == "f")


async def test_the_same_weights_give_the_same_answers(torch: Worker, other: Worker, private: Path) -> None:
    base, data = await fresh(torch, private), samples(private)
    wanted = await answers(torch, base, data)
    assert np.ptp(wanted) > 0.1, "a model that says nothing would agree with everything"
    assert np.abs(await answers(other, base, data) - wanted).max() <= FORWARD


async def test_the_same_steps_lead_to_the_same_weights(torch: Worker, other: Worker, private: Path) -> None:
    base, data = await fresh(torch, private), samples(private)
    before = weights.load(base)
    one, two = weights.load(await trained(torch, base, data)), weights.load(await trained(other, base, data))
    assert apart(before, one) > 100 * TRAINED
    assert apart(one, two) <= TRAINED
    assert two["1.num_batches_tracked"] in (7, 12)


async def test_each_step_is_corrected_alike_or_the_training_is_refused(torch: Worker, other: Worker, private: Path) -> None:
    """FedProx, SCAFFOLD and others: `pull * (w - anchor) + shift` on every gradient, without momentum."""
    base, data = await fresh(torch, private), samples(private)
    dice = np.random.default_rng(9)
    floats = {name: array for name, array in weights.load(base).items() if array.dtype.kind == "f"}
    weights.save({name: array + dice.normal(0, 0.5, array.shape).astype(np.float32) for name, array in floats.items()}, private / "anchor")
    weights.save({name: dice.normal(0, 0.2, array.shape).astype(np.float32) for name, array in floats.items()}, private / "shift")

    async def corrected(w: Worker) -> Arrays:
        more = {name: w.give(private / name, name) for name in ("anchor", "shift")}
        return weights.load(await trained(w, base, data, pull=0.7, plain=True, **more))

    one = await corrected(torch)
    assert apart(one, weights.load(await trained(torch, base, data, plain=True))) > 100 * TRAINED, "the correction does something"
    if other.framework == "handmade":
        with pytest.raises(Problem) as caught:
            await corrected(other)
        assert caught.value.code == "package.uncorrected"
    else:
        assert apart(one, await corrected(other)) <= TRAINED


async def test_a_step_that_clips_by_patient_is_the_same_with_each_framework(private: Path) -> None:
    """DP-SGD where everybody is drawn and the noise is next to nothing; its size and its chances are asserted on each adapter alone."""
    package, data, found = calm_twins(private), samples(private), {}
    patients = np.repeat(np.arange(12), 4)
    weights.save({**weights.load(data), "patients": patients}, data)
    for framework in ("torch", "mindspore"):
        async with worker(package, private / framework, framework=framework, python=INTERPRETERS[framework]()) as w:
            if framework == "torch":
                await w.call("initial", seed=3, out=str(w.folder / "initial"))
                shutil.copy(w.folder / "initial", private / "base")
            for name, noise in (("one", 1e-9), ("noisy", 1.0), ("noisier", 1.0)):
                how = {"plain": True, "private": {"rate": 1.0, "clip": 0.05, "noise": noise}}
                found[framework, name] = weights.load(await trained(w, private / "base", data, **how))
    assert apart(weights.load(private / "base"), found["torch", "one"]) > 5 * TRAINED
    for framework in ("torch", "mindspore"):
        assert apart(found["torch", "one"], found[framework, "one"]) <= TRAINED
        assert apart(found[framework, "noisy"], found[framework, "noisier"]) > TRAINED, "no seed makes the noise"


async def test_statistics_of_patients_are_refused_where_patients_count(anybody: Worker, private: Path) -> None:
    data = samples(private)
    await anybody.call("initial", seed=3, out=str(anybody.folder / "initial"))
    with pytest.raises(Problem) as caught:
        await trained(anybody, anybody.folder / "initial", data, private={"rate": 1.0, "clip": 0.05, "noise": 1.0})
    assert caught.value.code == "privacy.package"
    reason = "BatchNorm2d" if anybody.framework != "handmade" else "does not clip by patient"
    assert reason in caught.value.document()["title"]


async def test_its_own_first_weights_are_the_tensors_that_were_agreed(anybody: Worker) -> None:
    await anybody.call("initial", seed=3, out=str(anybody.folder / "initial"))
    weights.check(anybody.folder / "initial", pack(TWINS).manifest.tensors)
    weights.check_finite(anybody.folder / "initial")


async def test_a_repeated_training_gives_the_same_bytes(other: Worker, torch: Worker, private: Path) -> None:
    base, data = await fresh(torch, private), samples(private)
    shutil.copy(await trained(other, base, data, out="one"), private / "one")
    assert (await trained(other, base, data, out="two")).read_bytes() == (private / "one").read_bytes()


async def test_evaluation_counts_every_sample_where_it_belongs(other: Worker, torch: Worker, private: Path) -> None:
    base, data = await fresh(torch, private), samples(private)
    learned = private / "learned"
    shutil.copy(await trained(other, base, data, steps=40), learned)
    found = await other.call("evaluate", data=str(other.folder / "data"), models=[other.give(base, "a"), other.give(learned, "b")])
    y = weights.load(data)["y"]
    for counts in found["counts"]:
        assert [sum(row) for row in counts] == np.bincount(y).tolist()
    assert sum(found["counts"][1][n][n] for n in (0, 1)) > 44
