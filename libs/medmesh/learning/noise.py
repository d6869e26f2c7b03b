"""Gaussian noise from a cryptographic stream: what was published of it does not tell the rest.

Box and Muller (1958) on 53 bits each from AES-256-CTR under a key that is drawn from the operating system and forgotten. The numbers are
float64: differences in their last bits could tell an expert something (Mironov, CCS 2012); they are rounded to the tensor's dtype, or
to the fixed point of a secure sum, before they leave.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Draw = Callable[[int], np.ndarray]
"""So many standard normal numbers, float64."""


class Normal:
    """A `Draw`."""

    def __init__(self, key: bytes | None = None) -> None:
        self._cipher = Cipher(algorithms.AES(key or os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def __call__(self, count: int) -> np.ndarray:
        """float64 [count]."""
        half = (count + 1) // 2
        bits = np.frombuffer(self._cipher.update(bytes(16 * half)), "<u8") >> np.uint64(11)
        uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53  # neither 0 nor 1
        radius, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * math.pi * uniform[half:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
