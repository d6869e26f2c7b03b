"""Whether anything identifying of a DICOM data set is still in the bytes that were made from it.

Knows nothing of the profile: it takes the original's values by their kind and searches for each of them in the result, so that
a gap in the table, a forgotten private element or a name inside some text shows up here. It errs towards finding too much.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydicom import uid
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from medmesh.imaging.reading import parse, write

# What de-identification itself writes says nothing about anybody.
DUMMY_TEXT = "REMOVED"
DUMMY_DATE = "19000101"

SHORTEST = 4  # bytes: shorter values occur everywhere by chance
_ENCODINGS = ("utf-8", "gb18030", "utf-16-le", "utf-16-be", "latin-1", "iso2022_jp", "shift_jis", "euc_kr")
_IDENTIFIER = re.compile(
    r"(?:IDs?|Identifier|Number|Numbers|Address|Locator|Telephone|(?:Institution|Station|Department|Organization)\w*Name)$"
)
_NEW_UID = re.compile(rb"2\.25\.\d{25,39}")
_TEXT = frozenset(("SH", "LO", "ST", "LT", "UT", "UC"))
_STRINGS = frozenset(("AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UN", "UR", "UT"))


def identifying(dataset: Dataset, *, dates_and_uids: bool = True) -> Iterator[tuple[DataElement, str]]:
    """Every value of `dataset`, at any depth and in private elements too, that could identify somebody, with its element."""
    for element in _elements(dataset):
        vr = element.VR
        if vr not in ("PN", "DA", "DT", "UI") and not (vr in _TEXT and _IDENTIFIER.search(element.keyword)):
            continue
        if not dates_and_uids and vr in ("DA", "DT", "UI"):
            continue
        for item in element.value if element.VM > 1 else [element.value]:
            string = str(item or "").strip()
            if vr == "PN":
                groups = string.split("=")
                strings = {form for group in groups for form in (group, group.replace("^", ""), group.replace("^", " "), *group.split("^"))}
            else:
                strings = {string[:8] if vr == "DT" else string}
            for string in strings - {"", DUMMY_TEXT, DUMMY_DATE}:
                if vr != "UI" or string not in uid.UID_dictionary:
                    yield element, string.strip()


def verify(original: Dataset, result: bytes) -> list[str]:
    """The attributes of `original` (keywords; tags of private ones), at any depth, whose values still occur in `result`; best empty.

    Looked for are names and their parts, identifiers, dates and UIDs of 4 bytes or more, as text in UTF-8, GB18030, UTF-16 and the
    other character sets of DICOM, in either case. Values under 8 bytes are not searched for in pixels, and numbers under 6 digits only in
    text: there they occur by chance. Raises `imaging.unreadable` or `imaging.not_dicom` for a result that is no DICOM file.
    """
    parsed = parse(result)
    deflated = parsed.file_meta.TransferSyntaxUID.is_deflated
    everything = (write(parsed) if deflated else result).lower()  # `write` inflates
    pixel_data = parsed.get("PixelData") or b""
    without_uids = _NEW_UID.sub(b"", everything)
    header = without_uids.replace(pixel_data.lower(), b"") if len(pixel_data) >= SHORTEST else without_uids
    text = "\n".join(_strings(parsed)).lower().encode()
    found = set()
    for element, value in identifying(original):
        if element.VR == "UI":
            hit = len(value) >= SHORTEST and re.search(rb"(?<![\d.])" + re.escape(value.encode()) + rb"(?![\d.])", everything) is not None
        else:
            short = text if value.isascii() and value.isdigit() and len(value) < 6 else header
            hit = any(needle in (without_uids if len(needle) >= 8 else short) for needle in _encoded(value))
        if hit:
            found.add(element.keyword or str(element.tag))
    return sorted(found)


def _elements(dataset: Dataset) -> Iterator[DataElement]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)
        else:
            yield element


def _encoded(value: str) -> set[bytes]:
    needles = set()
    for encoding in _ENCODINGS:
        try:
            needle = value.encode(encoding).lower()
        except UnicodeEncodeError:
            continue
        if len(needle) >= SHORTEST and (len(value) >= SHORTEST or not value.isascii()):
            needles.add(needle)
    return needles


def _strings(dataset: Dataset) -> Iterator[str]:
    """The values that are text; numbers written as text (DS, IS) and UIDs are not."""
    return (str(element.value) for element in _elements(dataset) if element.VR in _STRINGS)
