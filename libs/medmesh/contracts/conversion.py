"""Conversion of models between formats, behind a parity gate."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from medmesh.contracts.message import Command, Event, Identifier, Names, ObjectRef


class ConvertModel(Command):
    """Convert a registered version's weights with its package's architecture. Result: the parity report."""

    TYPE: ClassVar[str] = "conversion.convert.v1"
    ACTION: ClassVar[str] = "model.convert"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("model", "{model}/{version}"),)

    model: Identifier
    version: int
    target: Literal["onnx"] = "onnx"


class ModelConverted(Event):
    """`report` is the parity report: what was compared, the largest differences, the thresholds, the tool versions."""

    TYPE: ClassVar[str] = "conversion.model.converted.v1"

    model: Identifier
    version: int
    source: ObjectRef
    artefact: ObjectRef
    target: Literal["onnx"]
    max_abs_diff: float
    report: dict[str, Any]
    preprocess: dict[str, Any]
    classes: tuple[str, ...]


class ConversionRefused(Event):
    TYPE: ClassVar[str] = "conversion.model.refused.v1"

    model: Identifier
    version: int
    target: Literal["onnx"]
    code: str
    report: dict[str, Any]
