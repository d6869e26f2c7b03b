"""Builds declared layers (`medmesh.learning.layers`) with PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from medmesh.errors import Problem

if TYPE_CHECKING:  # a worker does without pydantic
    from medmesh.learning.layers import Layer


def build(layers: Sequence[Layer], shape: Sequence[int], classes: int) -> nn.Sequential:
    """A model from samples of `shape` ([channels, size, size], or [width] of a table) to logits [classes]. Raises `Problem`
    (`package.layers`) where a layer does not fit what comes before it."""
    made: list[nn.Module] = []
    now = tuple(shape)
    for place, layer in enumerate(layers):
        module, now = _layer(place, layer, now)
        made.append(module)
    if now != (classes,):
        raise Problem("package.layers", place=len(layers) - 1, reason=f"the last layer gives {list(now)}, and there are {classes} classes")
    return nn.Sequential(*made)


def _layer(place: int, layer: Layer, now: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    """(the module, the shape it gives)."""
    out, kernel = layer.out or 0, layer.kernel or 0
    if layer.kind == "relu":
        return nn.ReLU(), now
    if layer.kind == "flatten":
        return nn.Flatten(), (math.prod(now),)
    if layer.kind == "linear":
        if len(now) != 1:
            raise Problem("package.layers", place=place, reason="a linear layer comes after flatten or average")
        return nn.Linear(now[0], out), (out,)
    if len(now) != 3:
        raise Problem("package.layers", place=place, reason=f"{layer.kind} needs an image, not {list(now)}")
    channels, height, width = now
    match layer.kind:
        case "convolution":
            return nn.Conv2d(channels, out, kernel, padding=kernel // 2), (out, height, width)
        case "group_norm":
            if channels % (layer.groups or 1):
                raise Problem("package.layers", place=place, reason=f"{channels} channels do not make {layer.groups} groups")
            return nn.GroupNorm(layer.groups or 1, channels), now
        case "max_pool":
            if min(height, width) < kernel:
                raise Problem("package.layers", place=place, reason=f"an image of {height} x {width} is smaller than {kernel}")
            return nn.MaxPool2d(kernel), (channels, height // kernel, width // kernel)
        case _:
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (channels,)
