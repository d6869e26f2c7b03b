"""PyTorch. The package's module defines `build(**hyper) -> nn.Module` and may define `optimizer(parameters, learning_rate)`,
`loss(logits, y)` and `augment(x, generator)`; one thread and seeded generators make a run repeatable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from medmesh.errors import Problem
from medmesh.learning.adapter import Correction, OnStep, Samples, Schedule, batches, draws, float_input, private_step


class Alone:
    """The only process: the batch is its own."""

    def answers(self, own: torch.Tensor, mine: slice, count: int) -> torch.Tensor:
        """Those to the whole batch."""
        return own

    def add_gradients(self) -> None:
        """Those of the whole batch are there."""


class TorchAdapter:
    """See `medmesh.learning.adapter.Adapter`."""

    corrects = True
    parallel = True
    private = True

    def build(self, module: ModuleType, hyper: Mapping[str, Any], seed: int) -> torch.nn.Module:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        model: torch.nn.Module = module.build(**hyper)
        return model

    def tensors(self, model: torch.nn.Module) -> dict[str, np.ndarray]:
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}

    def assign(self, model: torch.nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
        model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()}, strict=True)

    def train(self, module: ModuleType, model: torch.nn.Module, samples: Samples, schedule: Schedule, on_step: OnStep) -> float:
        torch.manual_seed(schedule.seed)
        generator = torch.Generator().manual_seed(schedule.seed)
        make = getattr(module, "optimizer", lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.9))
        loss_of = getattr(module, "loss", torch.nn.functional.cross_entropy)
        augment = getattr(module, "augment", lambda x, generator: x)
        if schedule.plain:
            optimizer = torch.optim.SGD(model.parameters(), lr=schedule.learning_rate)
        else:
            optimizer = make(model.parameters(), schedule.learning_rate)
        correct = _correction(model, schedule.correction)
        group = Alone()
        if schedule.ranks > 1:
            from medmesh.learning.torch_ranks import Group

            group = Group(model)
        model.train()
        losses: list[float] = []

        def gradients(chosen: np.ndarray) -> float:
            mine, y = schedule.mine(len(chosen)), torch.from_numpy(samples.y[chosen])
            # Drawn for the whole batch: what happens to a sample does not depend on which process has it.
            x = augment(torch.from_numpy(float_input(samples.x[chosen])), generator)
            loss = loss_of(group.answers(model(x[mine]), mine, len(y)), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            group.add_gradients()
            return float(loss.detach())

        if schedule.private is not None:
            _refuse_statistics(model)
        steps = batches(len(samples.y), schedule) if schedule.private is None else draws(samples, schedule)
        for step, chosen in enumerate(steps, start=1):
            losses.append(gradients(chosen) if schedule.private is None else _private(model, gradients, chosen, schedule))
            correct()
            optimizer.step()
            on_step(step, losses[-1])
        tail = losses[-max(1, len(losses) // 10) :]
        return sum(tail) / len(tail)

    def logits(self, model: torch.nn.Module, x: np.ndarray) -> np.ndarray:
        model.eval()
        with torch.inference_mode():
            parts = [model(torch.from_numpy(float_input(x[i : i + 256]))).numpy() for i in range(0, len(x), 256)]
        return np.concatenate(parts).astype(np.float32)

    def export_onnx(self, model: torch.nn.Module, example: np.ndarray, path: Path) -> dict[str, Any]:
        model.eval()
        inputs = (torch.from_numpy(float_input(example)),)
        batch = {"image": {0: torch.export.Dim("batch", min=1, max=4096)}}
        torch.onnx.export(
            _Named(model),
            inputs,
            str(path),
            dynamo=True,
            opset_version=18,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=batch,
            external_data=False,
            verbose=False,
        )
        return {"exporter": "torch.onnx dynamo", "torch": torch.__version__}


def _refuse_statistics(model: torch.nn.Module) -> None:
    """Raise `Problem` for layers that mix samples, or remember them beside the weights that get noise."""
    for name, layer in model.named_modules():
        kinds = torch.nn.modules.batchnorm
        if isinstance(layer, kinds._BatchNorm) or (isinstance(layer, kinds._NormBase) and layer.track_running_stats):
            raise Problem("privacy.package", reason=f"{type(layer).__name__} {name!r} keeps statistics of patients; GroupNorm does not")


def _private(model: torch.nn.Module, gradients: Callable[[np.ndarray], float], patients: Sequence[np.ndarray], schedule: Schedule) -> float:
    """Leave the private gradient of a step in the parameters; answers the mean loss."""
    trained = [p for p in model.parameters() if p.requires_grad]

    def of(patient: np.ndarray) -> tuple[float, list[np.ndarray]]:
        loss = gradients(patient)
        return loss, [np.zeros(tuple(p.shape)) if p.grad is None else p.grad.numpy() for p in trained]

    loss, found = private_step(patients, [p.shape for p in trained], of, schedule)
    for parameter, gradient in zip(trained, found, strict=True):
        parameter.grad = torch.from_numpy(gradient).to(parameter.dtype)
    return loss


def _correction(model: torch.nn.Module, correction: Correction | None) -> Callable[[], None]:
    """Adds a correction to the gradients that are there."""
    if correction is None:
        return lambda: None
    anchors = {name: torch.from_numpy(array) for name, array in correction.anchor.items()}
    shifts = {name: torch.from_numpy(array) for name, array in correction.shift.items()}
    trained = [(p, anchors.get(name), shifts.get(name)) for name, p in model.named_parameters() if p.requires_grad]

    def correct() -> None:
        for parameter, anchor, shift in trained:
            if parameter.grad is None:
                continue
            if anchor is not None:
                parameter.grad.add_(parameter.detach() - anchor, alpha=correction.pull)
            if shift is not None:
                parameter.grad.add_(shift)

    return correct


class _Named(torch.nn.Module):
    """Gives the input its name, whatever the package calls it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(image)
        return result


ADAPTER = TorchAdapter()
