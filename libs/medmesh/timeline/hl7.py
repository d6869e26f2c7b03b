"""HL7 v2.x messages as events: ADT A01 to A08 with their cancellations, A40, and ORU R01.

HL7 v2.5.1 chapters 3 (patient administration) and 7 (observations). Two things make a message safe to be sent again, late or twice: what it
tells is named by visit, order and code and not by the message, and of two tellings the later message (MSH-7) counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from medmesh.importing.port import Source
from medmesh.timeline.codes import coded, system, word
from medmesh.timeline.er7 import Message, Segment, Unreadable, messages, parse
from medmesh.timeline.events import BIRTH, DEATH, Draft, Identity, Merge, Precision, parse_compact
from medmesh.timeline.reading import Place, Reading, number, opened, start

NAME = "hl7"
_STARTS, _ENDS = ("A01", "A04"), ("A03",)
_CANCELS = {"A11": "START", "A13": "END"}
_TRANSFERS = ("A02",)
_OTHER = ("A05", "A06", "A07", "A08")
_TEXTS = ("TX", "FT", "ED")
_WITHDRAWN = frozenset("DWX")
_REPORTS = frozenset(("RAD", "CT", "MR", "US", "NMR", "RUS", "PAT", "SP", "CUS", "EC", "XRC", "VUS"))
"""Sections (OBR-24, table 0074) whose results are reports."""


def sniff(source: Source) -> float:
    """By what its files begin with."""
    begins = [start(source, name, 16).lstrip(b"\x0b\r\n \xef\xbb\xbf")[:4] for name in source.names[:20]]
    return 0.9 if any(one[:3] in (b"MSH", b"FHS", b"BHS") and not one[3:].isalnum() for one in begins) else 0.0


def read(source: Source, reading: Reading) -> Iterator[Draft | Merge]:
    """Every message of every file; one that is none is an error with its line."""
    for name in source.names:
        with opened(source, name) as file:
            for line, segments in messages(file):
                place = Place(name, line=line)
                try:
                    message = parse(line, segments)
                except Unreadable as error:
                    place.error(reading.report, error.code)
                    continue
                yield from _of(_Told(message, place, reading))


@dataclass
class _Told:
    """A message with what is needed to make events of it."""

    message: Message
    place: Place
    reading: Reading

    def time(self, segment: Segment, field: int) -> tuple[datetime | None, Precision | None]:
        name = f"{segment.name}-{field}"
        return self.reading.parsed(segment.get(field), self.place, name, parse_compact)

    def revision(self) -> int | None:
        """MSH-7 to the millisecond, as a number that grows."""
        text = self.message.header.get(7)
        try:
            time, _ = parse_compact(text, self.reading.zone)
        except (ValueError, OverflowError):
            return None
        return int(f"{time:%Y%m%d%H%M%S}{time.microsecond // 1000:03d}")

    @property
    def sender(self) -> str:
        header = self.message.header
        return f"{header.get(3)}@{header.get(4)}"


def identity(segment: Segment, field: int) -> Identity | None:
    """The hospital's number out of a repeated CX: by type MR, then PI, else the first. The authority is CX.4, its name or its id."""
    repetitions = segment.repetitions(field)
    best: tuple[int, Identity] | None = None
    for place in range(len(repetitions)):
        value = segment.take(repetitions, place, 1)
        if not value:
            continue
        rank = {"MR": 2, "PI": 1, "NI": -1, "SS": -1, "NNCHN": -1}.get(segment.take(repetitions, place, 5), 0)
        authority = segment.take(repetitions, place, 4) or segment.take(repetitions, place, 4, 2)
        if best is None or rank > best[0]:
            best = rank, Identity(authority, value)
    return best[1] if best else None


def _of(told: _Told) -> Iterator[Draft | Merge]:
    kind, trigger = told.message.header.get(9), told.message.header.get(9, 2)
    if kind == "ADT" and trigger == "A40":
        yield from _merges(told)
    elif kind == "ADT" and trigger in (*_STARTS, *_ENDS, *_TRANSFERS, *_OTHER, *_CANCELS):
        yield from _admission(told, trigger)
    elif kind == "ORU" and trigger == "R01":
        yield from _results(told)
    else:
        told.reading.left_out[word(f"{kind}.{trigger}")] += 1


def _merges(told: _Told) -> Iterator[Merge]:
    survivor: Identity | None = None
    for place, segment in enumerate(told.message.segments):
        if segment.name == "PID":
            survivor = identity(segment, 3)
        elif segment.name == "MRG":
            loser = identity(segment, 1)
            if survivor is None or loser is None:
                told.place.error(told.reading.report, "timeline.no_patient")
            elif survivor != loser:
                yield Merge(survivor, loser, NAME, f"{told.sender}/{told.message.header.get(10)}/{place}")


def _patient(told: _Told, segment: Segment) -> Identity | None:
    found = identity(segment, 3) or identity(segment, 2)
    if found is None:
        told.place.error(told.reading.report, "timeline.no_patient")
    return found


def _draft(told: _Told, who: Identity, key: str, code: str, at: datetime | None, precision: Precision | None, **other: object) -> Draft:
    return Draft(who, NAME, key, code, at, precision, revision=told.revision(), raw=told.message.raw, **other)  # type: ignore[arg-type]


def _demographics(told: _Told, who: Identity, segment: Segment) -> Iterator[Draft]:
    key = f"{who.authority}|{who.local_id}"
    for field, code, name in ((7, BIRTH, "birth"), (29, DEATH, "death")):
        at, precision = told.time(segment, field)
        if at is not None:
            yield _draft(told, who, f"{key}#{name}", code, at, precision)
    if sex := segment.get(8):
        yield _draft(told, who, f"{key}#gender", f"GENDER//{word(sex)}", None, None)


def _admission(told: _Told, trigger: str) -> Iterator[Draft]:
    pid, pv1, evn = (told.message.first(name) for name in ("PID", "PV1", "EVN"))
    who = _patient(told, pid)
    if who is None:
        return
    yield from _demographics(told, who, pid)
    visit = f"{pv1.get(19, 4)}|{pv1.get(19)}" if pv1.get(19) else f"{who.authority}|{who.local_id}|{pv1.get(44)}"
    kind = word(pv1.get(2))
    fallback = next(((at, precision) for field in (6, 2) for at, precision in [told.time(evn, field)] if at), (None, None))
    part, field = ("END", 45) if trigger in _ENDS or trigger == "A13" else ("START", 44)
    if trigger in (*_STARTS, *_ENDS, *_CANCELS):
        at, precision = told.time(pv1, field)
        if at is None:
            at, precision = fallback
        if at is None:
            told.place.error(told.reading.report, "timeline.no_time")
        else:
            code = f"ENCOUNTER//{kind}//{part}"
            yield _draft(told, who, f"visit|{visit}#{part}", code, at, precision, modality="encounter", withdrawn=trigger in _CANCELS)
    elif trigger in _TRANSFERS and fallback[0] is not None:
        code = f"TRANSFER//{word(pv1.get(3))}"
        yield _draft(told, who, f"visit|{visit}#transfer|{fallback[0]}", code, *fallback, modality="encounter")
    for segment in told.message.all("DG1"):
        yield from _diagnosis(told, who, visit, segment, fallback)


def _diagnosis(
    told: _Told, who: Identity, visit: str, segment: Segment, fallback: tuple[datetime | None, Precision | None]
) -> Iterator[Draft]:
    code, name = _code("DIAGNOSIS", segment, 3)
    at, precision = told.time(segment, 5)
    if at is None:
        at, precision = fallback
    if not code:
        told.place.error(told.reading.report, "timeline.no_code")
    elif at is None:
        told.place.error(told.reading.report, "timeline.no_time")
    else:
        yield _draft(told, who, f"visit|{visit}#dg1|{code}", code, at, precision, modality="diagnosis", code_system=name)


def _code(kind: str, segment: Segment, field: int) -> tuple[str, str]:
    """Of a CE or CWE: the alternate code where only that is of a standard system."""
    found = [(segment.get(field, at), system(segment.get(field, at + 2))) for at in (1, 4) if segment.get(field, at)]
    if not found:
        text = segment.get(field, 2)
        return (f"{kind}//TEXT//{word(text)}", "TEXT") if text else ("", "")
    value, name = next((one for one in found if one[1] != "LOCAL"), found[0])
    return coded(kind, name, value), name


def _results(told: _Told) -> Iterator[Draft]:
    who: Identity | None = None
    order: Segment | None = None
    orders, seen = 0, dict[str, int]()
    run: list[Segment] = []
    for segment in [*told.message.segments, Segment(["END"], told.message.header.marks)]:
        if run and (segment.name not in ("OBX", "NTE") or (segment.name == "OBX" and not _goes_on(run[0], segment))):
            if who is not None and order is not None:
                yield from _result(told, who, order, orders, run, seen)
            run = []
        if segment.name == "PID":
            who, order, seen = _patient(told, segment), None, {}
            if who is not None:
                yield from _demographics(told, who, segment)
        elif segment.name == "OBR":
            order, orders, seen = segment, orders + 1, {}
        elif segment.name == "OBX":
            run.append(segment)


def _goes_on(first: Segment, segment: Segment) -> bool:
    """Whether it is a further line of the same text."""
    return first.get(2) in _TEXTS and [first.get(n) for n in (2, 3, 4)] == [segment.get(n) for n in (2, 3, 4)]


def _result(told: _Told, who: Identity, order: Segment, number_: int, run: list[Segment], seen: dict[str, int]) -> Iterator[Draft]:
    first = run[0]
    report = first.get(2) in _TEXTS or order.get(24) in _REPORTS
    code, name = _code("REPORT" if report else "LAB", first, 3)
    if not code:
        told.place.error(told.reading.report, "timeline.no_code")
        return
    at, precision = next(
        (
            (at, precision)
            for segment, field in ((first, 14), (order, 7), (order, 22))
            for at, precision in [told.time(segment, field)]
            if at
        ),
        (None, None),
    )
    if at is None:
        told.place.error(told.reading.report, "timeline.no_time")
        return
    filler = order.get(3) or order.get(2)
    base = f"{order.get(3, 2)}|{filler}" if filler else f"{told.message.header.get(10)}|{number_}"
    key = f"{told.sender}|{base}|{order.get(4)}|{code}|{first.get(4)}"
    seen[key] = seen.get(key, 0) + 1
    if seen[key] > 1:
        key += f"#{seen[key]}"
    value = _value(run)
    withdrawn = first.get(11) in _WITHDRAWN
    modality = "text" if report else "lab"
    yield _draft(told, who, key, code, at, precision, modality=modality, code_system=name, withdrawn=withdrawn, **value)


def _value(run: list[Segment]) -> dict[str, object]:
    first, kind = run[0], run[0].get(2)
    unit = first.get(6) or None
    if kind in _TEXTS:
        return {"text": "\n".join(one.whole(5, at) for one in run for at in range(len(one.repetitions(5)))) or None}
    if kind == "NM" and (found := number(first.get(5))) is not None:
        return {"numeric": found, "unit": unit}
    if kind == "SN":
        sign, one, between, two = (first.get(5, at) for at in (1, 2, 3, 4))
        if sign in ("", "=") and not two and (found := number(one)) is not None:
            return {"numeric": found, "unit": unit}
        return {"text": f"{sign}{one}{between}{two}" or None, "unit": unit}
    if kind in ("CE", "CWE", "CNE"):
        return {"text": first.get(5, 2) or first.get(5) or None, "unit": unit}
    return {"text": first.whole(5).strip() or None, "unit": unit}
