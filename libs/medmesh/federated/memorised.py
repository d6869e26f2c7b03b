"""How well a model tells the patients it was trained on from others: what it has memorised of them, as far as their losses show.

The measure is the membership advantage of Yeom, Giacomelli, Fredrikson and Jha (Privacy Risk in Machine Learning, CSF 2018): whoever
guesses "was trained on" for every loss up to a threshold is right by so much more than chance, at the best threshold. It is 0 for a model
that does as well on strangers, and 1 for one that gives every one of its patients away. Over samples it is the one-sided statistic of
Kolmogorov and Smirnov, whose tail under chance is exp(-2 e^2 n m / (n + m)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

FALSE_ALARMS = 0.01
"""At most so often is something found in all rounds of a federation together where nothing was memorised."""


@dataclass(frozen=True)
class Finding:
    """The `advantage` that was seen among these patients, and how much of it may be chance (`margin`)."""

    advantage: float
    margin: float
    trained: int
    held_out: int

    @property
    def surely(self) -> float:
        """What is left when chance is taken off."""
        return max(0.0, self.advantage - self.margin)


def measure(trained: np.ndarray, held_out: np.ndarray, rounds: int) -> Finding:
    """Of losses of patients (float64 [n], [m], both at least 1) that a model was trained on, and of others, in one of `rounds` rounds."""
    n, m = len(trained), len(held_out)
    chance = math.sqrt(math.log(rounds / FALSE_ALARMS) * (n + m) / (2 * n * m))
    return Finding(advantage(trained, held_out), chance, n, m)


def advantage(trained: np.ndarray, held_out: np.ndarray) -> float:
    """The largest difference of the shares of both with a loss up to the same threshold."""
    at = np.concatenate((trained, held_out))
    below = (np.searchsorted(np.sort(one), at, side="right") / len(one) for one in (trained, held_out))
    return max(0.0, float(np.max(np.subtract(*below))))


def losses(logits: np.ndarray, truth: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """float64 [patients]: the mean cross entropy of each patient's samples. `logits` float32 [samples, classes], finite; `truth` int64
    [samples]; `patients` int64 [samples], equal for samples of one."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    each = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(truth)), truth]
    places = np.unique(patients, return_inverse=True)[1]
    return np.bincount(places, weights=each) / np.bincount(places)
