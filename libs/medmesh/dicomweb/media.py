"""Media types as DICOMweb uses them (PS3.18 §8.7): what a body is, what a client accepts, and which of what there is to choose."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from medmesh.errors import Problem

DICOM, JSON, OCTETS = "application/dicom", "application/dicom+json", "application/octet-stream"
MULTIPART = "multipart/related"
EXPLICIT = "1.2.840.10008.1.2.1"
NATIVE = frozenset(("1.2.840.10008.1.2", EXPLICIT, "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"))
LONGEST = 4096
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE = re.compile(rf"\s*({_WORD}/{_WORD})")
_PARAMETER = re.compile(rf'\s*;\s*({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]+))')

# Of encapsulated pixel data by transfer syntax (PS3.18 table 8.7.3-5).
_J = "1.2.840.10008.1.2.4."
COMPRESSED = {
    **dict.fromkeys((_J + "50", _J + "51", _J + "57", _J + "70"), "image/jpeg"),
    **dict.fromkeys((_J + "80", _J + "81"), "image/jls"),
    **dict.fromkeys((_J + "90", _J + "91"), "image/jp2"),
    **dict.fromkeys((_J + "92", _J + "93"), "image/jpx"),
    **dict.fromkeys((_J + "201", _J + "202", _J + "203"), "image/jphc"),
    **dict.fromkeys((_J + "100", _J + "101"), "video/mpeg"),
    **dict.fromkeys((_J + "102", _J + "103", _J + "104", _J + "105", _J + "106", _J + "107", _J + "108"), "video/mp4"),
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}


@dataclass(frozen=True, slots=True)
class MediaType:
    """`name` in lower case, and its parameters by names in lower case. In `multipart/related` the parts' type is its parameter `type`."""

    name: str
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def inner(self) -> str:
        """Of the parts, where there are parts; else its own."""
        return self.parameters.get("type", "*/*").lower() if self.name == MULTIPART else self.name

    @property
    def syntax(self) -> str:
        """The transfer syntax asked for: a UID, `*`, or empty."""
        return self.parameters.get("transfer-syntax", "")

    def takes(self, name: str) -> bool:
        """Whether it covers a media type, parts aside."""
        return self.inner in ("*/*", name) or (self.inner.endswith("/*") and name.startswith(self.inner[:-1]))


def parse(text: str) -> MediaType:
    """One media type. Raises `Problem` (`dicomweb.media_type`)."""
    found = list(_read(text))
    if len(found) != 1:
        raise Problem("dicomweb.media_type")
    return found[0]


def accepted(text: str | None) -> list[MediaType]:
    """What a client takes, most wanted first; everything when it says nothing. Raises `Problem` (`dicomweb.media_type`)."""
    found = list(_read(text or "*/*"))
    return sorted((one for one in found if _quality(one) > 0), key=lambda one: -_quality(one))


def _quality(media: MediaType) -> float:
    try:
        return float(media.parameters.get("q", "1"))
    except ValueError:
        raise Problem("dicomweb.media_type") from None


def _read(text: str) -> Iterable[MediaType]:
    """Types with commas between them."""
    if len(text) > LONGEST:
        raise Problem("dicomweb.media_type")
    place = 0
    while True:
        found = _TYPE.match(text, place)
        if found is None:
            raise Problem("dicomweb.media_type")
        name, place = found[1].lower(), found.end()
        parameters: dict[str, str] = {}
        while (one := _PARAMETER.match(text, place)) is not None:
            value = re.sub(r"\\(.)", r"\1", one[2]) if one[2] is not None else one[3]
            if parameters.setdefault(one[1].lower(), value) != value:
                raise Problem("dicomweb.media_type")
            place = one.end()
        yield MediaType(name, parameters)
        rest = text[place:].strip()
        if not rest or rest == ";":
            return
        if rest[0] != ",":
            raise Problem("dicomweb.media_type")
        place = text.index(",", place) + 1


def choose(wanted: Sequence[MediaType], offered: Sequence[str]) -> tuple[MediaType, str]:
    """The first of what is wanted that is offered, and which. Raises `Problem` (`dicomweb.not_acceptable`)."""
    for media in wanted:
        for name in offered:
            if media.takes(name):
                return media, name
    raise Problem("dicomweb.not_acceptable", offered=", ".join(offered))
