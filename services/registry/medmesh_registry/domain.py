"""Rules of the registry, as functions of values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from medmesh.canonical import canonical, digest
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.registry import Lineage, Manifest
from medmesh.errors import Problem

ACTION = "model.release"
"""The action an approval must name."""

_LARGEST = 2**53
_LATER = ("undone", "pipeline")
"""Fields of a lineage that the first release did not have."""
_PROBLEM_CODE = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+")


class VersionState(StrEnum):
    """Where a version stands."""

    REGISTERED = "registered"
    CONVERTED = "converted"
    RELEASED = "released"
    WITHDRAWN = "withdrawn"


class ReleaseState(StrEnum):
    """Where a release stands: prepared and open, then released or refused; withdrawn with its version."""

    OPEN = "open"
    RELEASED = "released"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"


def content(weights: ObjectRef, package: ObjectRef, lineage: Lineage) -> str:
    """What makes a registration the same as another one: the digest of all it says."""
    said = {name: value for name, value in document(lineage).items() if name not in _LATER or value}  # as before there was such a thing
    return digest({"weights": document(weights), "package": document(package), "lineage": said})


def document(value: ObjectRef | Lineage | Manifest) -> dict[str, Any]:
    """A record as JSON values."""
    return value.model_dump(mode="json")


def exact(value: Any) -> Any:
    """`value` without floats, as signed bytes need it: a whole number becomes an integer, any other float the shortest decimal
    string that reads back as the same float64. Raises `Problem` (`registry.preprocess`) for what no reader would read alike."""
    if (isinstance(value, int) and abs(value) > _LARGEST) or (isinstance(value, float) and not math.isfinite(value)):
        raise Problem("registry.preprocess")
    if isinstance(value, float):
        # 0.0 and 0 are one number in JSON (RFC 8785 3.2.2.3 spells both "0"): readers compare and compute with it as it is.
        return int(value) if value.is_integer() and abs(value) <= _LARGEST else repr(value)
    if isinstance(value, Mapping):
        return {str(name): exact(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact(item) for item in value]
    return value


def hospitals(named: Iterable[str]) -> tuple[str, ...]:
    """Each hospital once, in one order, so that the same set has the same bytes. Raises `Problem` (`registry.no_hospitals`)."""
    found = tuple(sorted(set(named)))
    if not found:
        raise Problem("registry.no_hospitals")
    return found


def manifest_bytes(manifest: Manifest) -> bytes:
    """The bytes that are digested, approved and signed."""
    return canonical(document(manifest))


def install_code(installed: bool, code: str) -> str:
    """Why a hospital did not install: a problem's code and nothing else, for it is shown and logged. Raises `Problem`."""
    if installed:
        return ""
    if len(code) > 80 or not _PROBLEM_CODE.fullmatch(code):
        raise Problem("request.invalid", reason="code must be the code of a problem, such as serving.signature")
    return code


def card(lineage: Lineage, notes: Mapping[str, Any], onnx: Mapping[str, Any] | None, left: Sequence[str] = ()) -> dict[str, Any]:
    """The model card as far as it is known: `data`, `training`, `parity`, and what happened (`conversion`, `withdrawn`).

    What nobody stated (intended use, limits) is left out, never invented. `left` are those of its hospitals that withdrew.
    """
    data: dict[str, Any] = {"hospitals": list(lineage.hospitals)} if lineage.hospitals else {}
    if left:
        data["withdrawn_hospitals"] = list(left)
    found: dict[str, Any] = {"training": {"undone_rounds": list(lineage.undone)}} if lineage.undone else {}
    if onnx is not None:
        data["classes"] = list(onnx["classes"])
        if (size := onnx["preprocess"].get("size")) is not None:
            data["image_size"] = size
        found["parity"] = {"max_abs_diff": onnx["parity_max_abs"], **summary(onnx["report"])}
    return {**({"data": data} if data else {}), **found, **notes}


def summary(report: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The plain values of a parity report; the whole of it stays with the artefact."""
    plain = {name: value for name, value in report.items() if isinstance(value, str | int | float | bool)}
    return dict(sorted(plain.items())[:20])
