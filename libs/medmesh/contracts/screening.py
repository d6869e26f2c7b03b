"""What a plan says of updates that look wrong."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import ValidationInfo, field_validator

from medmesh.contracts.message import Record
from medmesh.contracts.refusals import decimal


class Flag(StrEnum):
    """Why an update looks wrong."""

    LONG = "long"
    """Far longer than the others': scaled up to outweigh them."""
    SHORT = "short"
    """Far shorter than the others': the round's model with a little noise."""
    OPPOSED = "opposed"
    """Against the direction of the others: its sign was turned."""
    UNCHANGED = "unchanged"
    """The round's model itself: nothing was trained."""
    COPIED = "copied"
    """Another hospital's of this round, which came before it, or nearly so."""
    REPLAYED = "replayed"
    """One that was given to an earlier round, or an earlier attempt by somebody else."""


class Verdict(StrEnum):
    """What a round's algorithm made of an update that is not wholly in the round's model."""

    ASIDE = "aside"
    """It was compared with the others and set aside: nothing of it is in the model. What its hospital evaluated counts."""
    CLIPPED = "clipped"
    """It was shortened before it was averaged."""


_BOUNDS = {
    "longer": "1 <= x <= 1000",
    "shorter": "0 <= x <= 1",
    "deviations": "0 <= x <= 1000",
    "opposed": "-1 <= x <= 1",
    "alike": "0 <= x <= 1",
}


class Screening(Record):
    """Each update of a training round is compared with the others' before it is averaged. Lengths are L2 norms of the difference from the
    round's model, over the tensors of floats that travel; the cosine is to the mean direction of the others. An update is `long` or
    `opposed` only when it also lies `deviations` robust standard deviations (1.4826 times the median absolute deviation; Rousseeuw and
    Croux 1993) away from the median, so that hospitals which merely differ are not flagged. Length and direction are judged among three
    and more.

    `action`: flags are noted only, or the update is left out of its round, or its hospital is also left out of the next ones until others
    approved its release.
    """

    action: Literal["note", "exclude", "quarantine"] = "note"
    longer: str = "3"
    """Times the median length."""
    shorter: str = "0.05"
    """Times the median length."""
    deviations: str = "6"
    opposed: str = "-0.1"
    """The cosine below which an update is opposed."""
    alike: str = "0.05"
    """Two updates are copies when their distance is at most so many times the longer one's length."""

    @field_validator(*_BOUNDS)
    @classmethod
    def _decimal(cls, value: str, info: ValidationInfo) -> str:
        name = str(info.field_name)
        return decimal(f"screening.{name}", value, _BOUNDS[name])
