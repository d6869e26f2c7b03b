"""Weighted means that differ in what hospitals do: FedAvg, FedProx, FedBN, Ditto, fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.aggregation.algorithm import Algorithm, Left, Local, Parameter, Run


class FedAvg(Algorithm):
    """McMahan et al. 2017, algorithm 1 (arXiv 1602.05629): w = sum_k n_k w_k / sum_k n_k."""

    NAME = "fedavg"


class FedProx(Algorithm):
    """Li et al. 2020 (arXiv 1812.06127): each hospital minimises F_k(w) + mu/2 |w - w_t|^2."""

    NAME = "fedprox"
    PARAMETERS: ClassVar = {"mu": Parameter("how strongly a hospital's model is held to the global one", "0.01", "0", "100")}

    def train(self, local: Local) -> Run:
        start = self.beginning(local)
        return Run(start, self.steps(local.plan, local.samples), pull=self.parameters["mu"], anchor=start)


class FedBN(Algorithm):
    """Li et al. 2021 (arXiv 2102.07623): the tensors of batch normalisation stay in each hospital."""

    NAME = "fedbn"
    KEEPS = True
    PERSONAL = True

    def check(self, plan: Plan) -> None:
        if not plan.local:
            raise Problem("plan.needs_local", algorithm=self.NAME)


class Ditto(Algorithm):
    """Li et al. 2021 (arXiv 2012.04221): beside its part of FedAvg each hospital trains a model v_k of its own, whose gradient is
    grad F_k(v_k) + lambda (v_k - w_t); only the global one travels."""

    NAME = "ditto"
    PARAMETERS: ClassVar = {"lambda": Parameter("how strongly a hospital's own model is held to the global one", "0.1", "0", "100")}
    KEEPS = True
    PERSONAL = True

    def check(self, plan: Plan) -> None:
        if plan.local:
            raise Problem("plan.whole_model", algorithm=self.NAME)

    def train_own(self, local: Local) -> Run | None:
        return Run(local.kept or local.base, self.steps(local.plan, local.samples), pull=self.parameters["lambda"], anchor=local.base)

    def leave(self, local: Local, trained: Path, second: Path | None) -> Left:
        return Left(trained, second)

    def personal(self, local: Local) -> Path | Run | None:
        return local.kept or local.base


class FineTuning(Algorithm):
    """FedAvg, and at the end each hospital trains the global model a little further on its own data: the baseline of personal models."""

    NAME = "finetune"
    PARAMETERS: ClassVar = {"steps": Parameter("steps of the last training at each hospital", "50", "1", "100000", whole=True)}
    PERSONAL = True

    def personal(self, local: Local) -> Path | Run | None:
        return replace(self.train(local), steps=int(self.parameters["steps"]))
