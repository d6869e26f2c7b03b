"""MindSpore. The package's module defines `build(**hyper) -> nn.Cell` and may define `optimizer(parameters, learning_rate)`,
`loss(logits, y)` and `augment(x, generator)` on numpy arrays; one thread and seeds make a run repeatable.

Weights leave and enter under canonical names: those of the twin in PyTorch, with its layouts. Convolutions, dense layers and transposed
convolutions have both alike; normalisations and embeddings name their parameters otherwise; counters of batches, which MindSpore does
not keep, are carried along unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from medmesh.errors import Problem
from medmesh.learning.adapter import Correction, OnStep, Samples, Schedule, batches, draws, float_input, private_step

_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_EMBEDDING = {"embedding_table": "weight"}
_COUNTER = "num_batches_tracked"
_SEEDS = 2**32
"""Ours are longer."""


@dataclass
class Model:
    """A network and the whole numbers that travel with its weights."""

    net: Any
    carried: dict[str, np.ndarray] = field(default_factory=dict)


class MindSporeAdapter:
    """See `medmesh.learning.adapter.Adapter`."""

    corrects = True
    parallel = True
    private = True

    def build(self, module: ModuleType, hyper: Mapping[str, Any], seed: int) -> Model:
        _start()
        ms.set_seed(seed % _SEEDS)
        model = Model(module.build(**hyper))
        counters = (name for name, cell in _cells(model.net) if _is_batch_norm(cell))
        model.carried = {f"{name}.{_COUNTER}": np.zeros((), np.int64) for name in counters}
        return model

    def tensors(self, model: Model) -> dict[str, np.ndarray]:
        return {name: parameter.asnumpy().copy() for name, parameter in _parameters(model.net)} | model.carried

    def assign(self, model: Model, tensors: Mapping[str, np.ndarray]) -> None:
        known = dict(_parameters(model.net))
        for name in sorted(known.keys() | tensors.keys()):
            if name not in tensors:
                raise Problem("weights.missing", tensor=name)
            if name in known:
                known[name].set_data(ms.Tensor(np.ascontiguousarray(tensors[name])))
            elif tensors[name].dtype.kind in "iu":
                model.carried[name] = np.array(tensors[name])
            else:
                raise Problem("weights.foreign", tensor=name[:120])

    def train(self, module: ModuleType, model: Model, samples: Samples, schedule: Schedule, on_step: OnStep) -> float:
        ms.set_seed(schedule.seed % _SEEDS)
        generator = np.random.default_rng(schedule.seed)
        make = getattr(module, "optimizer", lambda parameters, rate: nn.Momentum(parameters, rate, momentum=0.9))
        loss_of = getattr(module, "loss", nn.CrossEntropyLoss())
        augment = getattr(module, "augment", lambda x, generator: x)
        net = model.net
        if schedule.plain:
            optimizer = nn.SGD(net.trainable_params(), schedule.learning_rate)
        else:
            optimizer = make(net.trainable_params(), schedule.learning_rate)
        correct = _correction(net, optimizer.parameters, schedule.correction)
        net.set_train(True)
        step = ms.value_and_grad(lambda x, y: loss_of(net(x), y), None, optimizer.parameters)
        if schedule.ranks > 1:
            step = _joined(net, loss_of, optimizer.parameters, schedule)
        losses: list[float] = []

        def gradients(chosen: np.ndarray) -> tuple[float, Sequence[Any]]:
            # Drawn for the whole batch: what happens to a sample does not depend on which process has it.
            x = augment(float_input(samples.x[chosen]), generator)[schedule.mine(len(chosen))]
            loss, found = step(ms.Tensor(np.ascontiguousarray(x)), ms.Tensor(samples.y[chosen].astype(np.int32)))
            return float(loss.asnumpy()), found

        if schedule.private is not None:
            _refuse_statistics(net)
        steps = batches(len(samples.y), schedule) if schedule.private is None else draws(samples, schedule)
        for place, chosen in enumerate(steps, start=1):
            loss, found = gradients(chosen) if schedule.private is None else _private(optimizer.parameters, gradients, chosen, schedule)
            optimizer(correct(tuple(found)))
            losses.append(loss)
            on_step(place, losses[-1])
        tail = losses[-max(1, len(losses) // 10) :]
        return sum(tail) / len(tail)

    def logits(self, model: Model, x: np.ndarray) -> np.ndarray:
        model.net.set_train(False)
        parts = [model.net(ms.Tensor(float_input(x[i : i + 256]))).asnumpy() for i in range(0, len(x), 256)]
        return np.concatenate(parts).astype(np.float32)

    def export_onnx(self, model: Model, example: np.ndarray, path: Path) -> dict[str, Any]:
        import mindspore.onnx

        model.net.set_train(False)
        # It appends the suffix to a name without one, and exports a network once: the worker makes a fresh one for each export.
        made = path.with_suffix(".onnx")
        names = {"input_names": ["image"], "output_names": ["logits"], "dynamic_axes": {"image": {0: "batch"}, "logits": {0: "batch"}}}
        mindspore.onnx.export(model.net, ms.Tensor(float_input(example)), file_name=str(made), **names)
        made.replace(path)
        return {"exporter": "mindspore.onnx", "mindspore": ms.__version__}


@cache
def _start() -> None:
    """Once: a device cannot be chosen again after it was used."""
    ms.set_device("CPU")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.set_deterministic(True)


def _cells(net: Any) -> Iterator[tuple[str, Any]]:
    """Layers by canonical name: three-dimensional batch normalisation is a layer inside a layer here."""
    for name, cell in net.cells_and_names():
        yield name.removesuffix(".bn2d"), cell


def _is_batch_norm(cell: Any) -> bool:
    return "moving_mean" in cell._params


def _parameters(net: Any) -> Iterator[tuple[str, Any]]:
    """Parameters by canonical name."""
    for name, cell in _cells(net):
        renamed = {**_NORM, **_EMBEDDING}
        for attribute, parameter in cell._params.items():
            if parameter is not None:
                own = renamed.get(attribute, attribute)
                yield f"{name}.{own}" if name else own, parameter


def _refuse_statistics(net: Any) -> None:
    """Raise `Problem` for layers that mix samples, or remember them beside the weights that get noise."""
    for name, cell in _cells(net):
        if _is_batch_norm(cell):
            raise Problem("privacy.package", reason=f"{type(cell).__name__} {name!r} keeps statistics of patients; GroupNorm does not")


def _private(
    trained: Sequence[Any],
    gradients: Callable[[np.ndarray], tuple[float, Sequence[Any]]],
    patients: Sequence[np.ndarray],
    schedule: Schedule,
) -> tuple[float, list[Any]]:
    """The mean loss and the private gradients of a step."""

    def of(patient: np.ndarray) -> tuple[float, list[np.ndarray]]:
        loss, found = gradients(patient)
        return loss, [one.asnumpy() for one in found]

    loss, made = private_step(patients, [parameter.shape for parameter in trained], of, schedule)
    return loss, [ms.Tensor(one) for one in made]


def _joined(net: Any, loss_of: Any, trained: Sequence[Any], schedule: Schedule) -> Callable[[Any, Any], tuple[Any, tuple[Any, ...]]]:
    """Find the other processes, as msrun's do. The answer takes the own images and all labels, and gives loss and gradients of the whole
    batch: each computes the loss of all answers, in which it can change its own only, and what they find adds up. Raises `Problem`
    (`package.batch_statistics`): on a CPU MindSpore has no batch normalisation over several processes."""
    if any(_is_batch_norm(cell) for _, cell in _cells(net)):
        raise Problem("package.batch_statistics", framework="mindspore")
    ms.communication.init()
    add = ms.ops.AllReduce()

    def everybody(x: Any, before: Any, after: Any, y: Any) -> Any:
        return loss_of(ms.ops.cat([before, net(x), after]), y)

    differentiate = ms.value_and_grad(everybody, None, trained)

    def step(x: Any, y: Any) -> tuple[Any, tuple[Any, ...]]:
        mine, own = schedule.mine(len(y)), net(x).asnumpy()
        padded = np.zeros((len(y), *own.shape[1:]), own.dtype)
        padded[mine] = own
        found = add(ms.Tensor(padded))
        loss, gradients = differentiate(x, found[: mine.start], found[mine.stop :], y)
        return loss, tuple(add(gradient) for gradient in gradients)

    return step


def schedule_ranks() -> None:
    """The process beside the ranks through which they find each other; returns when they are done."""
    _start()
    ms.communication.init()


def _correction(net: Any, trained: Sequence[Any], correction: Correction | None) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Adds a correction to the gradients of `trained`."""
    if correction is None:
        return lambda gradients: gradients
    names = {id(parameter): name for name, parameter in _parameters(net)}
    anchors = [_tensor(correction.anchor.get(names[id(parameter)])) for parameter in trained]
    shifts = [_tensor(correction.shift.get(names[id(parameter)])) for parameter in trained]

    def correct(gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        made = []
        for gradient, parameter, anchor, shift in zip(gradients, trained, anchors, shifts, strict=True):
            if anchor is not None:
                gradient = gradient + correction.pull * (parameter.value() - anchor)
            made.append(gradient if shift is None else gradient + shift)
        return tuple(made)

    return correct


def _tensor(array: np.ndarray | None) -> Any:
    return None if array is None else ms.Tensor(np.ascontiguousarray(array))


ADAPTER = MindSporeAdapter()
