"""Plain numpy: softmax regression on the pixels. It shows how small an adapter is, and lets a node without torch take part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from medmesh.errors import Problem
from medmesh.learning.adapter import Correction, OnStep, Samples, Schedule, batches, float_input


class NumpyAdapter:
    """See `medmesh.learning.adapter.Adapter`. `module.build(**hyper)` answers {"weight": [features, classes], "bias": [classes]}, or any
    arrays where the module has its own `train(model, samples, schedule, on_step) -> loss`."""

    corrects = True

    def build(self, module: ModuleType, hyper: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
        model: dict[str, np.ndarray] = module.build(**hyper)
        return model

    def tensors(self, model: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in model.items()}

    def assign(self, model: dict[str, np.ndarray], tensors: Mapping[str, np.ndarray]) -> None:
        for name in model:
            model[name] = np.array(tensors[name])

    def train(self, module: ModuleType, model: dict[str, np.ndarray], samples: Samples, schedule: Schedule, on_step: OnStep) -> float:
        if own := getattr(module, "train", None):
            return float(own(model, samples, schedule, on_step))
        losses = []
        for step, chosen in enumerate(batches(len(samples.y), schedule), start=1):
            x, y = float_input(samples.x[chosen]).reshape(len(chosen), -1), samples.y[chosen]
            p = _softmax(x @ model["weight"] + model["bias"])
            losses.append(float(-np.log(p[np.arange(len(y)), y] + 1e-9).mean()))
            p[np.arange(len(y)), y] -= 1
            p /= np.float32(len(y))
            gradients = {"weight": x.T @ p, "bias": p.sum(axis=0)}
            for name, gradient in gradients.items():
                model[name] = model[name] - np.float32(schedule.learning_rate) * corrected(name, model[name], gradient, schedule.correction)
            on_step(step, losses[-1])
        tail = losses[-max(1, len(losses) // 10) :]
        return sum(tail) / len(tail)

    def logits(self, model: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        return (float_input(x).reshape(len(x), -1) @ model["weight"] + model["bias"]).astype(np.float32)

    def export_onnx(self, model: dict[str, np.ndarray], example: np.ndarray, path: Path) -> dict[str, Any]:
        raise Problem("package.no_export", framework="numpy")


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
