"""Shamir's secret sharing (CACM 22(11), 1979) over a prime field: any `threshold` shares give the secret, fewer give nothing."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

PRIME = 2**521 - 1
"""A Mersenne prime above every 64-byte secret."""


def evaluate(coefficients: list[int], x: int, prime: int = PRIME) -> int:
    """The polynomial with `coefficients` (constant first) at `x`, by Horner's rule."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % prime
    return value


def split(
    secret: int, threshold: int, points: list[int], prime: int = PRIME, draw: Callable[[int], int] = secrets.randbelow
) -> dict[int, int]:
    """Point to share. Raises `ValueError` for a secret outside the field, a point that is 0 or twice, or too few points."""
    if not 0 <= secret < prime:
        raise ValueError("the secret lies outside the field")
    if len({point % prime for point in points}) != len(points) or any(point % prime == 0 for point in points):
        raise ValueError("points are different and not 0")
    if not 1 <= threshold <= len(points):
        raise ValueError("the threshold lies between 1 and the number of points")
    coefficients = [secret, *(draw(prime) for _ in range(threshold - 1))]
    return {point: evaluate(coefficients, point, prime) for point in points}


def combine(shares: Mapping[int, int], prime: int = PRIME) -> int:
    """The secret, by Lagrange's interpolation at 0. With wrong or too few shares it is another number: check it against a commitment."""
    secret = 0
    for x, y in shares.items():
        above, below = 1, 1
        for other in shares:
            if other != x:
                above = above * -other % prime
                below = below * (x - other) % prime
        secret = (secret + y * above * pow(below, -1, prime)) % prime
    return secret
