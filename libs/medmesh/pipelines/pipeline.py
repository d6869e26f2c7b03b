"""A pipeline: a declaration in TOML whose hash is its version.

name = "head-ct"
[[steps]]
step = "orient"
to = "RAS"
[[steps]]
step = "resample"
spacing = [1.0, 1.0, 1.0]
[[steps]]
step = "window"
version = 1
center = 40
width = 80
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy
from pydantic import ValidationError

from medmesh.canonical import digest
from medmesh.contracts import pipeline as contract
from medmesh.errors import Problem
from medmesh.pipelines.data import Data
from medmesh.pipelines.steps import STEPS, Step

ARITHMETIC = f"numpy-{numpy.__version__.split('.')[0]}"
"""Part of every step's hash: another major version of numpy may round differently, and then says so."""
MOST_STEPS = 32
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Named steps in their order."""

    name: str
    steps: tuple[Step, ...]

    @property
    def version(self) -> str:
        """SHA-256 over every step's hash: what a data set made by it is tied to."""
        return hashlib.sha256("\n".join(map(hash_of, self.steps)).encode()).hexdigest()

    def apply(self, data: Data) -> Data:
        """All steps, nothing kept. Raises `Problem` (`pipelines.unfit`) with the step's name."""
        for step in self.steps:
            data = step.apply(data)
        return data

    def stated(self) -> contract.Pipeline:
        """As a plan or a package states it, every parameter and version written out."""
        steps = [{"step": s.name, "version": s.version, "parameters": _exact(s.model_dump(mode="json"))} for s in self.steps]
        return contract.Pipeline.model_validate({"name": self.name, "hash": self.version, "arithmetic": ARITHMETIC, "steps": steps})


def hash_of(step: Step) -> str:
    """SHA-256 of name, version, parameters (defaults included) and arithmetic, as `medmesh.contracts.pipeline` says."""
    said = {"step": step.name, "version": step.version, "parameters": _exact(step.model_dump(mode="json")), "arithmetic": ARITHMETIC}
    return digest(said)


def read(text: str) -> Pipeline:
    """A declaration, or that in a training package's `medmesh.toml`. Raises `Problem` (`pipelines.declaration`) that names the step and its
    parameter, `pipelines.version`."""
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _wrong("file", str(error)) from None
    if isinstance(data := said.get("data"), dict):
        said = data.get("pipeline") or {}
    return declared(said)


def declared(said: Mapping[str, Any]) -> Pipeline:
    """The same, read already. Raises `Problem` (`pipelines.declaration`, `pipelines.version`)."""
    name, steps = said.get("name"), said.get("steps")
    if set(said) != {"name", "steps"} or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _wrong("file", "it must hold name (lower case, digits, hyphens) and steps, nothing else")
    if not isinstance(steps, list) or not 1 <= len(steps) <= MOST_STEPS:
        raise _wrong("steps", f"1 to {MOST_STEPS} of them")
    return Pipeline(name, tuple(_step(one, f"step {place}") for place, one in enumerate(steps, start=1)))


def of(said: contract.Pipeline) -> Pipeline:
    """What a plan or a package states, as this library does it. Raises `Problem` before anything is computed: `pipelines.version` where a
    step is of another version here, `pipelines.arithmetic` where it is computed otherwise, `pipelines.hash` where it was altered, and
    `pipelines.declaration`."""
    if said.arithmetic != ARITHMETIC:
        raise Problem("pipelines.arithmetic", pipeline=said.name, wanted=said.arithmetic, here=ARITHMETIC)
    for step in said.steps:
        here = STEPS[step.step].version if step.step in STEPS else 0
        if step.version != here:
            raise Problem("pipelines.version", step=step.step, wanted=step.version, here=here)
    steps = (_checked(STEPS[step.step], step.parameters, f"step {place}") for place, step in enumerate(said.steps, start=1))
    made = Pipeline(said.name, tuple(steps))
    if made.version != said.hash:
        raise Problem("pipelines.hash", pipeline=said.name, wanted=said.hash[:16], here=made.version[:16])
    return made


def _exact(value: Any) -> Any:
    """Without floats, as plans need it: whole numbers as such, others as the shortest decimal that reads back as the same float64."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, dict):
        return {name: _exact(one) for name, one in value.items()}
    return [_exact(one) for one in value] if isinstance(value, list) else value


def _step(said: Any, where: str) -> Step:
    parameters: Mapping[str, Any] = said if isinstance(said, dict) else {}
    kind = STEPS.get(str(parameters.get("step")))
    if kind is None:
        raise _wrong(where, f"step must be one of {', '.join(sorted(STEPS))}")
    wanted = parameters.get("version", kind.version)
    if type(wanted) is not int or wanted < 1:
        raise _wrong(where, "version is a whole number from 1 on")
    if wanted != kind.version:
        raise Problem("pipelines.version", step=kind.name, wanted=wanted, here=kind.version)
    return _checked(kind, {key: value for key, value in parameters.items() if key not in ("step", "version")}, where)


def _checked(kind: type[Step], parameters: Mapping[str, Any], where: str) -> Step:
    try:
        return kind.model_validate(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        raise _wrong(f"{where}, {kind.name}", f"{'.'.join(map(str, first['loc'])) or 'parameters'}: {first['msg']}") from None


def _wrong(where: str, reason: str) -> Problem:
    return Problem("pipelines.declaration", where=where, reason=reason)
