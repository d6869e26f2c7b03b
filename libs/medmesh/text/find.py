"""Names, dates, numbers, addresses and hospitals in Chinese and English clinical text, by rules; each rule has a name and its kind.

The rules err towards finding too much where a mark says what follows ("姓名：", "Dr."), and towards too little where nothing does:
a name without title, label or list of known names is not found. Whoever releases text has it reviewed (`review`), and gives the names
that are known of the patient as `known`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from medmesh.text.spans import Kind, Span, disjoint
from medmesh.text.vocabulary import begins_with_term, is_term

_HAN = r"[\u4e00-\u9fff\u3400-\u4dbf]"
_BEFORE = re.compile(r".*(?:在|于|到|赴|由|转|至|从|往|经|日|月|外院|当地|我院|本院)")
_WIDE = {0xFF01 + place: 0x21 + place for place in range(94)} | {0x3000: 0x20}  # full-width forms, one character for one


@dataclass(frozen=True, slots=True)
class _Rule:
    rule: str
    kind: Kind
    pattern: re.Pattern[str]
    name: bool = False


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files("medmesh.text").joinpath("rules.toml").read_text(encoding="utf-8"))


def _made(rules: Iterable[dict[str, Any]]) -> list[_Rule]:
    def whole(pattern: str) -> str:
        return re.sub(r"<([A-Z]+)>", lambda found: whole(_table()["pieces"][found[1]]), pattern)

    return [_Rule(one["rule"], Kind(one["kind"]), re.compile(whole(one["pattern"])), one.get("name", False)) for one in rules]


@cache
def _rules() -> list[_Rule]:
    return _made(_table()["rules"])


@cache
def _doubts() -> tuple[list[_Rule], re.Pattern[str]]:
    return _made(_table()["doubts"]["rules"]), re.compile(_table()["doubts"]["skip"], re.IGNORECASE)


def find(text: str, known: Iterable[str] = ()) -> list[Span]:
    """Everything in `text` that the rules or the names and identifiers in `known` see: in order, disjoint.

    Names of people in `known` are also found when their Chinese characters stand apart ("王 丽"); Latin ones in either case.
    """
    text = text.translate(_WIDE)
    spans = list(_known(text, known))
    for rule in _rules():
        for match in rule.pattern.finditer(text):
            start, end = match.span(1 if rule.pattern.groups else 0)
            if rule.kind is Kind.HOSPITAL and (lead := _BEFORE.match(text, start, end)):
                start = lead.end()
            if end > start and not (rule.name and begins_with_term(text[start:])):
                spans.append(Span(start, end, rule.kind, rule.rule))
    return disjoint(spans)


def doubts(text: str, sure: Iterable[Span] = ()) -> list[Span]:
    """What may be somebody's name in `text` although nothing beside it says so: words that begin like one and are none of the field's. No
    machine can decide it. What touches a span of `sure` is left out."""
    text = text.translate(_WIDE)
    rules, skip = _doubts()
    taken = list(sure)
    spans = []
    for rule in rules:
        for match in rule.pattern.finditer(text):
            start, end = match.span(1)
            words = re.findall(r"[A-Za-z]+", text[start:end])
            if begins_with_term(text[start:]) if rule.name else all(is_term(word) or skip.fullmatch(word) for word in words):
                continue
            if not any(one.start < end and start < one.end for one in taken):
                spans.append(Span(start, end, rule.kind, rule.rule))
    return disjoint(spans)


def redact(text: str, spans: Iterable[Span], replace: Callable[[Span, str], str] | None = None) -> str:
    """`text` with each span replaced: by its kind in brackets, or by what `replace` makes of the span and its text."""
    parts, done = [], 0
    for span in disjoint(spans):
        inside = text[span.start : span.end]
        parts += [text[done : span.start], f"[{span.kind}]" if replace is None else replace(span, inside)]
        done = span.end
    return "".join([*parts, text[done:]])


def _known(text: str, known: Iterable[str]) -> Iterator[Span]:
    for value in {one.strip() for one in known}:
        for form in {value, *re.split(r"[\^=]", value), value.replace("^", ""), value.replace("^", " ")}:
            letters = re.sub(r"\s", "", form)
            han = re.fullmatch(rf"{_HAN}+", letters) is not None
            if len(letters) < (2 if han else 3):
                continue
            pattern = r"[\s·]*".join(letters) if han else rf"(?<![A-Za-z0-9]){re.escape(form.strip())}(?![A-Za-z0-9])"
            for match in re.finditer(pattern, text, re.IGNORECASE):
                yield Span(match.start(), match.end(), Kind.NAME if not any(c.isdigit() for c in form) else Kind.RECORD, "known")
