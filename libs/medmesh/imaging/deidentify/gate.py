"""The gate for text in pixels: by rules (`tables/gate.toml`) an image passes, is masked, or is put aside for a person to look at.

What no rule knows is put aside. Software that reads text in images can be plugged in (entry points of the group `medmesh.burned_in`): it
may only find more, so that its absence lets nothing pass.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from importlib.metadata import entry_points
from typing import Any, Literal

import numpy as np
from pydicom.dataset import Dataset

from medmesh.errors import Problem

Region = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are not included."""
Detector = Callable[[np.ndarray], Sequence[Region]]
"""Finds text in one frame, [rows, columns] or [rows, columns, samples] of stored values; any text that it finds refuses the image."""

_KEYS = frozenset(
    [
        "name",
        "sop",
        "modality",
        "burned_in",
        "image_type",
        "conversion",
        "manufacturer",
        "model",
        "rows",
        "columns",
        "regions",
        "embedded_overlay",
        "pixels",
        "then",
        "outside",
        "blank",
    ]
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a file of rules, as `gate.toml` explains them."""

    name: str
    then: Literal["pass", "mask", "quarantine"]
    wants: Mapping[str, Any]
    outside: bool = False
    blank: tuple[Region, ...] = ()


OPEN = (Rule("vouched for by a person", "pass", {}),)
"""Lets everything pass: for images whose pixels somebody has looked at."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says to one image. To be blanked are the pixels of `blank`, or with `outside` all that are not of `keep`."""

    then: Literal["pass", "mask", "quarantine"]
    rule: str
    blank: tuple[Region, ...] = ()
    keep: tuple[Region, ...] = field(default=())


@cache
def default() -> tuple[Rule, ...]:
    """The rules that come with this package."""
    return read(resources.files("medmesh.imaging.deidentify").joinpath("tables", "gate.toml").read_text(encoding="utf-8"))


def read(text: str) -> tuple[Rule, ...]:
    """Rules of a TOML text; a hospital's own come before the default ones. Raises `imaging.gate_rules` with the rule's number."""
    found: list[Rule] = []
    try:
        for table in tomllib.loads(text).get("rules", []):
            blank = tuple((int(left), int(top), int(right), int(bottom)) for left, top, right, bottom in table.get("blank", ()))
            outside = table.get("outside") == "regions"
            if (
                set(table) - _KEYS
                or table["then"] not in ("pass", "mask", "quarantine")
                or (table["then"] == "mask") != bool(blank or outside)
            ):
                raise ValueError("unknown words")
            for name in ("manufacturer", "model"):
                re.compile(table.get(name, ""))
            wants = {name: value for name, value in table.items() if name not in ("name", "then", "outside", "blank")}
            found.append(Rule(str(table["name"]), table["then"], wants, outside, blank))
        return tuple(found)
    except (ValueError, KeyError, TypeError, re.error):
        raise Problem("imaging.gate_rules", number=len(found) + 1) from None


def judge(dataset: Dataset, rules: Iterable[Rule] | None = None) -> Verdict:
    """What the first fitting rule says."""
    facts = _facts(dataset)
    for rule in default() if rules is None else rules:
        if all(_fits(name, wanted, facts) for name, wanted in rule.wants.items()):
            if rule.outside:
                keep = _ultrasound_regions(dataset)
                return Verdict("mask", rule.name, keep=keep) if keep else Verdict("quarantine", rule.name)
            return Verdict(rule.then, rule.name, rule.blank)
    return Verdict("quarantine", "no rule")


@cache
def detectors() -> tuple[Detector, ...]:
    """The installed software that finds text in pixels."""
    return tuple(point.load() for point in entry_points(group="medmesh.burned_in"))


def _facts(dataset: Dataset) -> dict[str, Any]:
    overlays = [group for group in range(0x6000, 0x6020, 2) if (group, 0x0010) in dataset]
    return {
        "sop": str(dataset.get("SOPClassUID") or ""),
        "modality": str(dataset.get("Modality") or "").strip().upper(),
        "burned_in": str(dataset.get("BurnedInAnnotation") or "").strip().upper(),
        "image_type": {str(one).strip().upper() for one in _several(dataset.get("ImageType"))},
        "conversion": {str(dataset.get("ConversionType") or "").strip().upper()},
        "manufacturer": str(dataset.get("Manufacturer") or "").strip(),
        "model": str(dataset.get("ManufacturerModelName") or "").strip(),
        "rows": dataset.get("Rows"),
        "columns": dataset.get("Columns"),
        "regions": bool(dataset.get("SequenceOfUltrasoundRegions")),
        # an overlay without data of its own is in the pixels' unused bits (OverlayBitPosition, PS3.3 C.9.2)
        "embedded_overlay": any((group, 0x3000) not in dataset for group in overlays),
        "pixels": any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")),
    }


def _fits(name: str, wanted: Any, facts: Mapping[str, Any]) -> bool:
    value = facts[name]
    if name == "sop":
        return any(value == one or value.startswith(one + ".") for one in wanted)
    if name in ("manufacturer", "model"):
        return re.fullmatch(wanted, value, re.IGNORECASE) is not None
    if name in ("image_type", "conversion"):
        return bool(value & set(wanted))
    return value in wanted if isinstance(wanted, list) else bool(value == wanted)


def _ultrasound_regions(dataset: Dataset) -> tuple[Region, ...]:
    """The regions with data (PS3.3 C.8.5.5), empty if one of them cannot be understood. Their maximum is included in the standard."""
    found = []
    for item in dataset.SequenceOfUltrasoundRegions:
        corners = [item.get(f"RegionLocation{name}") for name in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
        if not all(isinstance(corner, int) for corner in corners) or corners[0] > corners[2] or corners[1] > corners[3]:
            return ()
        found.append((corners[0], corners[1], corners[2] + 1, corners[3] + 1))
    return tuple(found)


def _several(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
