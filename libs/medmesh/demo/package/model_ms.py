"""The twin of `model.py` for MindSpore: the same layers in the same order, so that their weights are the same tensors."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import HeUniform, Uniform, initializer


class Convolution(nn.Cell):
    """3 x 3 with zero padding, the weights as in `nn.Conv2d`: [out, in, 3, 3]. On a CPU, where MindSpore's own is a reference
    implementation, one matrix product over shifted images is four times as fast; the numbers are the same."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = ms.Parameter(initializer(HeUniform(math.sqrt(5)), [outputs, inputs, 3, 3], ms.float32))
        self.bias = ms.Parameter(initializer(Uniform(1 / math.sqrt(9 * inputs)), [outputs], ms.float32))

    def construct(self, x):  # type: ignore[no-untyped-def]
        n, c, h, w = x.shape
        padded = ops.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
        shifted = [padded[:, dy : dy + h, dx : dx + w, :] for dy in range(3) for dx in range(3)]
        columns = ops.cat(shifted, axis=-1).reshape(n * h * w, 9 * c)
        kernel = self.weight.permute(2, 3, 1, 0).reshape(9 * c, -1)
        return (ops.matmul(columns, kernel) + self.bias).reshape(n, h, w, -1).permute(0, 3, 1, 2)


def build(width: int = 16, classes: int = 2) -> nn.Cell:
    """Images [batch, 1, 64, 64] float32 in 0..1 to logits [batch, classes]."""

    def block(inputs: int, outputs: int) -> list[nn.Cell]:
        return [Convolution(inputs, outputs), nn.GroupNorm(4, outputs), nn.ReLU(), nn.MaxPool2d(2, 2)]

    return nn.SequentialCell(
        *block(1, width),
        *block(width, 2 * width),
        *block(2 * width, 4 * width),
        nn.AvgPool2d(2, 2),  # of 8 x 8: what adaptive pooling to 4 x 4 is
        nn.Flatten(),
        nn.Dense(4 * width * 16, 64),
        nn.ReLU(),
        nn.Dense(64, classes),
    )


def optimizer(parameters, learning_rate):  # type: ignore[no-untyped-def]
    """As in `model.py`."""
    return nn.Momentum(parameters, learning_rate, momentum=0.9, weight_decay=1e-4)


def augment(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mirror half of the images."""
    chosen = generator.random(len(x)) < 0.5
    return np.where(chosen[:, None, None, None], x[..., ::-1], x)


def loss(logits, y):  # type: ignore[no-untyped-def]
    """As in `model.py`: both classes weigh the same in every batch."""
    counts = ops.one_hot(y, logits.shape[1]).sum(axis=0).astype(logits.dtype)
    weight = ops.where(counts > 0, len(y) / (logits.shape[1] * ops.clamp(counts, min=1)), ops.zeros_like(counts))
    return ops.cross_entropy(logits, y, weight=weight)
