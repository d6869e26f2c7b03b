"""Whether declared layers (`medmesh.learning.layers`) fit each other, whichever framework builds them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from medmesh.errors import Problem

if TYPE_CHECKING:  # a worker does without pydantic
    from medmesh.learning.layers import Layer

Shape = tuple[int, ...]


def fitted(layers: Sequence[Layer], shape: Sequence[int], classes: int) -> Iterator[tuple[Layer, Shape]]:
    """Each layer with the shape of what it is given, from samples of `shape` ([channels, size, size], or [width] of a table) to logits
    [classes]. Raises `Problem` (`package.layers`) where a layer does not fit what comes before it."""
    now = tuple(shape)
    for place, layer in enumerate(layers):
        yield layer, now
        now = _after(place, layer, now)
    if now != (classes,):
        raise Problem("package.layers", place=len(layers) - 1, reason=f"the last layer gives {list(now)}, and there are {classes} classes")


def _after(place: int, layer: Layer, now: Shape) -> Shape:
    """The shape that it gives."""
    out, kernel = layer.out or 0, layer.kernel or 1
    if layer.kind == "relu":
        return now
    if layer.kind == "flatten":
        return (math.prod(now),)
    if layer.kind == "linear":
        if len(now) != 1:
            raise Problem("package.layers", place=place, reason="a linear layer comes after flatten or average")
        return (out,)
    if len(now) != 3:
        raise Problem("package.layers", place=place, reason=f"{layer.kind} needs an image, not {list(now)}")
    channels, height, width = now
    match layer.kind:
        case "convolution":
            return out, height, width
        case "group_norm":
            if channels % (layer.groups or 1):
                raise Problem("package.layers", place=place, reason=f"{channels} channels do not make {layer.groups} groups")
            return now
        case "max_pool":
            if min(height, width) < kernel:
                raise Problem("package.layers", place=place, reason=f"an image of {height} x {width} is smaller than {kernel}")
            return channels, height // kernel, width // kernel
        case _:
            return (channels,)
