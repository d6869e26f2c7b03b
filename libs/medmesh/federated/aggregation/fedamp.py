"""Models of their own for each hospital by attentive message passing: FedAMP and HeurFedAMP (Huang et al. 2021, arXiv 2007.03797).

The server keeps the last model w_i of each hospital, makes u_i = sum_j xi_ij w_j for each, and hospitals minimise
F_i(w) + prox/2 |w - u_i|^2 from u_i. A hospital that misses rounds stays in with its last model.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import numpy as np

from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.aggregation.algorithm import Algorithm, Left, Local, Outcome, Parameter, Run, Update
from medmesh.federated.aggregation.distances import cosines, gram, squared_distances
from medmesh.federated.streams import Reader, Writer, elements, merge, pieces

_PROX = Parameter("how strongly a hospital's model is held to the one made for it", "0.1", "0", "100")


class FedAMP(Algorithm):
    """xi_ij = alpha/sigma exp(-|w_i - w_j|^2 / sigma) for j != i, scaled down where together they exceed 1 - self."""

    NAME = "fedamp"
    PARAMETERS: ClassVar = {
        "alpha": Parameter("the step of message passing", "10", "0", "1000000"),
        "sigma": Parameter("at which squared distance hospitals stop to matter to each other", "10", "0.000001", "1000000"),
        "self": Parameter("the least weight of a hospital's own model", "0.1", "0", "1"),
        "prox": _PROX,
    }
    INDIVIDUAL = True  # a model for each hospital is made of the single models of all
    KEEPS = True
    PERSONAL = True

    def check(self, plan: Plan) -> None:
        if plan.local:
            raise Problem("plan.whole_model", algorithm=self.NAME)

    def finish(self, folder: Path) -> Outcome:
        answered = super().finish(folder)
        state = self._remember(folder / "state.safetensors")
        with Reader(state) as file:
            parties = sorted({name.split("/", 2)[1] for name in file.layout})
            shares = self.attention([_last(party, file) for party in parties])
            made = self._mix(folder, file, parties, shares)
        return Outcome(answered.model, state, made)

    def attention(self, models: list[Update]) -> np.ndarray:
        """xi: [n, n], rows that add up to one."""
        p, distances = self.parameters, squared_distances(gram(models, self.shared, self.base))
        shares = p["alpha"] / p["sigma"] * np.exp(-distances / p["sigma"])
        np.fill_diagonal(shares, 0)
        others, most = shares.sum(axis=1, keepdims=True), 1 - p["self"]
        shares = np.where(others > most, shares / np.maximum(others, 1e-300) * most, shares)
        np.fill_diagonal(shares, 1 - shares.sum(axis=1))
        return shares

    def _remember(self, target: Path) -> Path:
        """The newest model of each hospital, under `fedamp/<hospital>/<tensor>`."""
        places: dict[str, tuple[Reader, str]] = {}
        if self.state is not None:
            places = {name: (self.state, name) for name in self.state.layout}
        for update in self.updates:
            places |= {f"fedamp/{update.party}/{name}": (update.file, name) for name in self.shared}
        named = {name: file.signature()[origin].model_copy(update={"name": name}) for name, (file, origin) in places.items()}
        with Writer(target, named) as out:
            for name, (file, origin) in places.items():
                out.copy(file, name, origin)
        return target

    def _mix(self, folder: Path, state: Reader, parties: list[str], shares: np.ndarray) -> dict[str, Path]:
        """u_i of each hospital, all in one pass."""
        paths = {party: folder / f"personal-{party}.safetensors" for party in parties}
        signature = self.base.signature()
        with ExitStack() as files:
            outs = [files.enter_context(Writer(paths[party], signature)) for party in parties]
            for name, tensor in sorted(signature.items()):
                if name not in self.shared:
                    for out in outs:
                        out.copy(self.base, name)
                    continue
                for start, count in pieces(elements(tensor), len(parties)):
                    stack = np.stack([state.read(f"fedamp/{party}/{name}", start, count) for party in parties])
                    for out, values in zip(outs, np.einsum("ij,jc->ic", shares, stack), strict=True):
                        out.put(name, start, values)
        return paths

    def train(self, local: Local) -> Run:
        start = local.personal or local.base
        return Run(start, self.steps(local.plan, local.samples), pull=self.parameters["prox"] if local.personal else 0.0, anchor=start)

    def leave(self, local: Local, trained: Path, second: Path | None) -> Left:
        return Left(trained, merge(local.folder / "keep", {t.name: trained for t in local.plan.signature}))

    def personal(self, local: Local) -> Path | Run | None:
        return local.kept or local.base


class HeurFedAMP(FedAMP):
    """The form for deep networks: xi_ij = (1 - xi_ii) exp(sigma cos(w_i, w_j)) / sum_{h != i} exp(sigma cos(w_i, w_h)) with a chosen
    xi_ii = `self`; 0 stands for 1 / hospitals."""

    NAME = "heurfedamp"
    PARAMETERS: ClassVar = {
        "sigma": Parameter("how much more the most similar hospitals count", "25", "0", "700"),
        "self": Parameter("the weight of a hospital's own model; 0: one by the number of hospitals", "0", "0", "1"),
        "prox": Parameter(_PROX.meaning, "0.01", "0", "100"),
    }

    def attention(self, models: list[Update]) -> np.ndarray:
        mine = self.parameters["self"] or 1 / len(models)
        if len(models) == 1:
            return np.ones((1, 1))
        shares = np.exp(self.parameters["sigma"] * (cosines(gram(models, self.shared, None)) - 1))
        np.fill_diagonal(shares, 0)
        shares = shares / shares.sum(axis=1, keepdims=True) * (1 - mine)
        np.fill_diagonal(shares, mine)
        return shares


class _View(Reader):
    """One hospital's model inside the state."""

    def __init__(self, file: Reader, party: str) -> None:
        self._whole, self._prefix = file, f"fedamp/{party}/"

    def read(self, name: str, start: int, count: int) -> np.ndarray:
        return self._whole.read(self._prefix + name, start, count)


def _last(party: str, file: Reader) -> Update:
    return Update(party, _View(file, party), 1)
