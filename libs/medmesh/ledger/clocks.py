"""Each emitter counts its own records and dates them: a gap is a loss before the log, a clock that runs back a date that was made up."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from medmesh.errors import Problem
from medmesh.ledger.report import Report


class _Emitter:
    __slots__ = ("first", "gaps", "hour", "last", "missing", "records", "t", "tr")

    def __init__(self, n: int, hour: bytes) -> None:
        self.first, self.last, self.records, self.gaps, self.missing = n, n - 1, 0, 0, 0
        self.hour, self.t, self.tr = hour, "", ""


class Counters:
    """Fed with every leaf in order. Gaps become faults of the report, clocks that run back by more than `tolerance` seconds notices."""

    def __init__(self, report: Report, tolerance: int) -> None:
        self._report, self._tolerance = report, tolerance
        self._emitters: dict[bytes, _Emitter] = {}
        self._from_the_beginning = True
        self._blind: set[bytes] = set()

    def resumed(self) -> None:
        """What was before is vouched for: emitters go on from any number."""
        self._from_the_beginning = False

    def interrupted(self) -> None:
        """Some entries could not be read: what they counted is not known."""
        self._from_the_beginning = False
        self._blind = set(self._emitters)

    def see(self, seq: int, name: bytes, n: int, hour: bytes, t: str = "", tr: str = "") -> None:
        """One leaf: the emitter's counter, the coarse time, and with a body when it happened and was recorded."""
        emitter = self._emitters.get(name)
        if emitter is None:
            emitter = self._emitters[name] = _Emitter(n, hour)
            if self._from_the_beginning and n != 1:
                self._gap(seq, name, emitter, n, 0)
        elif n != emitter.last + 1 and name not in self._blind:
            self._gap(seq, name, emitter, n, emitter.last)
        if self._blind:
            self._blind.discard(name)
        emitter.records += 1
        if n > emitter.last:
            emitter.last = n
        if hour < emitter.hour:
            self._back(seq, name, "h", hour.decode(), emitter.hour.decode(), 3600)
        else:
            emitter.hour = hour
        if tr:
            if tr < emitter.tr:
                self._back(seq, name, "tr", tr, emitter.tr, 0)
            else:
                emitter.tr = tr
            if t > tr:
                self._back(seq, name, "t", tr, t, 0)
            elif t < emitter.t:
                self._back(seq, name, "t", t, emitter.t, 0)
            else:
                emitter.t = t

    def document(self) -> dict[str, dict[str, Any]]:
        """By emitter: first and last number, how many records, gaps, and records missing in them."""
        fields = ("first", "last", "records", "gaps", "missing")
        return {name.decode(): {field: getattr(found, field) for field in fields} for name, found in sorted(self._emitters.items())}

    def _gap(self, seq: int, name: bytes, emitter: _Emitter, n: int, last: int) -> None:
        emitter.gaps += 1
        emitter.missing += max(0, n - last - 1)
        self._report.fault("counter", Problem("ledger.counter", seq=seq, emitter=name.decode(), got=n, wanted=last + 1))

    def _back(self, seq: int, name: bytes, field: str, early: str, late: str, coarse: int) -> None:
        """`early` stands where nothing before `late` should; `coarse` is how many seconds the field leaves open."""
        try:
            seconds = int((_moment(late) - _moment(early)).total_seconds())
        except ValueError:
            problem = Problem("ledger.no_date", seq=seq, emitter=name.decode(), field=field, got=early, after=late)
            self._report.fault("date", problem)
            return
        if seconds - coarse >= self._tolerance:
            self._report.notice(
                Problem("ledger.backwards", seq=seq, emitter=name.decode(), field=field, got=early, after=late, seconds=seconds)
            )


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text if len(text) > 13 else f"{text}:00:00Z")
