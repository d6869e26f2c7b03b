"""Model serving."""

from __future__ import annotations

from typing import ClassVar

from medmesh.contracts.labels import SecurityLabel
from medmesh.contracts.message import Event, Identifier, Query, Record


class ModelServing(Event):
    """This service loaded a release and answers for it."""

    TYPE: ClassVar[str] = "inference.model.serving.v1"

    model: Identifier
    version: int
    release: str


class ModelRejected(Event):
    """A release was not loaded: its signature, approval, bytes or graph did not verify."""

    TYPE: ClassVar[str] = "inference.model.rejected.v1"

    model: Identifier
    version: int
    release: str
    code: str


class ServedModel(Record):
    model: str
    version: int
    state: str
    label: SecurityLabel | None = None


class ServedModels(Record):
    models: tuple[ServedModel, ...]


class ListServed(Query):
    TYPE: ClassVar[str] = "inference.list-served.v1"
    ACTION: ClassVar[str | None] = "model.read"
    Reply: ClassVar[type[Record]] = ServedModels
    LISTS: ClassVar[str] = "model"
