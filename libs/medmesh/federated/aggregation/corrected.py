"""Corrections for hospitals whose data pull apart: SCAFFOLD and FedNova. Both are defined for plain gradient descent, which hospitals
then use instead of their package's optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from medmesh.contracts.plan import Plan, TensorSignature
from medmesh.errors import Problem
from medmesh.federated.aggregation.algorithm import Algorithm, Left, Local, Parameter, Piece, Run, spread
from medmesh.federated.streams import FLOATS, Reader, Writer, elements, pieces


class Scaffold(Algorithm):
    """Karimireddy et al. 2020, algorithm 1 with option II (arXiv 1910.06378).

    Local step y -= eta (g(y) - c_k + c); c_k+ = c_k - c + (x - y) / (M eta); the server: x += rate mean(y_k - x), unweighted, and
    c += |S|/N mean(c_k+ - c_k). c_k never leaves its hospital: its change does.
    """

    NAME = "scaffold"
    PARAMETERS: ClassVar = {"rate": Parameter("the server's learning rate", "1", "0.000001", "100")}
    STATE: ClassVar = {"scaffold.c": "F32"}
    UPLOADS: ClassVar = {"scaffold.dc": "F32"}
    SHOWN = True
    KEEPS = True
    JOINT = True
    INDIVIDUAL = True  # each hospital counts alike in its mean

    def check(self, plan: Plan) -> None:
        if plan.local:
            raise Problem("plan.whole_model", algorithm=self.NAME)

    def combine(self, piece: Piece) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        base, equal = piece.base(), (1.0,) * len(piece.updates)
        change = piece.mean("scaffold.dc", equal) * len(piece.updates) / max(self.start.members, len(piece.updates))
        c = piece.remembered("scaffold.c") + change
        return base + self.parameters["rate"] * (piece.mean("", equal) - base), {"scaffold.c": c}

    def train(self, local: Local) -> Run:
        def shift(name: str, start: int, count: int) -> np.ndarray:
            return given(name, start, count) - kept(name, start, count)

        with _opened(local.given, "scaffold.c") as given, _opened(local.kept, "scaffold.c") as kept:
            made = _write(local.folder / "shift", "", local.plan, shift)
        return replace(super().train(local), shift=made, plain=True)

    def leave(self, local: Local, trained: Path, second: Path | None) -> Left:
        moved = self.steps(local.plan, local.samples) * float(local.plan.learning_rate)
        keep, upload = local.folder / "keep", local.folder / "upload"
        with (
            _opened(local.given, "scaffold.c") as given,
            _opened(local.kept, "scaffold.c") as kept,
            Reader(local.base) as base,
            Reader(trained) as file,
        ):

            def change(name: str, start: int, count: int) -> np.ndarray:
                return (base.read(name, start, count) - file.read(name, start, count)) / moved - given(name, start, count)

            _write(keep, "scaffold.c/", local.plan, lambda *place: kept(*place) + change(*place))
            extra = spread(self.UPLOADS, _floats(local.plan))
            with Writer(upload, {**{t.name: t for t in local.plan.signature}, **extra}) as out:
                for tensor in local.plan.signature:
                    out.copy(file, tensor.name)
                for tensor in _floats(local.plan):
                    for start, count in pieces(elements(tensor)):
                        out.put(f"scaffold.dc/{tensor.name}", start, change(tensor.name, start, count))
        return Left(upload, keep)


class FedNova(Algorithm):
    """Wang et al. 2020 (arXiv 2007.07481): hospitals take as many steps as `epochs` of their own samples are, tau_k; the server takes the
    mean of their changes a step, and tau_eff = sum_k p_k tau_k steps of it."""

    NAME = "fednova"
    PARAMETERS: ClassVar = {"epochs": Parameter("passes over a hospital's samples a round", "1", "0.01", "1000")}
    NUMBERS = ("fednova.steps",)
    INDIVIDUAL = True  # each hospital's change is divided by that hospital's own steps

    def check(self, plan: Plan) -> None:
        if plan.local:
            raise Problem("plan.whole_model", algorithm=self.NAME)

    def check_update(self, numbers: Mapping[str, float]) -> None:
        if not (1 <= (taken := numbers["fednova.steps"]) <= 1e9 and taken == math.floor(taken)):
            raise Problem("federation.update", reason="fednova.steps is a whole number of steps, at least one")

    def prepare(self) -> None:
        total = sum(update.samples for update in self.updates)
        self.shares = [update.samples / total for update in self.updates]
        self.taken = [self.numbers(update.file)["fednova.steps"] for update in self.updates]
        self.effective = sum(share * taken for share, taken in zip(self.shares, self.taken, strict=True))

    def combine(self, piece: Piece) -> np.ndarray:
        base = piece.base()
        total = np.zeros(piece.count)
        for share, taken, values in zip(self.shares, self.taken, piece.each(), strict=True):
            total += share / taken * (values - base)
        return base + self.effective * total

    def steps(self, plan: Plan, samples: int) -> int:
        return max(1, math.ceil(self.parameters["epochs"] * samples / plan.batch_size))

    def train(self, local: Local) -> Run:
        return replace(super().train(local), plain=True)

    def leave(self, local: Local, trained: Path, second: Path | None) -> Left:
        upload = local.folder / "upload"
        number = TensorSignature(name="fednova.steps", shape=(1,), dtype="F64")
        with Reader(trained) as file, Writer(upload, {**file.signature(), number.name: number}) as out:
            for name in file.layout:
                out.copy(file, name)
            out.put(number.name, 0, np.array([float(self.steps(local.plan, local.samples))]))
        return Left(upload)


@contextmanager
def _opened(path: Path | None, prefix: str) -> Iterator[Callable[[str, int, int], np.ndarray]]:
    """The tensors under a prefix of a file, as a function of (name, start, count); zeros where there is no file."""
    if path is None:
        yield lambda name, start, count: np.zeros(count)
    else:
        with Reader(path) as file:
            yield lambda name, start, count: file.read(f"{prefix}/{name}", start, count)


def _floats(plan: Plan) -> list[TensorSignature]:
    return [tensor for tensor in plan.signature if tensor.dtype in FLOATS]


def _write(target: Path, prefix: str, plan: Plan, values: Callable[[str, int, int], np.ndarray]) -> Path:
    """A file of float32 tensors, one for each of floats in the plan."""
    named = {f"{prefix}{t.name}": TensorSignature(name=f"{prefix}{t.name}", shape=t.shape, dtype="F32") for t in _floats(plan)}
    with Writer(target, named) as out:
        for tensor in _floats(plan):
            for start, count in pieces(elements(tensor)):
                out.put(f"{prefix}{tensor.name}", start, values(tensor.name, start, count))
    return target
