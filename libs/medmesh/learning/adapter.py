"""What a framework must offer; adapters are found by entry point, so that a framework of your own plugs in."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from medmesh.errors import Problem
from medmesh.learning.noise import normal

OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class Samples:
    """`x` uint8 images [samples, channels, size, size] (0..255 stands for 0..1), float32 rows of a table [samples, width], float32 volumes
    [samples, 1, x, y, z], or float32 signals [samples, channels, length], as `medmesh.contracts.data` says; `y` int64 [samples]; `patients`
    int64 [samples], equal for samples of one patient, where they are known.

    In a worker `x` lies on the disk and cannot be written to: index it by batches, and no more than a batch is in memory."""

    x: np.ndarray
    y: np.ndarray
    patients: np.ndarray | None = None


@dataclass(frozen=True)
class Correction:
    """What a federated algorithm adds to the gradient of each step: `pull * (w - anchor[name]) + shift[name]`, for each trained tensor w
    of that name; a tensor that is in neither mapping is not corrected."""

    pull: float
    anchor: Mapping[str, np.ndarray]
    shift: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Private:
    """DP-SGD with a patient as the unit (`medmesh.contracts.privacy`): who is in a step by chance, how much each counts, how much noise."""

    rate: float
    clip: float
    noise: float


@dataclass(frozen=True)
class Schedule:
    """One hospital's part of a round. `plain` asks for gradient descent without momentum, whatever the package's own optimiser is."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    correction: Correction | None = None
    plain: bool = False
    private: Private | None = None
    rank: int = 0
    ranks: int = 1
    """Of the processes that train together (`medmesh.learning.ranks`): each takes its part of every batch."""

    def mine(self, count: int) -> slice:
        """Which of a batch's `count` samples are this process's."""
        return slice(count * self.rank // self.ranks, count * (self.rank + 1) // self.ranks)


class Adapter(Protocol):
    """`module` is the package's entry module, `hyper` the manifest's table."""

    def build(self, module: ModuleType, hyper: Mapping[str, Any], seed: int) -> Any:
        """A fresh model with seeded weights."""

    def tensors(self, model: Any) -> dict[str, np.ndarray]:
        """Its weights under canonical names: those of PyTorch's twin, in its layouts, so that frameworks can train one model together.
        They may be the model's own arrays, which hold until it is trained on."""

    def assign(self, model: Any, tensors: Mapping[str, np.ndarray]) -> None:
        """Replace its weights. The arrays are given away: the model may keep them and train in them."""

    def train(self, module: ModuleType, model: Any, samples: Samples, schedule: Schedule, on_step: OnStep) -> float:
        """Train in place; answers the mean loss of the last tenth of the steps. The same inputs give the same weights.

        An adapter that heeds the schedule's `correction` and `plain` says so by an attribute `corrects = True`; without it, only
        algorithms that ask for neither run. One that heeds `private` says so by `private = True`; `draws` and
        `private_step` do it.

        One that trains in several processes says so by `parallel = True`: of each batch it answers `schedule.mine`, all have all answers
        and the one loss of the whole batch, and before a step they add up what each finds of its gradient. Processes find each other as
        torchrun's do, by `MASTER_ADDR`, `MASTER_PORT`, `RANK` and `WORLD_SIZE` (MindSpore's as msrun's). All end with the same weights,
        and only the first one's are taken.
        """

    def logits(self, model: Any, x: np.ndarray) -> np.ndarray:
        """float32 [samples, classes] for an x as in `Samples`."""

    def export_onnx(self, model: Any, example: np.ndarray, path: Path) -> dict[str, Any]:
        """Write an ONNX file with a free batch dimension; answers what tools made it."""


_OWN = {
    "torch": "medmesh.learning.torch_adapter",
    "mindspore": "medmesh.learning.mindspore_adapter",
    "numpy": "medmesh.learning.numpy_adapter",
}


def adapter(framework: str) -> Adapter:
    """The adapter of a framework. Raises `Problem` (`package.framework`)."""
    import importlib

    if framework in _OWN:
        try:
            found: Adapter = importlib.import_module(_OWN[framework]).ADAPTER
        except ModuleNotFoundError:
            raise Problem("package.framework", framework=framework) from None
        return found
    from importlib.metadata import entry_points

    for entry in entry_points(group="medmesh.frameworks", name=framework):
        plugged: Adapter = entry.load()
        return plugged
    raise Problem("package.framework", framework=framework)


def float_input(x: np.ndarray) -> np.ndarray:
    """What models see: images as float32 in 0..1, everything else as it is; in memory, also what lay on the disk."""
    made = np.array(x, dtype=np.float32)
    return made if x.dtype == np.float32 else made / np.float32(255)


def draws(samples: Samples, schedule: Schedule) -> Iterator[list[np.ndarray]]:
    """One list a step: the samples' indices of each patient whom chance put into it (Poisson sampling; a step may have none). What is
    drawn is secret, so it comes from the operating system and from no seed."""
    assert schedule.private is not None
    names = np.arange(len(samples.y)) if samples.patients is None else samples.patients
    patients = [np.flatnonzero(names == name) for name in np.unique(names)]
    generator = np.random.Generator(np.random.PCG64(secrets.randbits(128)))
    for _ in range(schedule.steps):
        chosen = generator.random(len(patients)) < schedule.private.rate
        yield [patients[place] for place in np.flatnonzero(chosen)]


def clipped(gradients: Sequence[np.ndarray], clip: float) -> list[np.ndarray]:
    """One patient's gradients, float64, scaled so that all together have an L2 norm of at most `clip`."""
    size = math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients))
    if not math.isfinite(size):
        raise Problem("weights.not_finite", tensor="*")
    scale = min(1.0, clip / size) if size > 0 else 1.0
    return [g.astype(np.float64) * scale for g in gradients]


def private_step(
    patients: Sequence[np.ndarray],
    shapes: Sequence[Sequence[int]],
    gradients: Callable[[np.ndarray], tuple[float, Sequence[np.ndarray]]],
    schedule: Schedule,
) -> tuple[float, list[np.ndarray]]:
    """The mean loss and the float32 gradients, of these shapes, of a step with these patients (`draws`): DP-SGD (Abadi et al., CCS 2016).

    `gradients` answers the loss of some samples and its gradients. One patient at a time, so that any model and loss do whose samples it
    does not mix with others'."""
    assert schedule.private is not None
    clip, deviation = schedule.private.clip, schedule.private.noise * schedule.private.clip
    totals, losses = [np.zeros(tuple(shape)) for shape in shapes], [0.0]
    for patient in patients:
        loss, parts = gradients(patient)
        losses.append(loss)
        for total, part in zip(totals, clipped(parts, clip), strict=True):
            total += part
    made = [(total + deviation * normal(total.size).reshape(total.shape)) / schedule.batch_size for total in totals]
    return sum(losses) / max(1, len(patients)), [one.astype(np.float32) for one in made]


def batches(count: int, schedule: Schedule) -> Any:
    """Index arrays, one a step: epochs of permutations drawn from the seed."""
    generator = np.random.default_rng(schedule.seed)
    size = min(schedule.batch_size, count)
    order, place = generator.permutation(count), 0
    for _ in range(schedule.steps):
        if place + size > count:
            order, place = generator.permutation(count), 0
        yield order[place : place + size]
        place += size
