"""Packages that fail at hospitals fail in a rehearsal first, each at its own stage and with its own reason."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.packages import tiny

from medmesh.canonical import parse
from medmesh.contracts.privacy import Privacy
from medmesh.contracts.training import RehearsalReport, Rehearsing
from medmesh.demo.practice import HEART
from medmesh.errors import Problem
from medmesh.federated.rehearsal import invented, pack, plan_of, rehearse
from medmesh.learning import isolation
from medmesh.learning.host import worker
from medmesh.learning.package import pack as pack_folder

pytestmark = pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")
HOW = Rehearsing(batch_size=8, learning_rate="0.5")
EVERY = ["read", "open", "initial", "train", "aggregate", "next", "evaluate", "personal"]


@pytest.fixture
def room(private: Path) -> Path:
    made = private / "rehearsal"
    made.mkdir(mode=0o711)
    return made


async def run(folder: Path, room: Path, code: str = "", how: Rehearsing = HOW, silence: float = 20.0) -> RehearsalReport:
    return await rehearse(tiny(folder, code), how, partial(worker, silence=silence), room)


def outcome(report: RehearsalReport) -> tuple[str, str]:
    """(the stage that went wrong, its code)."""
    last = report.stages[-1]
    return last.name, str(last.problem["code"]) if last.problem else ""


async def test_a_sound_package_passes_every_stage_and_what_it_needs_is_measured(private: Path, room: Path) -> None:
    told: list[str] = []
    package = tiny(private)
    report = await rehearse(package, HOW, worker, room, told.append)
    assert report.passed
    assert [stage.name for stage in report.stages] == told == EVERY
    assert report.package == package.digest
    assert report.memory_mib >= 20, "an interpreter with numpy"
    assert report.step_microseconds > 0
    assert report.update_bytes > 4 * 130
    assert RehearsalReport.model_validate(parse(pack(report))) == report


WRONG = {
    "a tensor that nobody agreed upon": (
        "\n_b = build\ndef build(size):\n    return {**_b(size), 'patients': np.zeros(9, np.float32)}\n",
        ("initial", "weights.foreign"),
    ),
    "another shape": (
        "\ndef build(size):\n    return {'weight': np.zeros((3, 2), np.float32), 'bias': np.zeros(2, np.float32)}\n",
        ("initial", "weights.signature"),
    ),
    "another type": (
        "\n_b = build\ndef build(size):\n    return {n: a.astype(np.float64) for n, a in _b(size).items()}\n",
        ("initial", "weights.signature"),
    ),
    "a tensor that grows while it trains": (
        "\ndef train(model, samples, schedule, on_step):\n    model['bias'] = np.zeros(len(samples.y), np.float32)\n    return 0.5\n",
        ("train", "weights.signature"),
    ),
    "numbers that are none": (
        "\ndef train(model, samples, schedule, on_step):\n    model['bias'] = model['bias'] * np.float32('nan')\n    return 0.5\n",
        ("train", "weights.not_finite"),
    ),
    "a loss that is none": ("\ndef train(model, samples, schedule, on_step):\n    return float('nan')\n", ("train", "training.answer")),
    "wrong from the second round on": (
        "\ndef train(model, samples, schedule, on_step):\n    if model['bias'].any():\n        raise RuntimeError\n"
        "    model['bias'] = model['bias'] + 1\n    return 0.5\n",
        ("next", "worker.failed"),
    ),
    "a mistake in its code": ("\nbuild = None\n", ("initial", "worker.failed")),
    "an import that is not there": ("\nimport numpy.absent\n", ("open", "worker.failed")),
    "more than it declares": ("\nimport os\n", ("read", "package.undeclared")),
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_would_fail_at_a_hospital_fails_here(private: Path, room: Path, what: str) -> None:
    code, wanted = WRONG[what]
    report = await run(private, room, code)
    assert outcome(report) == wanted
    assert not report.passed


async def test_silence_and_too_much_memory_are_found(private: Path, room: Path) -> None:
    stuck = "\nimport time\ndef train(model, samples, schedule, on_step):\n    time.sleep(60)\n"
    assert outcome(await run(private, room, stuck, silence=5.0)) == ("train", "worker.silent")
    greedy = "\ndef train(model, samples, schedule, on_step):\n    return float(np.ones(2**31, np.uint8).sum())\n"
    limits = isolation.Limits(memory_bytes=2**30)
    report = await rehearse(tiny(private, greedy), HOW, partial(worker, limits=limits), room / "greedy")
    assert outcome(report)[0] == "train"
    assert report.stages[-1].problem is not None
    assert "MemoryError" in str(report.stages[-1].problem)


async def test_what_an_algorithm_asks_of_a_package_is_asked_here(private: Path, room: Path) -> None:
    own = "\ndef train(model, samples, schedule, on_step):\n    return 0.5\n"
    prox = HOW.model_copy(update={"algorithm": "fedprox", "parameters": {"mu": "0.1"}})
    # The second round has something to be pulled to.
    assert outcome(await run(private, room, own, prox))[1] == "package.uncorrected"


async def test_algorithms_with_state_go_two_rounds(private: Path, room: Path) -> None:
    for algorithm in ("scaffold", "ditto", "fedamp"):
        place = room / algorithm
        place.mkdir(mode=0o711)
        parameters = {"fedamp": {}, "ditto": {}}.get(algorithm, {})
        report = await run(private, place, how=HOW.model_copy(update={"algorithm": algorithm, "parameters": parameters}))
        assert report.passed, report.stages[-1]


POSITIVE = """
def train(model, samples, schedule, on_step):
    if model['bias'].any() and not (model['bias'] > 0).all():
        raise RuntimeError
    model['bias'] = np.array([1000, 0.001], np.float32)
    return 0.5
"""


async def test_updates_travel_as_the_plan_says(private: Path, room: Path) -> None:
    """A number that must stay above 0 is rounded away beside a large one: only where the codec does so does the package fail."""
    for codec, wanted in {"none": ("personal", ""), "fp16": ("personal", ""), "int8": ("next", "worker.failed")}.items():
        place = room / codec
        place.mkdir(mode=0o711)
        assert outcome(await run(private, place, POSITIVE, HOW.model_copy(update={"codec": codec}))) == wanted, codec


async def test_numbers_that_do_not_fit_into_a_secure_sum_are_found(private: Path, room: Path) -> None:
    grown = "\ndef train(model, samples, schedule, on_step):\n    model['bias'] = np.full(2, 1e12, np.float32)\n    return 0.5\n"
    secure = HOW.model_copy(update={"secure_bits": 24})
    for name, code, how, wanted in (
        ("plain", grown, HOW, ("personal", "")),
        ("large", grown, secure, ("train", "secure.range")),
        ("fits", "", secure, ("personal", "")),
    ):
        place = room / name
        place.mkdir(mode=0o711)
        assert outcome(await run(private, place, code, how)) == wanted, name
    assert len(plan_of(tiny(private), secure).participants) >= 3


def test_as_many_hospitals_are_pretended_as_the_algorithm_needs(private: Path) -> None:
    package = tiny(private)
    assert len(plan_of(package, HOW).participants) == 2
    assert len(plan_of(package, HOW.model_copy(update={"algorithm": "krum", "parameters": {"tolerate": "1"}})).participants) >= 3
    with pytest.raises(Problem, match="no algorithm"):
        plan_of(package, HOW.model_copy(update={"algorithm": "nothing"}))


async def test_privacy_of_patients_is_rehearsed(private: Path, room: Path) -> None:
    privacy = Privacy(unit="patient", epsilon="100", delta="0.01", clip="1", noise="1", rate="0.5")
    assert (await run(private, room, how=HOW.model_copy(update={"privacy": privacy}))).passed


def test_invented_rows_and_images_fit_their_schema(private: Path) -> None:
    table = pack_folder(HEART).manifest.data
    made = invented(table, 30, 1)
    assert made.x.shape == (30, *table.shape)
    assert made.x.dtype == np.float32
    assert set(made.y) == set(range(len(table.classes)))
    images = invented(tiny(private).manifest.data, 30, 1)
    assert (images.x.shape, images.x.dtype) == ((30, 1, 8, 8), np.uint8)
    assert not np.array_equal(images.x, invented(tiny(private).manifest.data, 30, 2).x)
