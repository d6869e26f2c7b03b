"""What a framework must offer; adapters are found by entry point, so that a framework of your own plugs in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from medmesh.errors import Problem

OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class Samples:
    """`x` uint8 [samples, channels, size, size] (0..255 stands for 0..1) or, of a table, float32 [samples, width]; `y` int64 [samples]."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Correction:
    """What a federated algorithm adds to the gradient of each step: `pull * (w - anchor[name]) + shift[name]`, for each trained tensor w
    of that name; a tensor that is in neither mapping is not corrected."""

    pull: float
    anchor: Mapping[str, np.ndarray]
    shift: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Schedule:
    """One hospital's part of a round. `plain` asks for gradient descent without momentum, whatever the package's own optimiser is."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    correction: Correction | None = None
    plain: bool = False
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
        """Its weights under canonical names: those of PyTorch's twin, in its layouts, so that frameworks can train one model together."""

    def assign(self, model: Any, tensors: Mapping[str, np.ndarray]) -> None:
        """Replace its weights."""

    def train(self, module: ModuleType, model: Any, samples: Samples, schedule: Schedule, on_step: OnStep) -> float:
        """Train in place; answers the mean loss of the last tenth of the steps. The same inputs give the same weights.

        An adapter that heeds the schedule's `correction` and `plain` says so by an attribute `corrects = True`; without it, only
        algorithms that ask for neither run.

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
    for entry in entry_points(group="medmesh.frameworks", name=framework):
        plugged: Adapter = entry.load()
        return plugged
    raise Problem("package.framework", framework=framework)


def float_input(x: np.ndarray) -> np.ndarray:
    """What models see: images as float32 in 0..1, rows of a table as they are."""
    return x if x.dtype == np.float32 else x.astype(np.float32) / np.float32(255)


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
