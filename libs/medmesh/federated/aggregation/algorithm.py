"""What a federated algorithm is: a server's part of `begin / add / finish`, and a hospital's part around its own training.

A new one is a class with `NAME` that overrides `combine`, registered with `register` or by an entry point of the group
`medmesh.algorithms`. Parties are added in the order of their names and combined in float64, so that a repeated aggregation
gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from medmesh.contracts.plan import Plan, TensorSignature
from medmesh.contracts.screening import Verdict
from medmesh.errors import Problem
from medmesh.federated.streams import FLOATS, Reader, Writer, elements, merge, pieces

Dtype = Literal["F64", "F32"]


@dataclass(frozen=True)
class Parameter:
    """A number of an algorithm: what it means, its default and its bounds, both allowed. No default: it must be given."""

    meaning: str
    default: str | None
    low: str
    high: str
    whole: bool = False

    def read(self, algorithm: str, name: str, given: str | None) -> float:
        """The number. Raises `Problem` (`federation.parameter*`) which says what is allowed."""
        text = self.default if given is None else given
        if text is None:
            raise Problem("federation.parameter_missing", algorithm=algorithm, parameter=name, low=self.low, high=self.high)
        try:
            number = Decimal(text)
        except InvalidOperation:
            number = Decimal("NaN")
        if number.is_finite() and Decimal(self.low) <= number <= Decimal(self.high) and (not self.whole or number % 1 == 0):
            return float(number)
        about = {"algorithm": algorithm, "parameter": name, "given": text[:60], "low": self.low, "high": self.high}
        raise Problem("federation.parameter_whole", **about) if self.whole else Problem("federation.parameter", **about)


@dataclass(frozen=True)
class Start:
    """What a round's aggregation begins with: the model the round began with, the algorithm's state after the last one (None at first),
    how many hospitals belong to the federation, and which tensors stay with each of them."""

    base: Path
    parameters: Mapping[str, str] = field(default_factory=dict)
    state: Path | None = None
    members: int = 0
    local: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Outcome:
    """What a round leaves, as files: the global model; what the server remembers; and a model of its own for each hospital where the
    algorithm makes one. `flagged` names hospitals whose update is not in the model (`Verdict.ASIDE`), or less of it."""

    model: Path
    state: Path | None = None
    personal: Mapping[str, Path] = field(default_factory=dict)
    flagged: Mapping[str, Verdict] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """One hospital's trained model and on how many samples."""

    party: str
    file: Reader
    samples: int


@dataclass(frozen=True)
class Piece:
    """`count` numbers of the tensor `name`, from element `start`, of the base, of every update and of the state: float64 each."""

    name: str
    start: int
    count: int
    updates: tuple[Update, ...]
    origin: Reader
    state: Reader | None

    def base(self) -> np.ndarray:
        """[count] of the model the round began with."""
        return self.origin.read(self.name, self.start, self.count)

    def each(self, prefix: str = "") -> Iterator[np.ndarray]:
        """[count] of each update, one after another; of the tensors under `prefix/` where one is given."""
        for update in self.updates:
            yield update.file.read(f"{prefix}/{self.name}" if prefix else self.name, self.start, self.count)

    def stack(self) -> np.ndarray:
        """[parties, count] of all updates."""
        return np.stack(list(self.each()))

    def mean(self, prefix: str = "", weights: tuple[float, ...] | None = None) -> np.ndarray:
        """[count], weighted by samples unless `weights` are given; one update in memory at a time."""
        shares = weights or tuple(update.samples for update in self.updates)
        total = np.zeros(self.count)
        for share, values in zip(shares, self.each(prefix), strict=True):
            total += values * share
        return total / sum(shares)

    def remembered(self, prefix: str) -> np.ndarray:
        """[count] of the server's state; zeros before the first round."""
        return np.zeros(self.count) if self.state is None else self.state.read(f"{prefix}/{self.name}", self.start, self.count)


@dataclass(frozen=True)
class Local:
    """A hospital's side of a round. `base` is the global model, `given` the server's state where the algorithm shows it, `personal` the
    model made for this hospital, `kept` what this hospital kept from the last round in which its update counted; `folder` is for files."""

    plan: Plan
    base: Path
    folder: Path
    samples: int
    given: Path | None = None
    personal: Path | None = None
    kept: Path | None = None


@dataclass(frozen=True)
class Run:
    """One training: from the weights `start`, `steps` of them; each gradient gets `pull * (w - anchor) + shift` added. `plain` asks for
    gradient descent without momentum, whatever the package's own optimiser is."""

    start: Path
    steps: int
    pull: float = 0.0
    anchor: Path | None = None
    shift: Path | None = None
    plain: bool = False


@dataclass(frozen=True)
class Left:
    """What a hospital's training leaves: the file that travels, and what it keeps for its next round."""

    upload: Path
    keep: Path | None = None


class Algorithm:
    """The weighted mean, unless overridden. Class variables declare what else it needs.

    `STATE` and `UPLOADS` map a prefix to a dtype: one tensor `prefix/<name>` for each shared tensor of floats, remembered by the server,
    or sent by each hospital. `NUMBERS` are single float64 numbers each hospital sends. `SHOWN`: hospitals get the state. `KEEPS`: a
    hospital keeps something between rounds. `INDIVIDUAL`: the sum weighted by samples is not enough, which excludes secure aggregation.
    """

    NAME: ClassVar[str]
    PARAMETERS: ClassVar[Mapping[str, Parameter]] = {}
    STATE: ClassVar[Mapping[str, Dtype]] = {}
    UPLOADS: ClassVar[Mapping[str, Dtype]] = {}
    NUMBERS: ClassVar[tuple[str, ...]] = ()
    SHOWN: ClassVar[bool] = False
    INDIVIDUAL: ClassVar[bool] = False
    STACKS: ClassVar[bool] = False
    """`combine` has the same piece of every update in memory at once: pieces are the smaller, the more updates there are."""
    KEEPS: ClassVar[bool] = False
    JOINT: ClassVar[bool] = False
    """The server's state is made of what hospitals keep: after a roll-back both begin anew, because one is wrong without the other."""
    PERSONAL: ClassVar[bool] = False
    """Each hospital ends with a model of its own, which is evaluated beside the global one."""

    start: Start
    base: Reader
    state: Reader | None
    updates: list[Update]

    def __init__(self, parameters: Mapping[str, str] | None = None) -> None:
        given = dict(parameters or {})
        if unknown := sorted(set(given) - set(self.PARAMETERS)):
            if not self.PARAMETERS:
                raise Problem("federation.parameter_none", algorithm=self.NAME, parameter=unknown[0])
            raise Problem("federation.parameter_unknown", algorithm=self.NAME, parameter=unknown[0], known=", ".join(self.PARAMETERS))
        self.parameters = {name: parameter.read(self.NAME, name, given.get(name)) for name, parameter in self.PARAMETERS.items()}
        self._stack = ExitStack()

    def check(self, plan: Plan) -> None:
        """Raise `Problem` when a plan cannot be run with this algorithm."""

    def check_update(self, numbers: Mapping[str, float]) -> None:
        """Raise `Problem` for an update with whose `NUMBERS`, all finite, nothing can be made: asked when it arrives, so that its hospital
        hears of it, and again when it is added."""

    # --- the server's part ------------------------------------------------------------------------------------------

    def begin(self, start: Start) -> None:
        """A round begins from `start`."""
        self.start, self.updates = start, []
        self.base = self._stack.enter_context(Reader(start.base))
        self.state = self._stack.enter_context(Reader(start.state)) if start.state else None

    def add(self, party: str, update: Path, samples: int) -> None:
        """One party's update and on how many samples; parties come in the order of their names."""
        if self.updates and party <= self.updates[-1].party:
            raise ValueError("parties are added once and in the order of their names")
        if samples <= 0:
            raise ValueError("an update was trained on at least one sample")
        file = self._stack.enter_context(Reader(update))
        self.check_update(self.numbers(file))
        self.updates.append(Update(party, file, samples))

    def finish(self, folder: Path) -> Outcome:
        """Write what the round leaves into `folder`. Raises `Problem` (`weights.*`) naming nothing but tensors."""
        if not self.updates:
            raise ValueError("nobody was added")
        self.prepare()
        model, state = folder / "model.safetensors", folder / "state.safetensors" if self.STATE else None
        signature = self.base.signature()
        with ExitStack() as files:
            out = files.enter_context(Writer(model, signature))
            memory = files.enter_context(Writer(state, spread(self.STATE, self.shared.values()))) if state else None
            for name in sorted(signature):
                if name not in self.shared:
                    out.copy(self.base, name)
                    continue
                for start, count in pieces(elements(signature[name]), len(self.updates) if self.STACKS else 1):
                    piece = Piece(name, start, count, tuple(self.updates), self.base, self.state)
                    made = self.combine(piece)
                    if isinstance(made, tuple):
                        made, remembered = made
                        for prefix, values in remembered.items():
                            assert memory is not None
                            memory.put(f"{prefix}/{name}", start, values)
                    out.put(name, start, made)
        return Outcome(model, state, flagged=self.flagged())

    def numbers(self, update: Reader) -> dict[str, float]:
        """What an update says beside its tensors, also as it travels."""
        return {name: float(update.read(name, 0, 1)[0]) for name in self.NUMBERS}

    def close(self) -> None:
        """Close every file."""
        self._stack.close()

    @cached_property
    def shared(self) -> dict[str, TensorSignature]:
        """The tensors of floats that hospitals send; everything else stays as in the base."""
        return {n: t for n, t in self.base.signature().items() if t.dtype in FLOATS and n not in self.start.local}

    def prepare(self) -> None:
        """Called once when all parties are there, before the first piece."""

    def combine(self, piece: Piece) -> np.ndarray | tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """The new model's numbers, and those of the state by prefix where there is one: float64 [count]."""
        return piece.mean()

    def flagged(self) -> Mapping[str, Verdict]:
        """See `Outcome.flagged`."""
        return {}

    # --- a hospital's part ------------------------------------------------------------------------------------------

    def steps(self, plan: Plan, samples: int) -> int:
        """How many steps a hospital with so many samples trains in a round."""
        return plan.local_steps

    def train(self, local: Local) -> Run:
        """The training that makes the update."""
        return Run(self.beginning(local), self.steps(local.plan, local.samples))

    def beginning(self, local: Local) -> Path:
        """The weights it starts from: the global ones, with this hospital's own where they never leave it."""
        return own(local, local.base, "beginning")

    def train_own(self, local: Local) -> Run | None:
        """A second training, of a model that stays; None when there is none."""
        return None

    def leave(self, local: Local, trained: Path, second: Path | None) -> Left:
        """What of it travels and what is kept."""
        return split(local, trained)

    def personal(self, local: Local) -> Path | Run | None:
        """This hospital's own model, to be evaluated beside the global one: a file, or a training that makes it."""
        return own(local, local.base, "personal") if local.plan.local else None


def spread(prefixes: Mapping[str, Dtype], tensors: Iterable[TensorSignature]) -> dict[str, TensorSignature]:
    """A tensor `prefix/<name>` for each prefix and each of `tensors`."""
    names = [(f"{prefix}/{tensor.name}", tensor.shape, dtype) for tensor in tensors for prefix, dtype in prefixes.items()]
    return {name: TensorSignature(name=name, shape=shape, dtype=dtype) for name, shape, dtype in names}


def own(local: Local, model: Path, name: str) -> Path:
    """`model` with the tensors that this hospital keeps to itself; `model` itself where there are none yet."""
    if local.kept is None or not local.plan.local:
        return model
    theirs = {t.name: model for t in local.plan.signature}
    return merge(local.folder / name, {**theirs, **dict.fromkeys(local.plan.local, local.kept)})


def split(local: Local, trained: Path) -> Left:
    """What may travel of a trained model, and what stays."""
    if not local.plan.local:
        return Left(trained)
    leaving = {t.name: trained for t in local.plan.signature if t.name not in local.plan.local}
    keep = merge(local.folder / "keep", dict.fromkeys(local.plan.local, trained))
    return Left(merge(local.folder / "upload", leaving), keep)
