"""Privacy of a hospital's part in a round: its update's difference from the round's model is clipped, and may get its share of noise.

DP-FedAvg: McMahan et al., ICLR 2018. The clipping norm follows a quantile of the updates' norms: Andrew et al., NeurIPS 2021, algorithm 1.
Files go through a piece at a time, whatever the model's size.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from medmesh.contracts.plan import TensorSignature
from medmesh.errors import Problem
from medmesh.federated.privacy.noise import Draw, normal
from medmesh.federated.streams import FLOATS, Reader, Writer, elements, pieces

WITHIN = TensorSignature(name="privacy.within", shape=(1,), dtype="F64")
"""Travels with an update where the norm adapts: 1/2 when the difference was within it, else -1/2."""


def norm(base: Path, model: Path) -> float:
    """L2 norm of the difference over the model's float tensors. Raises `Problem` (`weights.not_finite`)."""
    total = 0.0
    with Reader(base) as origin, Reader(model) as trained:
        for name in _floats(trained):
            for start, count in pieces(elements(trained.signature()[name])):
                difference = trained.read(name, start, count) - origin.read(name, start, count)
                total += float(difference @ difference)
    if not math.isfinite(total):
        raise Problem("weights.not_finite", tensor="*")
    return math.sqrt(total)


def privatise(
    base: Path, model: Path, target: Path, *, clip: float, noise: float = 0.0, count: float | None = None, draw: Draw | None = None
) -> None:
    """Write `base` plus the clipped difference plus Gaussian noise of standard deviation `noise` x `clip` in every float number of
    `model`; its other tensors are those of `base`. With `count` the tensor `WITHIN` is written, too, with noise of that deviation.
    Raises `Problem` (`weights.*`)."""
    size = norm(base, model)
    scale, draw = min(1.0, clip / size) if size > 0 else 1.0, draw or normal
    with Reader(base) as origin, Reader(model) as trained:
        signature = trained.signature()
        with Writer(target, {**signature, **({WITHIN.name: WITHIN} if count is not None else {})}) as out:
            for name, tensor in signature.items():
                if tensor.dtype not in FLOATS:
                    out.copy(origin, name)
                    continue
                for start, many in pieces(elements(tensor)):
                    before = origin.read(name, start, many)
                    after = before + (trained.read(name, start, many) - before) * scale
                    out.put(name, start, after + noise * clip * draw(many) if noise else after)
            if count is not None:
                out.put(WITHIN.name, 0, np.array([0.5 if size <= clip else -0.5]) + (count * draw(1) if count else 0.0))


def adapted(clip: float, within: float, *, quantile: float = 0.5, rate: float = 0.2) -> float:
    """The next round's norm, from the noised share of updates `within` this one's: geometric steps towards the quantile."""
    return clip * math.exp(-rate * (min(1.0, max(0.0, within)) - quantile))


def shared(noise: float, parties: int) -> float:
    """Each hospital's part of a noise that the sum over `parties` is to have: variances add."""
    return noise / math.sqrt(parties)


def per_patient(gradients: np.ndarray, clip: float, noise: float, draw: Draw) -> np.ndarray:
    """DP-SGD's sum (Abadi et al., CCS 2016, algorithm 1) of `gradients` [patients, numbers], one row a patient: float64 [numbers]; the
    caller divides by the batch size."""
    sizes = np.linalg.norm(gradients.astype(np.float64), axis=1, keepdims=True)
    clipped = gradients * np.minimum(1.0, clip / np.maximum(sizes, 1e-300))
    total: np.ndarray = clipped.sum(axis=0) + noise * clip * draw(gradients.shape[1])
    return total


def _floats(model: Reader) -> list[str]:
    return [name for name, tensor in model.signature().items() if tensor.dtype in FLOATS]
