"""What a person says to what the rules found. A value: it holds places and kinds, never the text, so that it may be stored and sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from medmesh.canonical import parse
from medmesh.errors import Problem
from medmesh.text.find import find, redact
from medmesh.text.spans import Kind, Span, disjoint

State = Literal["proposed", "accepted", "rejected", "added"]


@dataclass(frozen=True, slots=True)
class Judged:
    """A span, and what was said to it. `by` is the person, empty while nobody said anything."""

    span: Span
    state: State = "proposed"
    by: str = ""


@dataclass(frozen=True, slots=True)
class Review:
    """Of one text, which its SHA-256 (UTF-8) names."""

    digest: str
    judged: tuple[Judged, ...]

    @property
    def open(self) -> list[int]:
        """The places in `judged` that nobody has looked at."""
        return [place for place, one in enumerate(self.judged) if one.state == "proposed"]

    def accept(self, places: Iterable[int], by: str) -> Review:
        """These spans identify somebody."""
        return self._judge(places, "accepted", by)

    def reject(self, places: Iterable[int], by: str) -> Review:
        """These spans identify nobody and stay in the text."""
        return self._judge(places, "rejected", by)

    def add(self, start: int, end: int, kind: Kind, by: str) -> Review:
        """What the rules missed. Raises `text.span` for no characters."""
        if not 0 <= start < end:
            raise Problem("text.span")
        return replace(self, judged=(*self.judged, Judged(Span(start, end, kind, "person"), "added", by)))

    def apply(self, text: str) -> str:
        """`text` without what identifies: whatever nobody rejected goes. Raises `text.other` for any other text than the reviewed one."""
        if _digest(text) != self.digest:
            raise Problem("text.other")
        return redact(text, disjoint(one.span for one in self.judged if one.state != "rejected"))

    def document(self) -> str:
        """As JSON, without the text."""
        rows = [[one.span.start, one.span.end, one.span.kind, one.span.rule, one.state, one.by] for one in self.judged]
        return json.dumps({"sha256": self.digest, "spans": rows}, ensure_ascii=False)

    @classmethod
    def read(cls, document: str) -> Review:
        """From `document`. Raises `text.review` for anything else."""
        try:
            found = parse(document.encode())
            rows = tuple(_row(*row) for row in found["spans"])
            return cls(str(found["sha256"]), rows)
        except (ValueError, KeyError, TypeError):
            raise Problem("text.review") from None

    def _judge(self, places: Iterable[int], state: State, by: str) -> Review:
        chosen = set(places)
        if not chosen <= set(range(len(self.judged))):
            raise Problem("text.span")
        return replace(self, judged=tuple(replace(one, state=state, by=by) if n in chosen else one for n, one in enumerate(self.judged)))


def propose(text: str, known: Iterable[str] = ()) -> Review:
    """What the rules find, for a person to look at."""
    return Review(_digest(text), tuple(Judged(span) for span in find(text, known)))


def _row(start: int, end: int, kind: str, rule: str, state: State, by: str) -> Judged:
    if not (isinstance(start, int) and isinstance(end, int)) or state not in ("proposed", "accepted", "rejected", "added"):
        raise ValueError("no span")
    return Judged(Span(start, end, Kind(kind), str(rule)), state, str(by))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
