"""De-identification of DICOM headers by PS3.15 Annex E, Basic Application Level Confidentiality Profile. Pixels are not changed.

What the table does not list is judged by its kind of value: names go, dates go or are shifted, UIDs are replaced, and text and
bytes go unless they are on the keep-list. New values are HMAC-SHA256 (RFC 2104) of the old ones under the project's key, so
that a patient or a referenced object stays the same over files, runs and machines, and nobody without the key can go back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from typing import Any, Literal

from pydicom import uid
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from medmesh.errors import Problem
from medmesh.imaging.profile import Action, profile
from medmesh.imaging.pseudonyms import pseudonym, replaced_uid, shift_days
from medmesh.imaging.verify import DUMMY_DATE, DUMMY_TEXT, SHORTEST, identifying, verify

__all__ = ["Deidentified", "deidentify", "verify"]

Dates = Literal["remove", "shift"]

_DUMMIES: dict[str, Any] = {
    **dict.fromkeys(("LO", "SH", "ST", "LT", "UT", "UC", "AE", "CS", "PN"), DUMMY_TEXT),
    "DA": DUMMY_DATE, "DT": DUMMY_DATE, "TM": "000000", "AS": "000Y", "IS": "0", "DS": "0", "UR": "urn:removed",
    **dict.fromkeys(("US", "SS", "UL", "SL", "UV", "SV"), 0), "FL": 0.0, "FD": 0.0,
    **dict.fromkeys(("OB", "OW", "UN"), b"\0\0"),
}  # fmt: skip
_TEXT = frozenset(("LO", "SH", "ST", "LT", "UT", "UC", "UR", "AE", "AS"))
_NUMBER = re.compile(r"[0-9eE+. -]*")
_PATTERNS = {"CS": re.compile(r"[A-Z0-9_ ]{0,16}"), "DS": _NUMBER, "IS": _NUMBER}  # PS3.5 §6.2; pydicom lets any text through
_DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)(.*)", re.DOTALL)  # with the points of ACR-NEMA 2
_CLOCK = re.compile(r"\d{0,6}(?:\.\d{1,6})?")


@dataclass(frozen=True, slots=True)
class Deidentified:
    """A de-identified data set; unchanged elements are shared with the original. `actions` counts what was removed or changed."""

    dataset: Dataset
    patient: str
    sop_uid: str
    actions: int


def deidentify(dataset: Dataset, key: bytes, *, dates: Dates = "remove") -> Deidentified:
    """A new data set without identifying attributes; `dataset`, as `reading.read` returns it, is left as it is.

    `key` is the project's, at least 16 bytes; `dates="shift"` moves the dates of one patient back by the same 1 to 10 years
    (whole days), as CID 7050 code 113107. Raises `imaging.burned_in` if the pixels say that they show the patient's details or
    carry an overlay, `imaging.unreadable` without SOP class or instance UID, `ValueError` for a short key.
    """
    if len(key) < 16:
        raise ValueError("the key has fewer than 16 bytes")
    if _burned_in(dataset):
        raise Problem("imaging.burned_in")
    # Without a patient ID all that is safe to say is that one study is one patient.
    patient = str(dataset.get("PatientID") or "").strip() or f"study {dataset.get('StudyInstanceUID') or dataset.get('SOPInstanceUID')}"
    known = frozenset(value.lower() for _, value in identifying(dataset, dates_and_uids=False) if len(value.encode()) >= SHORTEST)
    cleaner = _Cleaner(key, shift_days(patient, key) if dates == "shift" else None, known)
    result = cleaner.clean(dataset, dummy_text=False)
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not result.get(keyword):
            raise Problem("imaging.unreadable", reason=f"{keyword} is missing")
    name = pseudonym(patient, key)
    result.PatientID = result.PatientName = name
    _declare(result, dates)
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    result.set_original_encoding(*dataset.original_encoding, dataset.original_character_set)
    return Deidentified(result, name, str(result.SOPInstanceUID), cleaner.actions)


class _Cleaner:
    """One data set's run: the key, the shift of dates in days (none: they are removed), the names and identifiers that no
    kept text may repeat (lower case), and the count."""

    def __init__(self, key: bytes, days: int | None, known: frozenset[str]) -> None:
        self.key, self.days, self.known, self.actions = key, days, known, 0

    def clean(self, dataset: Dataset, *, dummy_text: bool) -> Dataset:
        """A clean copy; with `dummy_text`, inside a sequence that must be a dummy, even text on the keep-list is replaced."""
        result = Dataset()
        for original in dataset:
            element = None if _always_removed(original.tag) else self.element(original, dummy_text)
            if element is None:
                self.actions += 1
            else:
                result[original.tag] = element
        return result

    def element(self, element: DataElement, dummy_text: bool) -> DataElement | None:
        """The element as it may leave, `None` to remove it."""
        table, tag, vr, value = profile(), int(element.tag), element.VR, element.value
        action = table.actions.get(tag)
        if self.days is not None and vr in ("DA", "DT", "TM") and tag not in table.person_dates:
            return self.replaced(element, _each(value, lambda item: _shift(str(item), self.days or 0, vr)))
        if action == Action.REMOVE or (action is None and not _known(tag, vr)):
            return None
        if action == Action.EMPTY:
            return self.replaced(element, Sequence() if vr == "SQ" else None)
        if vr == "SQ":
            inside = dummy_text or action == Action.DUMMY
            return DataElement(tag, vr, Sequence([self.clean(item, dummy_text=inside) for item in value]))
        if action == Action.DUMMY:
            return self.replaced(element, _DUMMIES[vr] if not element.is_empty else None) if vr in _DUMMIES else None
        if action == Action.UID and vr != "UI":
            return None
        if vr == "UI":
            return self.replaced(element, _each(value, lambda item: self.uid(str(item))))
        if vr in _TEXT:
            if tag not in table.keep_text or any(name in str(value).lower() for name in self.known):
                return None
            return self.replaced(element, DUMMY_TEXT) if dummy_text and not element.is_empty else element
        if vr in ("PN", "DA", "DT", "TM") or (vr in _PATTERNS and not _fits(_PATTERNS[vr], value)):
            return None
        if (vr[0] == "O" or vr == "UN" or vr.endswith("OW")) and tag not in table.keep_bytes:
            return None
        return element

    def replaced(self, element: DataElement, value: Any) -> DataElement:
        self.actions += value != element.value
        return DataElement(element.tag, element.VR, value)

    def uid(self, value: str) -> str:
        """A UID that the standard defines, as it is; any other one replaced by 2.25.<128 bits> (PS3.5 §B.2)."""
        if not value or value in uid.UID_dictionary:
            return value
        return replaced_uid(value, self.key)


@cache
def _known(tag: int, vr: str) -> bool:
    """Whether DICOM defines the attribute with this kind of value; a file may declare any other."""
    return dictionary_has_tag(tag) and (vr == dictionary_VR(tag) or vr in dictionary_VR(tag).split(" or "))


def _always_removed(tag: Any) -> bool:
    """Private elements, group lengths and commands, curves (50xx) and overlays (60xx)."""
    group = tag >> 16
    return group % 2 == 1 or group < 8 or tag & 0xFFFF == 0 or group >> 8 in (0x50, 0x60)


def _burned_in(dataset: Dataset) -> bool:
    """Whether the pixels are declared to show details, or hold an overlay in their unused bits (OverlayBitPosition, PS3.3 C.9.2)."""
    if str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        return True
    overlays = (group for group in range(0x6000, 0x6020, 2) if (group, 0x0010) in dataset)
    return any((group, 0x3000) not in dataset for group in overlays)


def _each(value: Any, change: Any) -> Any:
    """`change` of the one value or of each of several; an empty value stays empty."""
    if value is None or value == "":
        return value
    return change(value) if isinstance(value, str) else [change(item) for item in value]


def _shift(value: str, days: int, vr: str) -> str:
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


def _fits(pattern: re.Pattern[str], value: Any) -> bool:
    values = value if isinstance(value, MultiValue) else [value]
    return all(pattern.fullmatch("" if item is None else str(item)) for item in values)


def _declare(dataset: Dataset, dates: Dates) -> None:
    """Says what was done, by PS3.15 §E.1.1 and CID 7050."""
    codes = {"113100": "Basic Application Confidentiality Profile"}
    if dates == "shift":
        codes["113107"] = "Retain Longitudinal Temporal Information Modified Dates Option"
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = f"{profile().edition} Annex E Basic Profile"
    dataset.DeidentificationMethodCodeSequence = Sequence()
    for value, meaning in codes.items():
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        dataset.DeidentificationMethodCodeSequence.append(item)
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if dates == "shift" else "REMOVED"
