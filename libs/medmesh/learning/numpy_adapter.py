"""Plain numpy: softmax regression on the pixels. It shows how small an adapter is, and lets a node without torch take part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from medmesh.errors import Problem
from medmesh.learning.adapter import Correction, OnStep, Samples, Schedule, batches, draws, float_input, private_step

BATCH = 256
"""Samples that are answered at once."""


class NumpyAdapter:
    """See `medmesh.learning.adapter.Adapter`. `module.build(**hyper)` answers {"weight": [features, classes], "bias": [classes]}, or any
    arrays where the module has its own `train(model, samples, schedule, on_step) -> loss`."""

    corrects = True
    private = True

    def build(self, module: ModuleType, hyper: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
        model: dict[str, np.ndarray] = module.build(**hyper)
        return model

    def tensors(self, model: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(model)

    def assign(self, model: dict[str, np.ndarray], tensors: Mapping[str, np.ndarray]) -> None:
        for name in model:
            model[name] = tensors[name]

    def train(self, module: ModuleType, model: dict[str, np.ndarray], samples: Samples, schedule: Schedule, on_step: OnStep) -> float:
        if own := getattr(module, "train", None):
            return float(own(model, samples, schedule, on_step))
        losses = []
        steps = batches(len(samples.y), schedule) if schedule.private is None else draws(samples, schedule)
        for step, chosen in enumerate(steps, start=1):
            loss, gradients = (_gradients if schedule.private is None else _private)(model, samples, chosen, schedule)
            losses.append(loss)
            for name, gradient in gradients.items():
                model[name] = model[name] - np.float32(schedule.learning_rate) * corrected(name, model[name], gradient, schedule.correction)
            on_step(step, losses[-1])
        tail = losses[-max(1, len(losses) // 10) :]
        return sum(tail) / len(tail)

    def logits(self, model: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        parts = [float_input(x[at : at + BATCH]).reshape(len(x[at : at + BATCH]), -1) for at in range(0, max(1, len(x)), BATCH)]
        return np.concatenate([part @ model["weight"] + model["bias"] for part in parts]).astype(np.float32)

    def export_onnx(self, model: dict[str, np.ndarray], example: np.ndarray, path: Path) -> dict[str, Any]:
        raise Problem("package.no_export", framework="numpy")


def _gradients(
    model: dict[str, np.ndarray], samples: Samples, chosen: np.ndarray, schedule: Schedule
) -> tuple[float, dict[str, np.ndarray]]:
    x, y = float_input(samples.x[chosen]).reshape(len(chosen), -1), samples.y[chosen]
    p = _softmax(x @ model["weight"] + model["bias"])
    loss = float(-np.log(p[np.arange(len(y)), y] + 1e-9).mean())
    p[np.arange(len(y)), y] -= 1
    p /= np.float32(len(y))
    return loss, {"weight": x.T @ p, "bias": p.sum(axis=0)}


def _private(
    model: dict[str, np.ndarray], samples: Samples, patients: Sequence[np.ndarray], schedule: Schedule
) -> tuple[float, dict[str, np.ndarray]]:
    def of(patient: np.ndarray) -> tuple[float, list[np.ndarray]]:
        loss, gradients = _gradients(model, samples, patient, schedule)
        return loss, [gradients[name] for name in names]

    names = ("weight", "bias")
    loss, found = private_step(patients, [model[name].shape for name in names], of, schedule)
    return loss, dict(zip(names, found, strict=True))


def corrected(name: str, w: np.ndarray, gradient: np.ndarray, correction: Correction | None) -> np.ndarray:
    """A gradient with what the federated algorithm adds to it."""
    if correction is not None and name in correction.anchor:
        gradient = gradient + np.float32(correction.pull) * (w - correction.anchor[name])
    if correction is not None and name in correction.shift:
        gradient = gradient + correction.shift[name]
    return gradient


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    result: np.ndarray = e / e.sum(axis=1, keepdims=True)
    return result


ADAPTER = NumpyAdapter()
