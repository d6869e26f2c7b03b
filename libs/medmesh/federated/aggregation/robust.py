"""Rules that a few wrong or hostile updates cannot carry away. They need every single update of a coordinate at once, so pieces are
the smaller, the more parties there are; samples do not weigh, because whoever lies about a model lies about its samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from medmesh.contracts.plan import Plan
from medmesh.contracts.screening import Verdict
from medmesh.errors import Problem
from medmesh.federated.aggregation.algorithm import Algorithm, Parameter, Piece
from medmesh.federated.aggregation.distances import gram, squared_distances

_TOLERATED = Parameter("how many hospitals may be wrong or hostile", "1", "0", "1000", whole=True)


class Median(Algorithm):
    """Yin et al. 2018, algorithm 1 option I (arXiv 1803.01498): the median of each coordinate."""

    NAME = "median"
    INDIVIDUAL = True
    STACKS = True

    def combine(self, piece: Piece) -> np.ndarray:
        made: np.ndarray = np.median(piece.stack(), axis=0)
        return made


class TrimmedMean(Algorithm):
    """Yin et al. 2018, option II: each coordinate without the largest and the smallest share `trim`, then the mean."""

    NAME = "trimmed-mean"
    PARAMETERS: ClassVar = {"trim": Parameter("share left out at each end", "0.2", "0", "0.49")}
    INDIVIDUAL = True
    STACKS = True

    def combine(self, piece: Piece) -> np.ndarray:
        ordered = np.sort(piece.stack(), axis=0)
        cut = math.floor(self.parameters["trim"] * len(ordered) + 1e-9)
        made: np.ndarray = ordered[cut : len(ordered) - cut].mean(axis=0)
        return made


class Clipping(Algorithm):
    """FedAvg in which no hospital's change is longer than `factor` times the median length; longer ones are shortened and flagged."""

    NAME = "norm-clipping"
    PARAMETERS: ClassVar = {"factor": Parameter("how much longer than the median a change may be", "1", "0.01", "1000")}
    INDIVIDUAL = True

    def prepare(self) -> None:
        lengths = np.sqrt(np.diag(gram(self.updates, self.shared, self.base)))
        limit = self.parameters["factor"] * float(np.median(lengths))
        self.scales = [1.0 if length <= limit else limit / length for length in lengths]

    def combine(self, piece: Piece) -> np.ndarray:
        base, total = piece.base(), sum(update.samples for update in self.updates)
        change = np.zeros(piece.count)
        for update, scale, values in zip(self.updates, self.scales, piece.each(), strict=True):
            change += update.samples / total * scale * (values - base)
        return base + change

    def flagged(self) -> Mapping[str, Verdict]:
        return {update.party: Verdict.CLIPPED for update, scale in zip(self.updates, self.scales, strict=True) if scale < 1}


class MultiKrum(Algorithm):
    """Blanchard et al. 2017 (arXiv 1703.02757): the mean of the `keep` updates whose squared distances to their n - f - 2 nearest
    neighbours add up to least; `keep` 0 stands for n - f."""

    NAME = "multi-krum"
    PARAMETERS: ClassVar = {
        "tolerate": _TOLERATED,
        "keep": Parameter("how many updates are averaged; 0: all but the tolerated", "0", "0", "1000", whole=True),
    }
    INDIVIDUAL = True
    STACKS = True

    def check(self, plan: Plan) -> None:
        needed = self.needed()
        if plan.min_participants < needed:
            raise Problem("plan.few_answers", algorithm=self.NAME, tolerated=self.f, needed=needed, least=plan.min_participants)

    @property
    def f(self) -> int:
        """How many may be hostile."""
        return int(self.parameters["tolerate"])

    def needed(self) -> int:
        """The fewest answers for which the rule is proven."""
        return 2 * self.f + 3

    def prepare(self) -> None:
        if len(self.updates) < self.needed():
            raise Problem("federation.few_answers", algorithm=self.NAME, needed=self.needed(), got=len(self.updates))
        self.chosen = self.choose(squared_distances(gram(self.updates, self.shared, self.base)))

    def choose(self, distances: np.ndarray) -> list[int]:
        """Places of the updates that count, in order."""
        keep = int(self.parameters.get("keep", 1)) or len(distances) - self.f
        return sorted(np.argsort(scores(distances, self.f), kind="stable")[:keep].tolist())

    def combine(self, piece: Piece) -> np.ndarray:
        made: np.ndarray = piece.stack()[self.chosen].mean(axis=0)
        return made

    def flagged(self) -> Mapping[str, Verdict]:
        return {update.party: Verdict.ASIDE for place, update in enumerate(self.updates) if place not in self.chosen}


class Krum(MultiKrum):
    """The one update nearest to its neighbours."""

    NAME = "krum"
    PARAMETERS: ClassVar = {"tolerate": _TOLERATED}


class Bulyan(MultiKrum):
    """El Mhamdi et al. 2018 (arXiv 1802.07927): n - 2f updates picked one by one with Krum, then of each coordinate the mean of the
    n - 4f values nearest to the median."""

    NAME = "bulyan"
    PARAMETERS: ClassVar = {"tolerate": _TOLERATED}

    def needed(self) -> int:
        return 4 * self.f + 3

    def choose(self, distances: np.ndarray) -> list[int]:
        left, picked = list(range(len(distances))), list[int]()
        while len(picked) < len(distances) - 2 * self.f:
            best = int(np.argmin(scores(distances[np.ix_(left, left)], self.f)))
            picked.append(left.pop(best))
        return sorted(picked)

    def combine(self, piece: Piece) -> np.ndarray:
        chosen = piece.stack()[self.chosen]
        away = np.abs(chosen - np.median(chosen, axis=0))
        nearest = np.argsort(away, axis=0, kind="stable")[: len(chosen) - 2 * self.f]
        made: np.ndarray = np.take_along_axis(chosen, nearest, axis=0).mean(axis=0)
        return made


def scores(distances: np.ndarray, tolerated: int) -> np.ndarray:
    """[n] of squared distances [n, n]: the sum to the n - f - 2 nearest others, to at least one."""
    others = np.sort(distances + np.diag(np.full(len(distances), np.inf)), axis=1)
    made: np.ndarray = others[:, : max(1, len(distances) - tolerated - 2)].sum(axis=1)
    return made
