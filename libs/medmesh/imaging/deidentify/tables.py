"""The standard's tables as data (`tables/*.tsv`, of the edition in their names) and, for given options, what to do by tag."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources

from pydicom.datadict import tag_for_keyword

from medmesh.imaging.deidentify.options import Options

EDITION = "2026d"


class Action(StrEnum):
    """What is done to an attribute, by the letters of PS3.15 Table E.1-1a."""

    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    UID = "U"
    KEEP = "K"
    CLEAN = "C"


@dataclass(frozen=True, slots=True)
class Rules:
    """What one set of options does. `actions` by tag; `content` by code value, coding scheme and value type; `private` names the kind
    of value of what may stay, by creator, group and element. `keep_text` and `keep_bytes` are what stays of what no table names."""

    actions: Mapping[int, Action]
    content: Mapping[tuple[str, str, str], Action]
    private: Mapping[tuple[str, int, int], str]
    keep_text: frozenset[int]
    keep_bytes: frozenset[int]
    person_dates: frozenset[int]
    """Dates and times of the table that no option lets through: what is known of the person, not of the examination."""
    kept_text: frozenset[int]
    """Text that an option retains."""


@cache
def rules(options: Options) -> Rules:
    """The tables, with the columns that the options choose. Raises `ValueError` for a keyword that DICOM does not know."""
    ours = tomllib.loads(_file("ours.toml"))
    actions: dict[int, Action] = {}
    dated: set[int] = set()
    for tag, basic, options_text, _ in _rows("attributes"):
        if "x" in tag:
            continue  # curves and overlays: always removed
        columns = _columns(options_text)
        actions[int(tag, 16)] = _action(basic, columns, options)
        if "dates_shifted" in columns:
            dated.add(int(tag, 16))
    for name, keywords in ours["stricter"].items():
        actions.update(dict.fromkeys(_tags(keywords), Action(name)))
    private = {}
    if options.private:
        private = {(creator, int(group, 16), int(element, 16)): vr for creator, group, element, vr, _ in _rows("private")}
    return Rules(
        actions=actions,
        content={(code, scheme, kind): _action(basic, _columns(text), options) for code, scheme, kind, basic, text, _ in _rows("content")},
        private=private,
        keep_text=frozenset(_tags(ours["keep"]["text"])),
        keep_bytes=frozenset(_tags(ours["keep"]["bytes"])),
        person_dates=frozenset(actions) - frozenset(dated),
        kept_text=frozenset(tag for tag, action in actions.items() if action == Action.KEEP),
    )


def _action(basic: str, columns: Mapping[str, Action], options: Options) -> Action:
    """Of several options, retaining beats cleaning. "X/Z/D" is left to the type of the attribute in its IOD, which is not always
    known: the last letter satisfies every type."""
    chosen = {action for column, action in columns.items() if column in options.columns}
    for action in (Action.KEEP, Action.CLEAN):
        if action in chosen:
            return action
    return Action(basic.rstrip("*").split("/")[-1])


def _columns(text: str) -> dict[str, Action]:
    return {} if text == "-" else {name: Action(letter) for name, _, letter in (word.partition("=") for word in text.split())}


def _rows(name: str) -> Iterator[list[str]]:
    return (line.split("\t") for line in _file(f"{name}-{EDITION}.tsv").splitlines() if line and not line.startswith("#"))


def _file(name: str) -> str:
    return resources.files("medmesh.imaging.deidentify").joinpath("tables", name).read_text(encoding="utf-8")


def _tags(keywords: str) -> list[int]:
    tags = {keyword: tag_for_keyword(keyword) for keyword in keywords.split()}
    unknown = [keyword for keyword, tag in tags.items() if tag is None]
    if unknown:
        raise ValueError(f"ours.toml: DICOM knows no {', '.join(unknown)}")
    return [tag for tag in tags.values() if tag is not None]
