"""What was found in a data set, counted by rule; with a few pictures and distributions for people inside the hospital."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from medmesh.quality.rules import BLOCKING, Finding

SHOWN = 20
"""Places of one rule that are repeated; the rest is counted."""
PICTURES = 36


@dataclass(frozen=True, slots=True)
class Found:
    """A finding and where: the name of a file, an item or a series. Names of files name patients: inside the hospital only."""

    place: str
    finding: Finding


@dataclass(frozen=True, slots=True)
class Picture:
    """A thumbnail, PNG, and what it shows."""

    place: str
    png: bytes
    codes: tuple[str, ...] = ()


@dataclass(slots=True)
class Report:
    """Grows while a data set is looked at; its memory does not, but for 8 bytes a measure. `blocked` counts places, not findings."""

    title: str
    blocking: frozenset[str] = BLOCKING
    items: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[Found]] = field(default_factory=dict)
    blocked: int = 0
    pictures: list[Picture] = field(default_factory=list)
    measures: dict[str, array[float]] = field(default_factory=dict)
    clusters: list[int] = field(default_factory=list)
    """Sizes of clusters of near-duplicate pictures, largest first, those of one left out."""
    held: dict[str, int] = field(default_factory=dict)
    """What the rules hold back from the data set, in quarantine: objects by the rules they break."""

    def add(self, kind: str, place: str, findings: Iterable[Finding], *, counted: bool = True) -> tuple[str, ...]:
        """What was found of one item (or, not counted, of several together); answers the codes."""
        self.items[kind] += counted
        codes = []
        for finding in findings:
            self.counts[finding.code] += 1
            shown = self.places.setdefault(finding.code, [])
            if len(shown) < SHOWN:
                shown.append(Found(place, finding))
            codes.append(finding.code)
        self.blocked += not self.blocking.isdisjoint(codes)
        return tuple(codes)

    def measure(self, name: str, value: float) -> None:
        """One value of a distribution."""
        self.measures.setdefault(name, array("d")).append(value)

    def picture(self, place: str, png: bytes, codes: tuple[str, ...]) -> None:
        """Keep a thumbnail: of the first ones, and rather of those with findings."""
        if len(self.pictures) < PICTURES:
            self.pictures.append(Picture(place, png, codes))
        elif codes:
            plain = next((at for at, one in enumerate(self.pictures) if not one.codes), None)
            if plain is not None:
                self.pictures[plain] = Picture(place, png, codes)

    def document(self, language: str = "en") -> dict[str, Any]:
        """JSON for people and programs; pictures left out."""
        return {
            "title": self.title,
            "items": dict(sorted(self.items.items())),
            "blocked": self.blocked,
            "blocking": sorted(self.blocking),
            "held_back": dict(sorted(self.held.items())),
            "rules": [
                {
                    "code": code,
                    "count": count,
                    "blocking": code in self.blocking,
                    "places": [{"place": one.place, "detail": one.finding.said(language)} for one in self.places[code]],
                }
                for code, count in sorted(self.counts.items())
            ],
            "near_duplicates": {"clusters": len(self.clusters), "largest": max(self.clusters, default=0), "items": sum(self.clusters)},
        }
