"""What medmesh asks of a framework (`medmesh.learning.adapter.Adapter`), for lists of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medmesh.errors import Problem
from medmesh.learning.adapter import batches, float_input


class HandmadeAdapter:
    def build(self, module: Any, hyper: Mapping[str, Any], seed: int) -> list[Any]:
        layers: list[Any] = module.build(**hyper)
        return layers

    def tensors(self, model: list[Any]) -> dict[str, np.ndarray]:
        return {f"{place}.{name}": array for place, layer in enumerate(model) for name, array in (layer.weights | layer.kept).items()}

    def assign(self, model: list[Any], tensors: Mapping[str, np.ndarray]) -> None:
        for name, array in tensors.items():
            place, _, part = name.partition(".")
            layer = model[int(place)]
            (layer.weights if part in layer.weights else layer.kept)[part] = np.array(array)

    def train(self, module: Any, model: list[Any], samples: Any, schedule: Any, on_step: Any) -> float:
        speed = {id(layer): {name: np.zeros_like(array) for name, array in layer.weights.items()} for layer in model}
        losses = []
        for step, chosen in enumerate(batches(len(samples.y), schedule), start=1):
            x, y = float_input(samples.x[chosen]), samples.y[chosen]
            for layer in model:
                x = layer.forward(x, training=True)
            e = np.exp(x - x.max(axis=1, keepdims=True))
            p = e / e.sum(axis=1, keepdims=True)
            losses.append(float(-np.log(p[np.arange(len(y)), y] + 1e-12).mean()))
            g = p.copy()
            g[np.arange(len(y)), y] -= 1
            g /= np.float32(len(y))
            for layer in reversed(model):
                g = layer.backward(g)
                for name, gradient in layer.gradients.items():
                    speed[id(layer)][name] = np.float32(0.9) * speed[id(layer)][name] + gradient
                    layer.weights[name] = (layer.weights[name] - np.float32(schedule.learning_rate) * speed[id(layer)][name]).astype(
                        np.float32
                    )
            on_step(step, losses[-1])
        tail = losses[-max(1, len(losses) // 10) :]
        return sum(tail) / len(tail)

    def logits(self, model: list[Any], x: np.ndarray) -> np.ndarray:
        out = float_input(x)
        for layer in model:
            out = layer.forward(out, training=False)
        return out.astype(np.float32)

    def export_onnx(self, model: list[Any], example: np.ndarray, path: Any) -> dict[str, Any]:
        raise Problem("package.no_export", framework="handmade")


ADAPTER = HandmadeAdapter()
