"""The de-identification profile as data: which attribute is removed, emptied, replaced or kept. The table is `profile.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources

from pydicom.datadict import tag_for_keyword


class Action(StrEnum):
    """What is done to an attribute, by the letters of PS3.15 Table E.1-1a."""

    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    UID = "U"


@dataclass(frozen=True, slots=True)
class Profile:
    """The profile, by tag. `person_dates` may never be shifted."""

    edition: str
    actions: Mapping[int, Action]
    keep_text: frozenset[int]
    keep_bytes: frozenset[int]
    person_dates: frozenset[int]


@cache
def profile() -> Profile:
    """The profile that ships with this package. Raises `ValueError` for a keyword that DICOM does not know."""
    table = tomllib.loads(resources.files("medmesh.imaging").joinpath("profile.toml").read_text(encoding="utf-8"))
    actions: dict[int, Action] = {}
    for section in (table["actions"], table["stricter"]):
        for name, keywords in section.items():
            action = Action(name.rstrip("*").split("/")[-1])
            actions.update(dict.fromkeys(_tags(keywords), action))
    return Profile(
        edition=table["edition"],
        actions=actions,
        keep_text=frozenset(_tags(table["keep"]["text"])),
        keep_bytes=frozenset(_tags(table["keep"]["bytes"])),
        person_dates=frozenset(_tags(table["person"]["dates"])),
    )


def _tags(keywords: str) -> list[int]:
    tags = {keyword: tag_for_keyword(keyword) for keyword in keywords.split()}
    unknown = [keyword for keyword, tag in tags.items() if tag is None]
    if unknown:
        raise ValueError(f"profile.toml: DICOM knows no {', '.join(unknown)}")
    return [tag for tag in tags.values() if tag is not None]
