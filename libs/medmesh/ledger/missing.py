"""Bodies that are not in a copy: pruned, where a record of the log itself says so, and otherwise missing."""

from __future__ import annotations

import json

from medmesh.errors import Problem
from medmesh.ledger.report import Report

_MARK, _EMITTER = b'"sub":"log.prune"', b"audit"


class Missing:
    """Fed in order. What says up to where bodies went (the minimum index) stands in the log behind what went."""

    def __init__(self, report: Report, *, allowed: bool) -> None:
        self._report, self._allowed = report, allowed
        self._runs: list[list[int]] = []

    def note(self, seq: int) -> None:
        """A record without its body."""
        self._report.without_body += 1
        if self._runs and self._runs[-1][1] == seq:
            self._runs[-1][1] = seq + 1
        else:
            self._runs.append([seq, seq + 1])

    def read(self, seq: int, emitter: bytes, body: bytes) -> None:
        """A record whose body is the one that was logged: perhaps it says that others went."""
        if emitter != _EMITTER or _MARK not in body:
            return
        record = json.loads(body)
        minimum = record["detail"].get("minimum")
        if record["sub"] == "log.prune" and record["out"] == 0 and type(minimum) is int and minimum <= seq:
            self._report.pruned = max(self._report.pruned, minimum)

    def end(self) -> None:
        """Say what is missing."""
        if self._allowed:
            return
        for first, end in self._runs:
            for seq in range(max(first, self._report.pruned), end):
                self._report.fault("missing", Problem("ledger.body_missing", seq=seq))
