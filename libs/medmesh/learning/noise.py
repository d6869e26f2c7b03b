"""Gaussian noise from a cryptographic generator: what was published of it does not tell the rest.

Box and Muller (1958) on 53 bits each from the operating system's generator (getrandom(2), a ChaCha20 that forgets its key), so that
whatever interpreter a worker has can draw it. The numbers are float64: differences in their last bits could tell an expert something
(Mironov, CCS 2012); they are rounded to the tensor's dtype, or to the fixed point of a secure sum, before they leave.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np

Draw = Callable[[int], np.ndarray]
"""So many standard normal numbers, float64."""


def normal(count: int, source: Callable[[int], bytes] = os.urandom) -> np.ndarray:
    """A `Draw`: float64 [count] from so many bytes of `source`."""
    half = (count + 1) // 2
    bits = np.frombuffer(source(16 * half), "<u8") >> np.uint64(11)
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53  # neither 0 nor 1
    radius, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * math.pi * uniform[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
