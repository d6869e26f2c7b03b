"""A server that takes steps of its own: FedAvgM, FedAdagrad, FedAdam, FedYogi. The mean change of the hospitals is its gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from medmesh.federated.aggregation.algorithm import Algorithm, Parameter, Piece

_RATE = Parameter("the server's learning rate", "0.1", "0.000001", "100")
_BETA1 = Parameter("how much of the last step the server keeps", "0.9", "0", "0.999999")
_BETA2 = Parameter("how much of the last squared changes the server keeps", "0.99", "0", "0.999999")
_TAU = Parameter("the smallest divisor: how adaptive the step is", "0.001", "0.000000001", "1")


class FedAvgM(Algorithm):
    """Hsu et al. 2019 (arXiv 1909.06335): m = beta m + D; w += rate m, where D is the weighted mean of w_k - w."""

    NAME = "fedavgm"
    PARAMETERS: ClassVar = {
        "rate": Parameter("the server's learning rate", "1", "0.000001", "100"),
        "beta": Parameter("how much of the last step the server keeps", "0.9", "0", "0.999999"),
    }
    STATE: ClassVar = {"m": "F64"}

    def combine(self, piece: Piece) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        base = piece.base()
        m = self.parameters["beta"] * piece.remembered("m") + (piece.mean() - base)
        return base + self.parameters["rate"] * m, {"m": m}


class FedOpt(Algorithm, ABC):
    """Reddi et al. 2021, algorithm 2 (arXiv 2003.00295): m = b1 m + (1 - b1) D; w += rate m / (sqrt(v) + tau). No bias correction;
    m and v begin as zeros."""

    PARAMETERS: ClassVar = {"rate": _RATE, "beta1": _BETA1, "beta2": _BETA2, "tau": _TAU}
    STATE: ClassVar = {"m": "F64", "v": "F64"}

    def combine(self, piece: Piece) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        base, p = piece.base(), self.parameters
        change = piece.mean() - base
        m = p["beta1"] * piece.remembered("m") + (1 - p["beta1"]) * change
        v = self.second(piece.remembered("v"), change * change)
        return base + p["rate"] * m / (np.sqrt(v) + p["tau"]), {"m": m, "v": v}

    @abstractmethod
    def second(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """The new v."""


class FedAdagrad(FedOpt):
    """v += D^2."""

    NAME = "fedadagrad"
    PARAMETERS: ClassVar = {"rate": _RATE, "beta1": Parameter(_BETA1.meaning, "0", "0", "0.999999"), "tau": _TAU}

    def second(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        return v + squared


class FedAdam(FedOpt):
    """v = b2 v + (1 - b2) D^2."""

    NAME = "fedadam"

    def second(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        return self.parameters["beta2"] * v + (1 - self.parameters["beta2"]) * squared


class FedYogi(FedOpt):
    """v -= (1 - b2) D^2 sign(v - D^2)."""

    NAME = "fedyogi"

    def second(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        return v - (1 - self.parameters["beta2"]) * squared * np.sign(v - squared)
