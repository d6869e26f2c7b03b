"""Taking in a source, as a hospital's node and the platform both do: what becomes of it, and its events a batch at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from medmesh.importing.port import Report
from medmesh.text import Sieve
from medmesh.timeline.events import Draft, Merge
from medmesh.timeline.identity import Namer
from medmesh.timeline.records import BATCH, Appended, Placed, place
from medmesh.timeline.terms import LOCAL, words

TEXT_DOUBTFUL, CODE_DOUBTFUL = "text_doubtful", "code_doubtful"


@dataclass
class Outcome:
    """What became of a source."""

    reader: str
    report: Report
    left_out: Counter[str]
    events: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    merges: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    appended: Appended = field(default_factory=Appended)

    def document(self, language: str = "en", *, places: bool = True) -> dict[str, Any]:
        """JSON for people; with `places` the faults with their places in the source."""
        done = self.appended
        told = {"findings": [finding.document(language) for finding in self.report.findings]} if places else {}
        return {
            "format": self.reader,
            "events": self.events,
            "kinds": dict(sorted(self.kinds.items())),
            "stored": done.stored,
            "revised": done.revised,
            "known": done.known,
            "withdrawn": done.withdrawn,
            "conflicts": done.conflicts,
            "merges": self.merges,
            "refused": dict(sorted(self.refused.items())),
            "patients": len(done.patients),
            "left_out": dict(sorted(self.left_out.items())),
            "errors": self.report.severities["error"],
            **told,
        }


def batch(
    found: Iterator[Draft | Merge], names: Namer, outcome: Outcome, sieve: Sieve | None = None
) -> tuple[list[Placed], list[Merge]] | None:
    """The next events and merges; None at the end. With a `sieve` what people wrote passes it, as where no patient's key seals it."""
    events: list[Placed] = []
    told: list[Merge] = []
    some = list(islice(found, BATCH))
    for one in some:
        if isinstance(one, Merge):
            told.append(one)
            continue
        outcome.events += 1
        outcome.kinds[one.code.partition("//")[0]] += 1
        kept = one if sieve is None else sifted(one, sieve, outcome.refused)
        if kept is not None:
            events.append(place(kept, names))
    return (events, told) if some else None


def sifted(draft: Draft, sieve: Sieve, refused: Counter[str]) -> Draft | None:
    """The draft without what rules for free text find in it. A text in which they doubt is left out of its event, and an event whose code
    is free words in which they do is none; both are counted."""
    if draft.code_system in LOCAL:
        said = words(draft.code)
        # Words were made a code in capitals: as names they would be written like this.
        said = said.title() if draft.code_system == "TEXT" else said
        if sieve.kept(said) != said:
            refused[CODE_DOUBTFUL] += 1
            return None
    if draft.text is None or draft.study_uid is not None:
        return draft
    if (text := sieve.kept(draft.text)) is None:
        refused[TEXT_DOUBTFUL] += 1
    return replace(draft, text=text)
