"""A pipeline as plans and packages state it: the steps between what a hospital holds and what a model sees."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictBool, StrictInt, StringConstraints

from medmesh.contracts.message import Identifier, Record, Sha256

Scalar = StrictBool | StrictInt | Annotated[str, StringConstraints(max_length=80)]
"""Numbers that are not whole are decimal strings, as everywhere in a plan."""


class Step(Record):
    """One step with every parameter written out (`medmesh dataset steps` lists what there is)."""

    step: Identifier
    version: int = Field(ge=1, lt=2**31)
    parameters: dict[Identifier, Scalar | tuple[Scalar, ...]] = Field(default_factory=dict, max_length=20)


class Pipeline(Record):
    """Steps in their order, and the SHA-256 over what they are and compute: who finds another hash cannot make the same of the same
    data, and refuses.

    The hash is over the steps' own, in hexadecimal and joined by line feeds: each is of the canonical JSON of `step`, `version`,
    `parameters` and `arithmetic`.
    """

    name: Identifier
    hash: Sha256
    arithmetic: Identifier
    """The library that computes, with its major version: `numpy-2`."""
    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=32)]
