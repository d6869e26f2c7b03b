"""The rules, by the kind of data they are about, and what one of them found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medmesh.errors import Problem, catalogue

RULES: Mapping[str, tuple[str, ...]] = {
    "image": (
        "quality.missing_modality",
        "quality.too_small",
        "quality.bits_inconsistent",
        "quality.not_greyscale",
        "quality.several_frames",
        "quality.unreadable_pixels",
        "quality.constant_image",
        "quality.clipped",
        "quality.few_levels",
        "quality.not_finite",
    ),
    "volume": (
        "quality.constant_image",
        "quality.clipped",
        "quality.few_levels",
        "quality.not_finite",
        "quality.thick_slices",
        "quality.oblique",
        "quality.single_slice",
        "quality.no_position",
        "quality.part_held",
    ),
    "series": (
        "quality.missing_slices",
        "quality.uneven_spacing",
        "quality.duplicate_instance_number",
        "quality.mixed_orientation",
        "quality.mixed_size",
        "quality.mixed_spacing",
        "quality.duplicate_position",
    ),
    "signal": ("quality.flat_line", "quality.clipped", "quality.not_finite", "quality.low_rate", "quality.lead_off", "quality.checksum"),
    "audio": ("quality.flat_line", "quality.clipped", "quality.not_finite", "quality.low_rate"),
    "table": (
        "quality.missing_values",
        "quality.constant_column",
        "quality.empty_column",
        "quality.duplicate_rows",
        "quality.missing_column",
        "quality.out_of_range",
        "quality.wrong_type",
    ),
    "text": ("quality.empty_text", "quality.damaged_encoding"),
    "file": ("quality.unreadable", "quality.exact_copy", "quality.same_pixels"),
}
"""Codes by kind of data, as the catalogue has them; a `Finding` leaves out `quality.`."""
OF_SERIES = frozenset(code.removeprefix("quality.") for code in RULES["series"])
STACKED = OF_SERIES - {"duplicate_instance_number"}
"""Of a series that is to be a volume these block, whatever a project says: slices are ordered by their places, not by their numbers."""
BLOCKING = frozenset((
    "missing_modality", "too_small", "bits_inconsistent", "not_greyscale", "several_frames", "unreadable_pixels", "constant_image",
    "not_finite", "missing_slices", "empty_text", "damaged_encoding", "missing_column", "unreadable",
))  # fmt: skip
"""What keeps an item out unless the project says otherwise."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`code` of `RULES`; `params` are the numbers (and names of columns or channels) that its text shows, no value of a patient."""

    code: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def said(self, language: str = "en") -> str:
        """The sentence; a number that is not known is an ellipsis in it."""
        text = catalogue()[f"quality.{self.code}"]
        return (text.zh if language == "zh" else text.en).format_map(_Elided(self.params))


class _Elided(dict[str, Any]):
    def __missing__(self, _: str) -> str:
        return "…"


def known(codes: Iterable[str]) -> frozenset[str]:
    """`codes`, each of which is a rule. Raises `Problem` (`quality.unknown_rule`)."""
    every = {code.removeprefix("quality.") for group in RULES.values() for code in group}
    wanted = frozenset(codes)
    if strange := sorted(wanted - every):
        raise Problem("quality.unknown_rule", rule=strange[0], known=", ".join(sorted(every)))
    return wanted
