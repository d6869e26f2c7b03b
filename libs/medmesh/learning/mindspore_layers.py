"""Builds declared layers (`medmesh.learning.layers`) with MindSpore: the twins of `torch_layers`, with the same tensors and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mindspore import nn

from medmesh.learning.layer_shapes import Shape, fitted

if TYPE_CHECKING:  # a worker does without pydantic
    from medmesh.learning.layers import Layer


def build(layers: Sequence[Layer], shape: Sequence[int], classes: int) -> Any:
    """A model from samples to logits. Raises `Problem` (`package.layers`): see `fitted`."""
    return nn.SequentialCell(*[_layer(layer, now) for layer, now in list(fitted(layers, shape, classes))])


class Average(nn.Cell):
    """The mean over each channel."""

    def construct(self, x: Any) -> Any:
        return x.mean((2, 3))


def _layer(layer: Layer, now: Shape) -> Any:
    out, kernel = layer.out or 0, layer.kernel or 1
    match layer.kind:
        case "convolution":
            return nn.Conv2d(now[0], out, kernel, pad_mode="pad", padding=kernel // 2, has_bias=True)
        case "group_norm":
            return nn.GroupNorm(layer.groups or 1, now[0])
        case "relu":
            return nn.ReLU()
        case "max_pool":
            return nn.MaxPool2d(kernel, kernel)
        case "average":
            return Average()
        case "flatten":
            return nn.Flatten()
        case "linear":
            return nn.Dense(now[0], out)
