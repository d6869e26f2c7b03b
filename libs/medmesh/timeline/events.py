"""What an event is: the columns of MEDS 0.4 (Medical Event Data Standard) and those of our own beside them.

Times are wall-clock times of the hospital, without a zone, as MEDS has them; one with an offset is turned into the hospital's zone first.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Literal

BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
"""As `meds.birth_code` and `meds.death_code` have them."""

Precision = Literal["year", "month", "day", "hour", "minute", "second", "microsecond"]
CHINA = timezone(timedelta(hours=8))
_EPOCH = datetime(1970, 1, 1)
_FIRST, _LAST = datetime(1800, 1, 1), datetime(2400, 1, 1)  # data sets shift patients as far as 2200


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a source speaks of: a number and who gave it. A name of a person is never one."""

    authority: str
    local_id: str


@dataclass(frozen=True, slots=True)
class Draft:
    """An event as its source tells it, with the hospital's own identifiers and times.

    `key` names it within its source for good: the same key is the same event, told again or corrected. `revision` orders the corrections,
    None where the source does not number them. A `withdrawn` one was told by mistake. `raw` is what it was read from. `study_uid` is a
    DICOM study's: the event's text will point at its de-identified self.
    """

    identity: Identity
    source: str
    key: str
    code: str
    time: datetime | None = None
    precision: Precision | None = None
    numeric: float | None = None
    text: str | None = None
    unit: str | None = None
    code_system: str = ""
    modality: str = ""
    object_sha256: str | None = None
    revision: int | None = None
    withdrawn: bool = False
    study_uid: str | None = None
    raw: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Merge:
    """A source says that two identities are one person; the first goes on. `key` as in `Draft`. `undone` takes it back."""

    survivor: Identity
    loser: Identity
    source: str
    key: str
    undone: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a timeline. The first five are MEDS's columns (`numeric_value` is a float32 there), the others go beside them.

    `source_uri` is the source's kind and the keyed hash under which what it was read from is kept; `object_sha256` the stored object it
    is about. `time_precision` says to what `time` is exact: less than a day's is the beginning of the month or the year.
    """

    subject_id: int
    time: datetime | None
    code: str
    numeric_value: float | None
    text_value: str | None
    event_id: str
    source_uri: str
    object_sha256: str | None
    modality: str
    unit: str | None
    code_system: str
    time_precision: Precision | None
    ingested_at: datetime
    consent_id: str | None
    revision: int

    def shown_for(self, subject: int, days: int) -> Event:
        """The same event on another subject's axis."""
        if not days and subject == self.subject_id:
            return self
        return replace(self, subject_id=subject, time=None if self.time is None else self.time + timedelta(days=days))


def order(event: Event) -> tuple[bool, datetime, str, str]:
    """What a timeline is sorted by: static events first, then by time; of equal times by code and id, so that the order is one."""
    return event.time is not None, event.time or _EPOCH, event.code, event.event_id


def microseconds(time: datetime) -> int:
    """A wall-clock time as MEDS's timestamp[us] counts it."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_microseconds(value: int) -> datetime:
    """The other way."""
    return _EPOCH + timedelta(microseconds=value)


def local(time: datetime, zone: tzinfo) -> datetime:
    """Its wall-clock time in `zone`; one without an offset is such a time already."""
    return time if time.tzinfo is None else time.astimezone(zone).replace(tzinfo=None)


def parse_time(text: str, zone: tzinfo) -> tuple[datetime, Precision]:
    """ISO 8601 as FHIR has it (dates of less than a day included), with a blank for the T also, as CSV files do. Raises `ValueError`."""
    text = text.strip()
    if len(text) == 4:
        return _within(datetime(int(text), 1, 1)), "year"
    if len(text) == 7 and text[4] == "-":
        return _within(datetime(int(text[:4]), int(text[5:]), 1)), "month"
    found = datetime.fromisoformat(text)
    precision: Precision = "day" if len(text) == 10 else "microsecond" if "." in text else "second" if text.count(":") > 1 else "minute"
    return _within(local(found, zone)), precision


def parse_compact(text: str, zone: tzinfo) -> tuple[datetime, Precision]:
    """HL7 v2's TS and DICOM's DT: YYYY[MM[DD[HH[MM[SS[.S+]]]]]][+/-ZZZZ]. Raises `ValueError`."""
    text = text.strip()
    body, offset = text, None
    for sign in "+-":
        if sign in text:
            body, _, shift = text.partition(sign)
            minutes = int(shift[:2]) * 60 + int(shift[2:4] or 0)
            if not shift.isdecimal() or minutes > 14 * 60:
                raise ValueError("not an offset")
            offset = timezone(timedelta(minutes=minutes if sign == "+" else -minutes))
    digits, _, fraction = body.partition(".")
    if not digits.isdecimal() or not digits.isascii() or (fraction and not fraction.isdecimal()):
        raise ValueError("not a time")
    precisions: dict[int, Precision] = {4: "year", 6: "month", 8: "day", 10: "hour", 12: "minute", 14: "second"}
    if len(digits) not in precisions:
        raise ValueError("not a time")
    parts = [int(digits[:4]), *(int(digits[at : at + 2]) for at in range(4, len(digits), 2))]
    year, month, day, hour, minute, second = parts + [1, 1, 1, 0, 0, 0][len(parts) :]
    part = int(fraction[:6].ljust(6, "0")) if fraction else 0
    found = datetime(year, month, day, hour, minute, second, part, tzinfo=offset)
    return _within(local(found, zone)), "microsecond" if fraction else precisions[len(digits)]


def end_of(time: datetime, precision: Precision | None) -> datetime:
    """The last moment that a time of this precision may mean: what is known only to the day counts from the day's end on. Of a month or a
    year it is the longest there is, since their beginnings were moved by days."""
    lasts = {"hour": timedelta(hours=1), "day": timedelta(days=1), "month": timedelta(days=31), "year": timedelta(days=366)}.get(
        precision or ""
    )
    if precision == "day":
        time = time.replace(hour=0, minute=0, second=0, microsecond=0)
    return time if lasts is None else time + lasts - timedelta(microseconds=1)


def _within(time: datetime) -> datetime:
    if not _FIRST <= time < _LAST:
        raise ValueError("not a year of any patient")
    return time


def now() -> datetime:
    """This instant, for `ingested_at`."""
    return datetime.now(UTC)
