"""What a project keeps beyond the Basic Profile: the options of PS3.15 Annex E.3, and the codes of CID 7050 that declare them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from medmesh.errors import Problem

Dates = Literal["remove", "shift", "keep"]

MEANINGS = {
    "113100": "Basic Application Confidentiality Profile",
    "113101": "Clean Pixel Data Option",
    "113102": "Clean Recognizable Visual Features Option",
    "113103": "Clean Graphics Option",
    "113104": "Clean Structured Content Option",
    "113105": "Clean Descriptors Option",
    "113106": "Retain Longitudinal Temporal Information Full Dates Option",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113108": "Retain Patient Characteristics Option",
    "113109": "Retain Device Identity Option",
    "113110": "Retain UIDs Option",
    "113111": "Retain Safe Private Option",
    "113112": "Retain Institution Identity Option",
}
"""Code values of CID 7050 (PS3.16), coding scheme DCM."""

_CODES = {
    "graphics": "113103",
    "structured": "113104",
    "descriptors": "113105",
    "patient": "113108",
    "device": "113109",
    "uids": "113110",
    "private": "113111",
    "institution": "113112",
}
_WORDS = (*_CODES, "faces")


@dataclass(frozen=True, slots=True)
class Options:
    """The Basic Profile, and what is kept or cleaned instead of removed. Without any of it: the Basic Profile alone.

    Clean Pixel Data (113101) is no choice of a project: it is declared when pixels were masked. Clean Recognizable Visual Features (113102)
    is demanded by `faces`, and declared where a face was removed.
    """

    dates: Dates = "remove"
    """`shift`: the dates of one patient, all by the same number of days. `keep`: as they are. A date of birth always goes."""
    uids: bool = False
    """Retain UIDs."""
    device: bool = False
    """Retain the device's identity: station name, serial number. Titles of application entities go."""
    institution: bool = False
    """Retain the institution's identity."""
    patient: bool = False
    """Retain the patient's characteristics: sex, age, size, weight, pregnancy, smoking."""
    private: bool = False
    """Retain the private attributes of the standard's list (Table E.3.10-1) that hold numbers and codes."""
    descriptors: bool = False
    """Clean descriptions: of each, the words of the field stay; everything else goes."""
    structured: bool = False
    """Clean the content of reports by Table E.3.4-1 instead of blanking it; their free text stays only with `descriptors`, searched."""
    graphics: bool = False
    """Clean graphic annotations: their geometry stays, their text goes. Overlays and curves always go."""

    faces: bool = False
    """Remove the face from volumes in which one may be, by the software that is installed for it (`faces`); what it cannot be removed from
    is refused."""

    def __post_init__(self) -> None:
        if self.dates not in get_args(Dates):
            raise Problem("imaging.option_unknown", option=f"dates={self.dates}", known=KNOWN)

    @classmethod
    def parse(cls, text: str) -> Options:
        """Of words: `dates=shift patient device`. Raises `imaging.option_unknown` for any other."""
        chosen: dict[str, Any] = {}
        for word in text.replace(",", " ").split():
            name, _, value = word.partition("=")
            if name == "dates":
                chosen["dates"] = value
            elif word in _WORDS:
                chosen[word] = True
            else:
                raise Problem("imaging.option_unknown", option=word, known=KNOWN)
        return cls(**chosen)

    def __str__(self) -> str:
        """As `parse` takes it; equal options are equal text."""
        dates = [] if self.dates == "remove" else [f"dates={self.dates}"]
        return " ".join(dates + [name.name for name in fields(self) if name.name in _WORDS and getattr(self, name.name)])

    @property
    def codes(self) -> list[str]:
        """The code values of CID 7050 that say so, in order."""
        chosen = {"113100"} | {code for name, code in _CODES.items() if getattr(self, name)}
        chosen |= {"keep": {"113106"}, "shift": {"113107"}}.get(self.dates, set())
        return sorted(chosen)

    @property
    def kept(self) -> frozenset[str]:
        """What is retained, as the verifier has to know it (`verify(..., kept=)`)."""
        return frozenset({"uids", "institution", "device"} & self.columns | ({"dates"} if self.dates == "keep" else set()))

    @property
    def columns(self) -> frozenset[str]:
        """The columns of Table E.1-1 that count, by their names in our file of it."""
        dates = {"keep": {"dates_kept"}, "shift": {"dates_shifted"}}.get(self.dates, set())
        return frozenset({name for name in _CODES if getattr(self, name)} | dates)


KNOWN = " ".join(["dates=remove", "dates=shift", "dates=keep", *_WORDS])
