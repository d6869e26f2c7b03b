"""What the index keeps of an object, read from its header once, when it came in: the values it is found by, and what queries answer."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from medmesh.archive import dicomjson, names
from medmesh.archive.dicomjson import Readable
from medmesh.errors import Problem

# What a query answers of each level when nothing else is asked for (PS3.18 §10.6.3.3), of what is in a header, with its kind of value.
STUDY = {
    0x00080020: "DA", 0x00080030: "TM", 0x00080050: "SH", 0x00080090: "PN", 0x00080201: "SH", 0x00081030: "LO", 0x00100010: "PN",
    0x00100020: "LO", 0x00100021: "LO", 0x00100030: "DA", 0x00100040: "CS", 0x0020000D: "UI", 0x00200010: "SH",
}  # fmt: skip
SERIES = {
    0x00080060: "CS", 0x0008103E: "LO", 0x0020000E: "UI", 0x00200011: "IS", 0x00400244: "DA", 0x00400245: "TM", 0x00400275: "SQ",
}  # fmt: skip
INSTANCE = {
    0x00080016: "UI", 0x00080018: "UI", 0x00200013: "IS", 0x00280008: "IS", 0x00280010: "US", 0x00280011: "US", 0x00280100: "US",
}  # fmt: skip
PATIENT_NAME, REFERRING_NAME = 0x00100010, 0x00080090
_TEXTS = frozenset((*STUDY, *SERIES, *INSTANCE))
_OPTIONAL = frozenset(
    (0x00080201, 0x00081030, 0x00100021, 0x0008103E, 0x00400244, 0x00400245, 0x00400275, 0x00280008, 0x00280010, 0x00280011, 0x00280100)
)
_UID = re.compile(r"[0-9][0-9.]{0,63}")
_DATE = re.compile(r"\d{8}")
_TIME = re.compile(r"(\d{2})(\d{2})?(\d{2})?(?:\.(\d{1,6}))?")
HEADER_LEVEL = 1
"""Of deflating: what there is to gain is gained by the first."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as the index has it. A brief is members of DICOM JSON with line feeds between them, `header` all members."""

    sop: str
    series: str
    study: str
    sop_class: str
    syntax: str
    patient_id: str
    issuer: str
    accession: str
    study_id: str
    date: str
    time: str
    names: tuple[tuple[str, str, str], ...]
    """(tag, kind, key), see `medmesh.archive.names`."""
    modality: str
    series_number: int | None
    step_date: str
    step_time: str
    number: int | None
    frames: int
    pixels: int
    study_brief: str
    series_brief: str
    instance_brief: str
    header: str

    def packed(self) -> bytes:
        """`header` as it is stored."""
        return zlib.compress(self.header.encode(), HEADER_LEVEL)


def read(source: Readable, syntax: str | None = None) -> Entry:
    """The entry of a file, or of a data set in the transfer syntax `syntax`; nothing behind the beginning of the pixel data is read.

    Raises `Problem`: `imaging.not_dicom`, `imaging.unreadable`, `archive.uid` where a UID that gives it its place is missing or is none.
    """
    found = dicomjson.read(source, _TEXTS, syntax)
    text = found.values
    for tag, keyword in (
        (0x00080016, "SOPClassUID"),
        (0x00080018, "SOPInstanceUID"),
        (0x0020000D, "StudyInstanceUID"),
        (0x0020000E, "SeriesInstanceUID"),
    ):
        if not _UID.fullmatch(text.get(tag, "")):
            raise Problem("archive.uid", keyword=keyword)
    return Entry(
        sop=text[0x00080018],
        series=text[0x0020000E],
        study=text[0x0020000D],
        sop_class=text[0x00080016],
        syntax=found.syntax,
        patient_id=text.get(0x00100020, ""),
        issuer=text.get(0x00100021, ""),
        accession=text.get(0x00080050, ""),
        study_id=text.get(0x00200010, ""),
        date=_date(text.get(0x00080020, "")),
        time=time_key(text.get(0x00080030, "")),
        names=tuple((f"{tag:08X}", *pair) for tag in (PATIENT_NAME, REFERRING_NAME) for pair in names.keys(text.get(tag, ""))),
        modality=text.get(0x00080060, ""),
        series_number=_integer(text.get(0x00200011, "")),
        step_date=_date(text.get(0x00400244, "")),
        step_time=time_key(text.get(0x00400245, "")),
        number=_integer(text.get(0x00200013, "")),
        frames=max(1, _integer(text.get(0x00280008, "")) or 1) if found.pixels else 0,
        pixels=found.pixels,
        study_brief=_brief(STUDY, found.members),
        series_brief=_brief(SERIES, found.members),
        instance_brief=_brief(INSTANCE, found.members),
        header="\n".join(found.members.values()),
    )


def _brief(tags: dict[int, str], members: dict[int, str]) -> str:
    """What is asked for is answered, be it empty; what need not be is left out when it is."""
    return "\n".join(
        [members.get(tag) or f'"{tag:08X}":{{"vr":"{vr}"}}' for tag, vr in tags.items() if tag in members or tag not in _OPTIONAL]
    )


def _date(text: str) -> str:
    found = text.replace(".", "")  # with the points of ACR-NEMA 2
    return found if _DATE.fullmatch(found) else ""


def time_key(text: str) -> str:
    """A time in the one form in which times compare as text: HHMMSS.FFFFFF; empty when it is none."""
    found = _TIME.fullmatch(text.replace(":", ""))
    if found is None:
        return ""
    hours, minutes, seconds, fraction = found.groups("")
    return f"{hours}{minutes:0>2}{seconds:0>2}.{fraction:0<6}"


def _integer(text: str) -> int | None:
    try:
        value = int(text)
    except ValueError:
        return None
    return value if -(2**31) <= value < 2**31 else None
