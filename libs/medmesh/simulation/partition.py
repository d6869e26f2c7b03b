"""Who has which samples: ways to deal patients out to pretended hospitals. The same seed deals alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np

from medmesh.errors import Problem

WAYS = ("natural", "iid", "dirichlet", "pathological")


def deal(labels: Sequence[int], hospitals: int, way: str, *, seed: int, alpha: float = 0.5, classes: int = 2) -> list[list[int]]:
    """The places in `labels` (the class of each patient) that each hospital gets, in ascending order; every patient goes to one hospital.

    iid: shuffled and dealt round. dirichlet: the shares of each class are drawn from Dirichlet(alpha) (Hsu, Qi, Brown 2019,
    arXiv:1909.06335): the smaller `alpha`, the more they differ. pathological: sorted by class, cut into `classes` shards a hospital, and
    each gets that many at random (McMahan et al. 2017, arXiv:1602.05629, §3).

    Raises `Problem` (`simulation.*`) for values that make no sense, and where a hospital would get nobody.
    """
    given, dice = np.asarray(labels, dtype=np.int64), np.random.default_rng(seed)
    if hospitals < 1 or hospitals > len(given):
        raise Problem("simulation.partition", patients=len(given), hospitals=hospitals)
    match way:
        case "iid":
            shares = [part.tolist() for part in np.array_split(dice.permutation(len(given)), hospitals)]
        case "dirichlet":
            shares = _dirichlet(given, hospitals, alpha, dice)
        case "pathological":
            shares = _pathological(given, hospitals, classes, dice)
        case _:
            raise Problem("simulation.way", way=way, known=", ".join(WAYS))
    if not all(shares):
        raise Problem("simulation.empty", hospitals=hospitals)
    return [sorted(map(int, share)) for share in shares]


def _dirichlet(labels: np.ndarray, hospitals: int, alpha: float, dice: np.random.Generator) -> list[list[int]]:
    """Drawn until everybody has somebody, as is usual."""
    if not 0 < alpha < float("inf"):
        raise Problem("simulation.alpha", alpha=alpha)
    for attempt in count():
        shares: list[list[int]] = [[] for _ in range(hospitals)]
        for one in np.unique(labels):
            places = dice.permutation(np.flatnonzero(labels == one))
            edges = (np.cumsum(dice.dirichlet([alpha] * hospitals))[:-1] * len(places)).astype(np.int64)
            for share, part in zip(shares, np.split(places, edges), strict=True):
                share.extend(part.tolist())
        if all(shares) or attempt >= 100:
            return shares
    raise AssertionError


def _pathological(labels: np.ndarray, hospitals: int, classes: int, dice: np.random.Generator) -> list[list[int]]:
    if classes < 1:
        raise Problem("simulation.shards", shards=classes)
    by_class = dice.permutation(len(labels))
    shards = np.array_split(by_class[np.argsort(labels[by_class], kind="stable")], hospitals * classes)
    order = dice.permutation(len(shards))
    return [[int(p) for n in order[h * classes : (h + 1) * classes] for p in shards[n]] for h in range(hospitals)]
