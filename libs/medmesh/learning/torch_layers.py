"""Builds declared layers (`medmesh.learning.layers`) with PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from medmesh.learning.layer_shapes import Shape, fitted

if TYPE_CHECKING:  # a worker does without pydantic
    from medmesh.learning.layers import Layer


def build(layers: Sequence[Layer], shape: Sequence[int], classes: int) -> nn.Sequential:
    """A model from samples to logits. Raises `Problem` (`package.layers`): see `fitted`."""
    # All are looked at before any is made: PyTorch says it in words of its own.
    return nn.Sequential(*[_layer(layer, now) for layer, now in list(fitted(layers, shape, classes))])


def _layer(layer: Layer, now: Shape) -> nn.Module:
    out, kernel = layer.out or 0, layer.kernel or 1
    match layer.kind:
        case "convolution":
            return nn.Conv2d(now[0], out, kernel, padding=kernel // 2)
        case "group_norm":
            return nn.GroupNorm(layer.groups or 1, now[0])
        case "relu":
            return nn.ReLU()
        case "max_pool":
            return nn.MaxPool2d(kernel)
        case "average":
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        case "flatten":
            return nn.Flatten()
        case "linear":
            return nn.Linear(now[0], out)
