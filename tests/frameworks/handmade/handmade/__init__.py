"""Layers on numpy, each with `forward`, `backward` and its parameters; float32 [batch, channels, height, width] throughout."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


class Layer(ABC):
    """`weights` are trained, `kept` are statistics, `gradients` of the last backward pass stand beside the weights by name."""

    def __init__(self) -> None:
        self.weights: dict[str, np.ndarray] = {}
        self.kept: dict[str, np.ndarray] = {}
        self.gradients: dict[str, np.ndarray] = {}

    @abstractmethod
    def forward(self, x: np.ndarray, training: bool) -> np.ndarray: ...

    @abstractmethod
    def backward(self, g: np.ndarray) -> np.ndarray: ...


def uniform(shape: tuple[int, ...], bound: float, dice: np.random.Generator) -> np.ndarray:
    return dice.uniform(-bound, bound, shape).astype(np.float32)


class Convolution(Layer):
    """3 x 3, zero padding."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        dice, bound = np.random.default_rng(inputs * 1000 + outputs), 1 / math.sqrt(9 * inputs)
        self.weights = {"weight": uniform((outputs, inputs, 3, 3), bound, dice), "bias": uniform((outputs,), bound, dice)}

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        self.columns = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3))
        return np.einsum("nchwij,ocij->nohw", self.columns, self.weights["weight"], optimize=True) + self.weights["bias"][:, None, None]

    def backward(self, g: np.ndarray) -> np.ndarray:
        self.gradients = {
            "weight": np.einsum("nchwij,nohw->ocij", self.columns, g, optimize=True),
            "bias": g.sum(axis=(0, 2, 3)),
        }
        around = sliding_window_view(np.pad(g, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3))
        return np.einsum("nohwij,ocij->nchw", around, self.weights["weight"][:, :, ::-1, ::-1], optimize=True)


class BatchNorm(Layer):
    """Over batch and space; the running variance is the unbiased one, as in PyTorch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weights = {"weight": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)}
        self.kept = {
            "running_mean": np.zeros(channels, np.float32),
            "running_var": np.ones(channels, np.float32),
            "num_batches_tracked": np.zeros((), np.int64),
        }

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        mean, variance = self.kept["running_mean"], self.kept["running_var"]
        if training:
            count = x.size // x.shape[1]
            mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
            self.kept["running_mean"] = (0.9 * self.kept["running_mean"] + 0.1 * mean).astype(np.float32)
            self.kept["running_var"] = (0.9 * self.kept["running_var"] + 0.1 * variance * count / (count - 1)).astype(np.float32)
            self.kept["num_batches_tracked"] = self.kept["num_batches_tracked"] + 1
        self.scale = 1 / np.sqrt(variance + np.float32(1e-5))
        self.normal = (x - mean[:, None, None]) * self.scale[:, None, None]
        return self.normal * self.weights["weight"][:, None, None] + self.weights["bias"][:, None, None]

    def backward(self, g: np.ndarray) -> np.ndarray:
        over = (0, 2, 3)
        self.gradients = {"weight": (g * self.normal).sum(axis=over), "bias": g.sum(axis=over)}
        g = g * self.weights["weight"][:, None, None]
        mean, along = g.mean(axis=over), (g * self.normal).mean(axis=over)
        return (g - mean[:, None, None] - self.normal * along[:, None, None]) * self.scale[:, None, None]


class Relu(Layer):
    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        self.on = x > 0
        return x * self.on

    def backward(self, g: np.ndarray) -> np.ndarray:
        return g * self.on


class MaxPool(Layer):
    """2 x 2; of equals the first takes the gradient."""

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        n, c, h, w = x.shape
        self.shape, cells = x.shape, x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h // 2, w // 2, 4)
        self.chosen = cells.argmax(axis=-1)
        return cells.max(axis=-1)

    def backward(self, g: np.ndarray) -> np.ndarray:
        n, c, h, w = self.shape
        cells = (np.arange(4) == self.chosen[..., None]) * g[..., None]
        return cells.reshape(n, c, h // 2, w // 2, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(self.shape)


class Flatten(Layer):
    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, g: np.ndarray) -> np.ndarray:
        return g.reshape(self.shape)


class Dense(Layer):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        dice, bound = np.random.default_rng(inputs * 1000 + outputs), 1 / math.sqrt(inputs)
        self.weights = {"weight": uniform((outputs, inputs), bound, dice), "bias": uniform((outputs,), bound, dice)}

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        self.x = x
        return x @ self.weights["weight"].T + self.weights["bias"]

    def backward(self, g: np.ndarray) -> np.ndarray:
        self.gradients = {"weight": g.T @ self.x, "bias": g.sum(axis=0)}
        return g @ self.weights["weight"]
