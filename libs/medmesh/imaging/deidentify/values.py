"""What single values become: dummies, shifted dates, new UIDs; and whether bytes are what their kind of value promises (PS3.5 §6.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import cache
from typing import Any

from pydicom import uid
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from medmesh.imaging.pseudonyms import replaced_uid

DUMMY_TEXT, DUMMY_DATE = "REMOVED", "19000101"

TEXT = frozenset(("LO", "SH", "ST", "LT", "UT", "UC", "UR", "AE", "AS"))
DATES = frozenset(("DA", "DT", "TM"))
DUMMIES: dict[str, Any] = {
    **dict.fromkeys(("LO", "SH", "ST", "LT", "UT", "UC", "AE", "CS", "PN"), DUMMY_TEXT),
    "DA": DUMMY_DATE, "DT": DUMMY_DATE, "TM": "000000", "AS": "000Y", "IS": "0", "DS": "0", "UR": "urn:removed",
    **dict.fromkeys(("US", "SS", "UL", "SL", "UV", "SV"), 0), "FL": 0.0, "FD": 0.0,
    **dict.fromkeys(("OB", "OW", "UN"), b"\0\0"),
}  # fmt: skip

_DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)(.*)", re.DOTALL)  # with the points of ACR-NEMA 2
_CLOCK = re.compile(r"\d{0,6}(?:\.\d{1,6})?")
_NUMBER = rb" *[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)? *"
_BYTES = {
    "CS": re.compile(rb"(?:[A-Z0-9_ ]{0,16}\\)*[A-Z0-9_ ]{0,16}\0?"),
    "IS": re.compile(rb"(?: *[+-]?\d{1,10} *\\)*(?: *[+-]?\d{1,10} *)?\0?"),
    "DS": re.compile(rb"(?:" + _NUMBER + rb"\\)*(?:" + _NUMBER + rb")?\0?"),
    "AS": re.compile(rb"(?:\d{3}[DWMY]\\?)*\0?"),
    "DA": re.compile(rb"(?:\d{8}\\?)? ?\0?"),
    "LO": re.compile(rb"[A-Za-z0-9_.:/ -]{0,32}\0?"),  # of private attributes only
    "SH": re.compile(rb"[A-Za-z0-9_.:/ -]{0,16}\0?"),
}
_SIZES = {"US": 2, "SS": 2, "UL": 4, "SL": 4, "FL": 4, "UV": 8, "SV": 8, "FD": 8, "AT": 4}


def plain(vr: str, value: bytes) -> bool:
    """Whether these bytes are surely numbers, codes or text without room for a person, and can be decoded."""
    size = _SIZES.get(vr)
    if size is not None:
        return len(value) % size == 0
    pattern = _BYTES.get(vr)
    return pattern is not None and pattern.fullmatch(value) is not None


def written(vr: str, value: Any) -> bytes:
    """A value of numbers or codes as `plain` takes it, whether decoded already or not."""
    if isinstance(value, bytes):
        return value
    if vr in _SIZES:
        return b""  # decoded, so it was a whole number of values
    return "\\".join(_several(value)).encode("utf-8", "replace")


def new_uid(value: str, key: bytes) -> str:
    """A UID that the standard defines, as it is; any other one replaced by 2.25.<128 bits> (PS3.5 §B.2), the same for ever."""
    if not value or value in uid.UID_dictionary:
        return value
    return replaced_uid(value, key)


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    """`change` of the one value or of each of several; an empty value stays empty."""
    if value is None or value == "":
        return value
    return change(value) if isinstance(value, str) else [change(item) for item in value]


def shift(value: str, days: int, vr: str) -> str:
    """A date or date-time moved back by `days`, its time zone dropped; a time as it is. What is no such value becomes empty."""
    if vr == "TM":
        return value.strip() if _CLOCK.fullmatch(value.strip()) else ""
    match = _DATE.fullmatch(value.strip())
    if match is None:
        return ""
    year, month, day, rest = match.groups()
    clock = rest.split("+")[0].split("-")[0] if vr == "DT" else rest
    if not _CLOCK.fullmatch(clock) or (vr == "DA" and clock):
        return ""
    try:
        return f"{date(int(year), int(month), int(day)) - timedelta(days):%Y%m%d}{clock}"
    except (ValueError, OverflowError):
        return ""


_PATIENTS = [
    "PatientID",
    "OtherPatientIDs",
    "IssuerOfPatientID",
    "AccessionNumber",
    "StudyID",
    "AdmissionID",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "MedicalRecordLocator",
    "MilitaryRank",
    "RegionOfResidence",
    "ServiceEpisodeID",
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
    "RequestedProcedureID",
    "OtherPatientNames",
]
_PLACES = {
    "institution": ("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"),
    "device": ("StationName", "DeviceSerialNumber"),
}


def names_of(dataset: Dataset, *, kept: frozenset[str]) -> frozenset[str]:
    """Names of people and identifiers that a file tells in its header, lower case, in all forms: no kept text may repeat one.

    `kept` are the chosen columns of the table: institution or device may be named by them, and the content of reports is looked through.
    """
    found: set[str] = set()
    for name in _people(dataset, deep="structured" in kept):
        for group in name.split("="):
            found |= {group, group.replace("^", ""), group.replace("^", " "), *group.split("^")}
    wanted = _identifiers("institution" not in kept, "device" not in kept)
    for tag in list(dataset.keys()):
        if int(tag) in wanted:
            found |= set(_several(dataset[tag].value))
    return frozenset(text for text in (form.strip().lower() for form in found) if len(text.encode()) >= 4 and text != DUMMY_TEXT.lower())


@cache
def _identifiers(institution: bool, device: bool) -> frozenset[int]:
    keywords = (*_PATIENTS, *(_PLACES["institution"] if institution else ()), *(_PLACES["device"] if device else ()))
    return frozenset(tag for tag in map(tag_for_keyword, keywords) if tag is not None)


@cache
def _is_name(tag: int) -> bool:
    """In files that do not tell the kind of a value."""
    return dictionary_has_tag(tag) and dictionary_VR(tag) == "PN"


def _people(dataset: Dataset, *, deep: bool) -> Iterator[str]:
    for tag, element in list(dataset.items()):
        if element.VR == "PN" or (element.VR is None and _is_name(int(tag))):
            yield from _several(dataset[tag].value)
        elif deep and tag == 0x0040A730:
            for item in dataset[tag].value or ():
                yield from _people(item, deep=True)


def _several(value: Any) -> list[str]:
    values = value if isinstance(value, MultiValue | list | tuple) else [value]  # a name iterates over its letters
    return [str(item) for item in values if item is not None]
