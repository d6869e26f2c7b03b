"""A piece of a text that says who somebody is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a span is; the value is what stands in its place, between brackets."""

    NAME = "NAME"
    DATE = "DATE"
    AGE = "AGE"
    """Of 90 years or more: there are few."""
    PHONE = "PHONE"
    IDENTITY = "IDENTITY"
    """Identity card, passport, social security number."""
    RECORD = "RECORD"
    """A number by which a hospital knows a patient, a visit or an examination."""
    ADDRESS = "ADDRESS"
    CONTACT = "CONTACT"
    """Electronic mail, account, address of a page."""
    HOSPITAL = "HOSPITAL"


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Characters `start` to `end` (not included) of a text, and the rule that saw them."""

    start: int
    end: int
    kind: Kind
    rule: str


def disjoint(spans: Iterable[Span]) -> list[Span]:
    """Spans in order, none touching another: of two that overlap one that covers both, of the longer one's kind."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.start, -one.end)):
        if merged and span.start < merged[-1].end:
            last = merged[-1]
            main = last if last.end - last.start >= span.end - span.start else span
            merged[-1] = Span(last.start, max(last.end, span.end), main.kind, main.rule)
        else:
            merged.append(span)
    return merged
