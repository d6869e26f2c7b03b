"""Several processes in one hospital train what one process would: to the declared tolerance, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.frameworks import INTERPRETERS
from tests.packages import TINY, TWINS

from medmesh.errors import Problem
from medmesh.imaging.reading import wrap
from medmesh.learning import isolation, weights
from medmesh.learning.host import worker
from medmesh.learning.package import pack
from medmesh.simulation.data import Sample
from medmesh.simulation.run import simulate

DEMO = Path(__file__).parents[2] / "libs" / "medmesh" / "demo" / "package"
TOLERANCE = 5e-5
"""Of a weight, after ten steps in float32: sums are taken in another order, and nothing else differs."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind != "namespace", reason="several processes need a network of their own"),
]


def samples(folder: Path, size: int) -> Path:
    """47 of them: no batch and no share is even."""
    dice = np.random.default_rng(5)
    y = dice.integers(0, 2, 47)
    x = (dice.integers(0, 120, (47, 1, size, size)) + 100 * y[:, None, None, None]).astype(np.uint8)
    weights.save({"x": x, "y": y}, folder / "data")
    return folder / "data"


async def trained(
    source: Path, folder: Path, ranks: int, *, framework: str = "torch", size: int = 8, batch: int = 9, **more: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, np.ndarray]]:
    """(first weights, what the training answered, last weights)."""
    steps: list[int] = []
    python = INTERPRETERS.get(framework, INTERPRETERS["torch"])()
    async with worker(pack(source), folder / f"worker-{ranks}", framework=framework, python=python, ranks=ranks) as w:
        await w.call("initial", seed=3, out=str(w.folder / "first"))
        data, first = w.give(samples(folder, size), "data"), weights.load(w.folder / "first")
        schedule = {"steps": 10, "batch_size": batch, "learning_rate": 0.05, "seed": 7, **more}
        answer = await w.call(
            "train",
            progress=lambda step, total, loss: steps.append(step),
            weights=str(w.folder / "first"),
            data=data,
            out=str(w.folder / "out"),
            **schedule,
        )
        assert steps == list(range(1, 11))
        assert answer["processes"] == ranks, "or the comparison would be of one process with itself"
        return first, answer, weights.load(w.folder / "out")


def apart(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
    assert one.keys() == two.keys()
    return max(float(np.abs(one[name] - two[name]).max()) for name in one if one[name].dtype.kind == "f")


async def test_two_and_three_processes_of_pytorch_train_what_one_does(private: Path) -> None:
    """Uneven shares, batch normalisation with its statistics, and what a federated algorithm adds to each step."""
    first, alone, wanted = await trained(TWINS, private, 1, plain=True)
    assert apart(first, wanted) > 1000 * TOLERANCE
    for ranks in (2, 3):
        _, answer, found = await trained(TWINS, private, ranks, plain=True)
        assert apart(wanted, found) <= TOLERANCE
        assert abs(answer["loss"] - alone["loss"]) <= TOLERANCE
        assert answer["samples"] == alone["samples"] == 47, "the weight in the mean is the hospital's, not a process's"
        assert found["1.num_batches_tracked"] == 10


async def test_a_loss_that_looks_at_the_whole_batch_is_that_of_the_whole_batch(private: Path) -> None:
    """The demonstration's weighs classes by how often they are in the batch, and its images are mirrored at random."""
    _, alone, wanted = await trained(DEMO, private, 1, size=64)
    _, answer, found = await trained(DEMO, private, 2, size=64)
    assert apart(wanted, found) <= TOLERANCE
    assert abs(answer["loss"] - alone["loss"]) <= TOLERANCE


@pytest.mark.xdist_group("frameworks")
async def test_two_processes_of_mindspore_train_what_one_does(private: Path) -> None:
    first, alone, wanted = await trained(DEMO, private, 1, framework="mindspore", size=64)
    assert apart(first, wanted) > 1000 * TOLERANCE
    _, answer, found = await trained(DEMO, private, 2, framework="mindspore", size=64)
    assert apart(wanted, found) <= TOLERANCE
    assert abs(answer["loss"] - alone["loss"]) <= TOLERANCE


async def refusal(source: Path, folder: Path, **further: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        await trained(source, folder, 2, **further)
    return caught.value


def variation(folder: Path, code: str) -> Path:
    target = folder / "variation"
    shutil.copytree(TWINS, target, ignore=shutil.ignore_patterns("__pycache__"))
    with (target / "model.py").open("a") as file:
        file.write(code)
    return target


async def test_a_process_that_ends_badly_ends_them_all_and_is_named(private: Path) -> None:
    killed = "\nimport os, signal\ndef loss(logits, y):\n    if os.environ['RANK'] == '1':\n        os.kill(os.getpid(), signal.SIGKILL)\n"
    source = variation(private, killed + "    return logits.square().mean()\n")
    assert (await refusal(source, private)).params == {"rank": 1, "ranks": 2, "reason": "SIGKILL"}
    raising = variation(
        private / "second", "\nimport os\ndef loss(logits, y):\n    return 1 / (int(os.environ['RANK']) - 1) * logits.mean()\n"
    )
    found = await refusal(raising, private)
    assert (found.code, found.params["rank"]) == ("worker.rank", 1)
    assert str(found.params["reason"]).startswith("ZeroDivisionError at model.py:")


async def test_a_worker_goes_on_after_a_failed_attempt(private: Path) -> None:
    fails_once = (
        "\nimport os, pathlib\nmark = pathlib.Path(os.environ['HOME']) / 'failed'\n"
        "def loss(logits, y):\n    if os.environ.get('RANK') == '1' and not mark.exists():\n        mark.touch(); raise OSError\n"
        "    return logits.square().mean()\n"
    )
    async with worker(pack(variation(private, fails_once)), private / "worker", ranks=2) as w:
        await w.call("initial", seed=3, out=str(w.folder / "first"))
        data = w.give(samples(private, 8), "data")
        call = {"weights": str(w.folder / "first"), "data": data, "out": str(w.folder / "out")}
        schedule = {"steps": 2, "batch_size": 9, "learning_rate": 0.05, "seed": 7}
        with pytest.raises(Problem) as caught:
            await w.call("train", **call, **schedule)
        assert caught.value.code == "worker.rank"
        assert (await w.call("train", **call, **schedule))["samples"] == 47


async def test_what_several_processes_cannot_do_is_refused_before_anything_is_trained(private: Path) -> None:
    assert (await refusal(TWINS, private, batch=1)).code == "worker.ranks_few"
    assert (await refusal(TINY, private, framework="numpy")).code == "package.not_parallel"


@pytest.mark.xdist_group("frameworks")
async def test_mindspore_refuses_batch_normalisation_over_processes(private: Path) -> None:
    assert (await refusal(TWINS, private, framework="mindspore")).code == "package.batch_statistics"


async def test_the_aggregate_does_not_tell_in_how_many_processes_hospitals_trained(private: Path) -> None:
    """Two hospitals of different size, two rounds with the statistics of batch normalisation averaged."""
    shares = {"renji": [pretended(n) for n in range(30)], "xiehe": [pretended(n) for n in range(100, 113)]}
    rules: dict[str, Any] = {"rounds": 2, "local_steps": 5, "batch_size": 7, "learning_rate": "0.05", "baseline": True}
    counted = variation(
        private,
        "\nimport os\nfrom torch.nn.functional import cross_entropy\ndef loss(logits, y):\n"
        "    assert os.environ['WORLD_SIZE'] == '2'\n    return cross_entropy(logits, y)\n",
    )
    models, views = [], []
    for ranks, source in ((1, TWINS), (2, counted)):
        done = await simulate(source, shares, private / f"model-{ranks}", ranks=ranks, workers=1, **rules)
        assert done.view.state == "completed"
        models.append(weights.load(private / f"model-{ranks}"))
        views.append(done.view)
    assert apart(*models) <= TOLERANCE
    assert [[(a.hospital, a.samples) for a in r.answers] for r in views[0].rounds] == [
        [(a.hospital, a.samples) for a in r.answers] for r in views[1].rounds
    ]


def pretended(n: int) -> Sample:
    pixels = (np.random.default_rng(n).integers(0, 90, (8, 8)) + 130 * (n % 2)).astype(np.uint8)
    about = {"patient_id": "", "patient_name": "", "study_uid": "2.25.1", "series_uid": "2.25.2", "study_date": ""}
    data = wrap(Image.fromarray(pixels), sop_uid=f"2.25.{n + 1}", modality="MR", extra={}, **about)
    return Sample(data, ("none", "tumour")[n % 2], f"p{n}", n % 5 == 0, "MR")
