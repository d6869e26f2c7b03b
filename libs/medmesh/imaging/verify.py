"""Whether anything identifying of a DICOM data set is still in the bytes that were made from it.

Knows nothing of the profile and shares no table with the engine: it takes the original's values by their kind and searches for each of
them in the result, so that a gap in the table, a forgotten private element or a name inside some text shows up here. Beyond what the
source held, an identity number or a mobile number anywhere is a hit, and so is a document inside. It errs towards finding too much.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydicom import uid
from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VR
from pydicom.dataset import Dataset

from medmesh.errors import Problem
from medmesh.imaging import chinese
from medmesh.imaging.reading import parse, write

# What de-identification itself writes says nothing about anybody.
_DUMMIES = frozenset(("REMOVED", "19000101", ""))
SHORTEST = 4  # characters; bytes in other scripts: shorter values occur everywhere by chance
_ENCODINGS = ("utf-8", "gb18030", "utf-16-le", "utf-16-be", "iso2022_jp", "shift_jis", "euc_kr", "big5")
_GUESSES = ("gb18030", "utf-8", "big5")
_IDENTIFIER = re.compile(
    r"(?:IDs?|Identifier|Number|Numbers|Address|Locator|Telephone|(?:Institution|Station|Department|Organization)\w*Name)$"
)
_OF_KEPT = {
    "institution": re.compile(r"Institution|Department|Organization|ClinicalTrial(?:Site|Coord|Protocol)|SourceOfPrevious"),
    "device": re.compile(
        r"Station|Device|Serial|Detector|Gantry|Cassette|Plate|Generator|Equipment|Lens|Camera|Source|Manufacturer|Transducer"
    ),
}
_TEXT = frozenset(("SH", "LO", "ST", "LT", "UT", "UC"))
_STRINGS = _TEXT | {"AE", "AS", "CS", "DA", "DT", "PN", "TM", "UN", "UR"}
_WANTED = _TEXT | {"UI", "DA", "DT", "PN"}
_TERMS = frozenset(("CS", "AS"))
_NEW_UID = re.compile(rb"2\.25\.\d{25,39}")
_ANY_UID = re.compile(rb"(?<![\d.])[0-2](?:\.\d+){3,}")
_APART = re.compile(r"[\s\u00b7·^=]+")


@dataclass
class _Wanted:
    """What to search for, each with the attribute it is of."""

    uids: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    """Names, their parts, identifiers, dates."""
    dates: dict[str, str] = field(default_factory=dict)
    """Dates as people write them, for text only."""
    people: set[str] = field(default_factory=set)
    """Those of `texts` that are of people."""
    chinese: dict[str, str] = field(default_factory=dict)
    """Names in Chinese characters, with the "^" between family name and given name."""
    raw: dict[bytes, str] = field(default_factory=dict)
    """Names and identifiers as the bytes that they were, whatever these mean."""


def verify(original: Dataset, result: bytes, *, kept: Collection[str] = ()) -> list[str]:
    """What of `original` still occurs in `result`: keywords (tags of private attributes) at any depth, or what was found beyond them
    (`identity card`, `mobile telephone`, `EncapsulatedDocument`); best empty.

    Looked for are names with their parts and their pinyin, identifiers, dates and UIDs, in UTF-8, GB18030, UTF-16, the other character
    sets of DICOM and in the very bytes of the source, in either case. Of `kept`, the options that retain something, `dates`, `uids`,
    `institution` and `device` excuse values of that kind; a date of birth is never excused. Short values are searched for in text only,
    whole words; pixels for values of people of 8 bytes and more: anything shorter occurs there by chance.
    Raises `imaging.unreadable` or `imaging.not_dicom` for a result that is no DICOM file.
    """
    parsed = parse(result, lazily=True)
    header, pixels = _split(parsed, write(parsed) if parsed.file_meta.TransferSyntaxUID.is_deflated else result)
    header = (_ANY_UID if "uids" in kept else _NEW_UID).sub(b"", header)  # a kept UID may hold the date when it was made (PS3.15 §E.3.9)
    try:
        text = "\n".join(_strings(parsed, _STRINGS - _TERMS))
        terms = "\n".join(_strings(parsed, _TERMS)).lower()
        wanted = _wanted(original, kept)
    except Problem:
        raise
    except Exception as error:  # pydicom decodes when first looked at, and lets errors of every kind through
        raise Problem("imaging.unreadable", reason=type(error).__name__) from None
    found = chinese.personal_numbers(header)
    if len(parsed.get("EncapsulatedDocument") or b"") > 2:
        found.add("EncapsulatedDocument")
    found |= {keyword for value, keyword in wanted.uids.items() if _has_uid(value.encode(), header)}
    found |= _texts(wanted, text.lower(), terms, header.lower(), pixels.lower())
    return sorted(found | _names(wanted, text))


def _texts(wanted: _Wanted, text: str, terms: str, header: bytes, pixels: bytes) -> set[str]:
    found = set()
    words: set[str] | None = None
    for value, keyword in wanted.texts.items():
        if value.isascii():
            if len(value) < 6:
                if words is None:
                    words = set(re.findall(r"[a-z0-9]+", text))
                hit = value in words or (not value.isalnum() and value in text)
            else:
                needle = value.encode()
                wide = b"\0".join([bytes([byte]) for byte in needle])
                hit = (
                    needle in header
                    or wide in header
                    or (len(needle) >= 8 and value in wanted.people and (needle in pixels or wide in pixels))
                )
        else:
            needles = _encoded(value)
            hit = value in text or value in terms or any(needle in header for needle in needles)
            hit = hit or (value in wanted.people and any(len(needle) >= 8 and needle in pixels for needle in needles))
        if hit:
            found.add(keyword)
    found |= {keyword for form, keyword in wanted.dates.items() if form in text}
    return found | {keyword for needle, keyword in wanted.raw.items() if needle in header}


def _names(wanted: _Wanted, text: str) -> set[str]:
    """Of Chinese names those that stand in the text with other things between their characters, or as pinyin."""
    if not wanted.chinese:
        return set()
    joined, latin = _APART.sub("", text), chinese.plain(text)
    found = set()
    for name, keyword in wanted.chinese.items():
        pattern = chinese.pinyin(name)
        match = pattern.search(latin) if pattern else None
        if chinese.han(name) in joined or (match and sum(map(str.isalpha, match[0])) >= SHORTEST):
            found.add(keyword)
    return found


def _wanted(original: Dataset, kept: Collection[str]) -> _Wanted:
    wanted = _Wanted()
    for dataset, element, vr in _elements(original):
        if vr not in _WANTED:
            continue
        tag = element.tag
        keyword = dictionary_keyword(tag) if dictionary_has_tag(tag) else str(tag)
        if vr == "UI":
            if "uids" not in kept:
                for one in _values(dataset, element):
                    if len(one) >= SHORTEST and one not in uid.UID_dictionary:
                        wanted.uids.setdefault(one, keyword)
        elif vr in ("DA", "DT"):
            if "dates" not in kept or "Birth" in keyword:
                for one in _values(dataset, element):
                    _want_date(wanted, one[:8] if vr == "DT" else one, keyword)
        elif vr == "PN" or (vr in _TEXT and _IDENTIFIER.search(keyword) and not _excused(keyword, kept)):
            _want_text(wanted, dataset, element, keyword, person=vr == "PN" or keyword.startswith(("Patient", "OtherPatient")))
    return wanted


def _excused(keyword: str, kept: Collection[str]) -> bool:
    return any(name in kept and pattern.search(keyword) is not None for name, pattern in _OF_KEPT.items())


def _want_date(wanted: _Wanted, value: str, keyword: str) -> None:
    if value in _DUMMIES or len(value) < SHORTEST:
        return
    digits = value.replace(".", "")
    forms: set[str] = set()
    if len(digits) == 8 and digits.isdigit():
        year, month, day = digits[:4], digits[4:6], digits[6:]
        forms |= {*(f"{year}{sign}{month}{sign}{day}" for sign in "-/."), *(f"{day}{sign}{month}{sign}{year}" for sign in "-/.")}
        forms |= {f"{year}年{int(month)}月{int(day)}日", f"{year}年{month}月{day}日"}
    for form in {value, digits if len(digits) >= SHORTEST else value}:
        wanted.texts.setdefault(form, keyword)
    for form in forms:
        wanted.dates.setdefault(form, keyword)


def _want_text(wanted: _Wanted, dataset: Dataset, raw: Any, keyword: str, *, person: bool) -> None:
    values = set(_values(dataset, raw))
    source = _bytes_of(raw.value)
    if not source.isascii():
        for encoding in _GUESSES:  # whatever the file says that its text is in
            try:
                values |= set(source.decode(encoding).split("\\"))
            except UnicodeDecodeError:
                continue
        for piece in re.split(rb"[\\=^ \0]+", source):
            if len(piece) >= SHORTEST and not piece.isascii():
                wanted.raw.setdefault(piece.lower(), keyword)
    for value in values:
        for group in value.split("=") if person else [value]:
            forms = {group} | ({group.replace("^", ""), group.replace("^", " "), *group.split("^")} if "^" in group else set())
            for form in {one.strip(" \0").lower() for one in forms}:
                if form.upper() not in _DUMMIES and (len(form) >= SHORTEST or (len(form) > 1 and len(form.encode()) >= SHORTEST)):
                    wanted.texts.setdefault(form, keyword)
                    if person:
                        wanted.people.add(form)
            if person and len(chinese.han(group)) > 1:
                wanted.chinese.setdefault(group, keyword)


def _bytes_of(value: Any) -> bytes:
    """The bytes that a text was, as far as they can be told once it was decoded."""
    value = getattr(value, "original_string", value)
    if isinstance(value, bytes):
        return value
    try:
        return str(value or "").encode("latin-1")
    except UnicodeEncodeError:
        return b""


def _elements(dataset: Dataset) -> Iterator[tuple[Dataset, Any, str]]:
    """Every element that is no sequence, decoded or not, with the data set that it is in and its kind of value."""
    for tag, element in list(dataset.items()):
        vr = element.VR
        if vr is None or vr == "UN":
            vr = dictionary_VR(tag) if dictionary_has_tag(tag) else "UN"
        if vr == "SQ":
            for item in dataset[tag].value or ():
                yield from _elements(item)
        else:
            yield dataset, element, vr


def _values(dataset: Dataset, element: Any) -> list[str]:
    """The values of one element as text, stripped."""
    if element.is_raw and (element.value is None or (element.value.isascii() and b"\x1b" not in element.value)):
        return [one.strip(" \0") for one in (element.value or b"").decode().split("\\")]
    decoded = dataset[element.tag]
    if isinstance(decoded.value, bytes):
        return [decoded.value.decode("latin-1")]
    return [str(one).strip() for one in (decoded.value if decoded.VM > 1 else [decoded.value]) if one is not None]


def _strings(dataset: Dataset, kinds: Collection[str]) -> Iterator[str]:
    """The values that are text; numbers written as text (DS, IS) and UIDs are not."""
    for inside, element, vr in _elements(dataset):
        if vr in kinds:
            yield from _values(inside, element)


def _split(parsed: Dataset, data: bytes) -> tuple[bytes, bytes]:
    """The file without its pixels, and the pixels."""
    raw = parsed.get_item("PixelData") if "PixelData" in parsed else None
    value = raw.value if raw is not None and isinstance(raw.value, bytes) else b""
    place = data.find(value) if len(value) >= SHORTEST else -1
    return (data, b"") if place < 0 else (data[:place] + data[place + len(value) :], value)


def _has_uid(value: bytes, data: bytes) -> bool:
    return value in data and re.search(rb"(?<![\d.])" + re.escape(value) + rb"(?![\d.])", data) is not None


def _encoded(value: str) -> set[bytes]:
    needles = set()
    for encoding in _ENCODINGS:
        try:
            needle = value.encode(encoding).lower()
        except UnicodeEncodeError:
            continue
        if len(needle) >= SHORTEST:
            needles.add(needle)
    return needles
