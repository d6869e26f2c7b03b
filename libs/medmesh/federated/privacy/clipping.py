"""Client-level differential privacy at the hospital: an update's difference from the round's model is clipped and gets its share of noise.

DP-FedAvg: McMahan et al., ICLR 2018. The clipping norm follows a quantile of the updates' norms: Andrew et al., NeurIPS 2021, algorithm 1.
The noise is drawn at the hospital from the operating system's generator, so that nobody on the platform knows it.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from medmesh.errors import Problem
from medmesh.learning import weights


def norm(base: dict[str, np.ndarray], model: dict[str, np.ndarray]) -> float:
    """L2 norm of the difference over all float tensors. Raises `Problem` (`weights.not_finite`)."""
    total = 0.0
    for name in _floats(base):
        difference = model[name].astype(np.float64) - base[name].astype(np.float64)
        total += float(np.sum(difference * difference))
    if not math.isfinite(total):
        raise Problem("weights.not_finite", tensor="*")
    return math.sqrt(total)


def privatise(base: Path, model: Path, target: Path, *, clip: float, noise: float, generator: np.random.Generator | None = None) -> bool:
    """Write `base` plus the clipped difference plus Gaussian noise of standard deviation `noise` x `clip` in every float number; other
    tensors are those of `base`. Returns whether the difference was within `clip` before. Raises `Problem` (`weights.*`)."""
    origin, trained = weights.load(base), weights.load(model)
    size = norm(origin, trained)
    scale = min(1.0, clip / size) if size > 0 else 1.0
    draw = generator or np.random.Generator(np.random.PCG64(secrets.randbits(128)))
    made = dict(origin)
    for name in _floats(origin):
        before = origin[name].astype(np.float64)
        after = before + (trained[name].astype(np.float64) - before) * scale + draw.normal(0.0, noise * clip, origin[name].shape)
        made[name] = after.astype(origin[name].dtype)
    weights.save(made, target)
    weights.check_finite(target)
    return size <= clip


def adapted(clip: float, within: float, *, quantile: float = 0.5, rate: float = 0.2) -> float:
    """The next round's norm, from the (noised) share of updates `within` this one's: geometric steps towards the quantile."""
    return clip * math.exp(-rate * (within - quantile))


def shared(noise: float, parties: int) -> float:
    """Each hospital's part of a noise multiplier that the sum over `parties` is to have: variances add."""
    return noise / math.sqrt(parties)


def per_patient(
    gradients: np.ndarray, patients: np.ndarray, clip: float, noise: float, draw: Callable[[tuple[int, ...]], np.ndarray]
) -> np.ndarray:
    """DP-SGD (Abadi et al., CCS 2016, algorithm 1) with a patient as the unit: a patient's gradients are summed, then clipped.

    gradients: float [samples, numbers]; patients: integer [samples]; `draw` gives standard normal numbers of a shape.
    Returns the noised sum over patients, float64 [numbers]; the caller divides by the expected number of patients.
    """
    total = np.zeros(gradients.shape[1:], np.float64)
    for patient in np.unique(patients):
        own = gradients[patients == patient].astype(np.float64).sum(axis=0)
        size = float(np.linalg.norm(own))
        total += own * min(1.0, clip / size) if size > 0 else own
    return total + draw(total.shape) * noise * clip


def _floats(arrays: dict[str, np.ndarray]) -> Iterator[str]:
    return (name for name in sorted(arrays) if arrays[name].dtype.kind == "f")
