"""Value representations of DICOM (PS3.5 §6.2): which there are, how wide and long they are, which one a tag has, and how their values are
spelled in JSON (PS3.18 F.2)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache
from json.encoder import encode_basestring as quote
from math import isfinite
from typing import Any

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
NUMERIC = {
    b"US": ("H", 2), b"SS": ("h", 2), b"UL": ("I", 4), b"SL": ("i", 4), b"FL": ("f", 4), b"FD": ("d", 8), b"SV": ("q", 8), b"UV": ("Q", 8),
    b"AT": ("H", 2),
}  # fmt: skip
WIDTHS = {b"OB": 1, b"UN": 1, b"OW": 2, b"OL": 4, b"OF": 4, b"OD": 8, b"OV": 8}
FREE = frozenset((b"LT", b"ST", b"UT", b"UR"))
TEXT = frozenset((b"AE", b"AS", b"CS", b"DA", b"DT", b"LO", b"SH", b"TM", b"UC", b"UI", b"DS", b"IS", b"PN")) | FREE
CODED = frozenset((b"LO", b"SH", b"UC", b"PN", b"LT", b"ST", b"UT"))
LONG = frozenset(WIDTHS) | {b"SQ", b"UC", b"UR", b"UT", b"SV", b"UV"}
ALL = TEXT | frozenset(NUMERIC) | LONG
SHORT = ALL - LONG
"""Whose length has two bytes."""
UNBOUND = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


@lru_cache(4096)
def head(tag: int, vr: bytes) -> str:
    """How a member begins."""
    return f'"{tag:08X}":{{"vr":"{vr.decode("ascii")}"'


def _name(text: str) -> str:
    """A person's name by its component groups (PS3.18 F.2.2)."""
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False)
    return "{" + ",".join([f'"{group}":{quote(part)}' for group, part in ((g, p.strip(" ^")) for g, p in groups) if part]) + "}"


def _decimal(text: str) -> str:
    """A number as it was written, where JSON has that spelling; text that is no number stays text."""
    if _NUMBER.fullmatch(text):
        return text
    try:
        value = float(text)
    except ValueError:
        return quote(text)
    return repr(value) if isfinite(value) and "_" not in text else quote(text)


def _integer(text: str) -> str:
    try:
        return str(int(text)) if "_" not in text and len(text) <= 20 else quote(text)
    except ValueError:
        return _decimal(text)


SPELLINGS: dict[bytes, Callable[[str], str]] = {b"PN": _name, b"DS": _decimal, b"IS": _integer}


@cache
def standard() -> dict[int, bytes]:
    from pydicom.datadict import DicomDictionary

    found: dict[Any, Any] = DicomDictionary
    return {int(tag): str(entry[0]).encode() for tag, entry in found.items() if str(entry[0]) != "NONE"}


def repeated(tag: int) -> bytes:
    from pydicom.datadict import dictionary_VR

    try:
        return str(dictionary_VR(tag)).encode()
    except KeyError:
        return b"UN"


def private(group: int, element: int, creator: str) -> bytes:
    from pydicom.datadict import private_dictionary_VR

    try:
        found = str(private_dictionary_VR(group << 16 | element, creator)).encode()
    except KeyError:
        return b"UN"
    return found if found in ALL else b"UN"
