"""Verifying the second tree of a copy, beside the first: the same entries under SM3, and a checkpoint signed with SM2.

It may be a little shorter than the first, which it follows. What is found is said of `sm3`, so that nobody takes one tree for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from medmesh.errors import Problem
from medmesh.ledger import note, tiles
from medmesh.ledger.edge import Edge, split
from medmesh.ledger.report import Report

PREFIX = "sm3"
"""Where the second tree lies below the first: of the served log, of a folder."""


class Stored(Protocol):
    """As `medmesh.ledger.copies.Copy`, for one tree."""

    @property
    def removed_is_tampering(self) -> bool:
        """Whether what is missing was taken away."""

    def checkpoint(self) -> bytes:
        """The signed note. Raises `LookupError`."""

    def tile(self, level: int, number: int, width: int) -> bytes:
        """Hashes. Raises `LookupError`."""


def second(copy: Stored | None, vkeys: Sequence[str], report: Report, size: int, start: int) -> Second | None:
    """What checks the second tree of a copy of `size` entries that is read from `start` on; None where there is nothing to check."""
    try:
        text = copy.checkpoint() if copy is not None else None
    except LookupError:
        text = None
    if text is None:
        if vkeys:
            missing = Problem("ledger.missing_part", part=f"{PREFIX}/checkpoint")
            report.fault(PREFIX, missing, incomplete=copy is None or not copy.removed_is_tampering)
        return None
    try:
        from medmesh.ledger import sm
    except ImportError:
        if vkeys:
            report.fault(PREFIX, Problem("ledger.sm_missing"), incomplete=True)
        else:
            report.notice(Problem("ledger.sm_missing"))
        return None
    assert copy is not None
    try:
        found = sm.verify(text, vkeys) if vkeys else note.parse_checkpoint(note.split(text.decode())[0])
        if found.origin != report.origin + sm.SUFFIX:
            raise Problem("ledger.origin", wanted=report.origin + sm.SUFFIX, got=found.origin)
        if found.size > size:
            raise Problem("ledger.rolled_back", kept=found.size, size=size)
    except (Problem, ValueError) as error:
        report.fault(f"{PREFIX}-checkpoint", error if isinstance(error, Problem) else Problem("ledger.note", reason="it is not UTF-8"))
        return None
    if not vkeys:
        report.notice(Problem("ledger.sm_unsigned"))
    return Second(copy, report, found, start, sm)


class Second:
    """Fed with the entries in order, like the first."""

    def __init__(self, copy: Stored, report: Report, found: note.Checkpoint, start: int, module: Any) -> None:
        self._copy, self._report, self._found = copy, report, found
        self._sm = module
        self._edge: Edge | None = module.edge()
        if start:
            self._resume(min(start, found.size))
        report.second = {"origin": found.origin, "size": found.size, "root": found.root.hex()}

    def _resume(self, size: int) -> None:
        def read(level: int, number: int, width: int) -> bytes:
            return self._copy.tile(level, number, tiles.width_at(self._found.size, level, number))[: width * tiles.HASH]

        try:
            self._edge = self._sm.resume(size, read)  # a wrong one makes another root than the signed one
        except (LookupError, ValueError) as error:
            self._report.fault(f"{PREFIX}-tile", Problem("ledger.missing_part", part=f"{PREFIX}: {error}"), incomplete=True)
            self._edge = None

    def see(self, first: int, entries: Sequence[bytes]) -> None:
        """Entries from the number `first` on."""
        if self._edge is None or first >= self._found.size:
            return
        begin = self._edge.size - first
        if not 0 <= begin <= len(entries):
            return
        leaf_hash = self._sm.leaf_hash
        for level, number, hashes, _ in self._edge.add([leaf_hash(e) for e in entries[begin : self._found.size - first]]):
            self._compare(level, number, hashes)

    def blind(self) -> None:
        """Entries could not be read: what is behind them makes no root."""
        self._edge = None

    def end(self) -> None:
        """Partial tiles and the root."""
        if self._edge is None:
            return
        for level, number, hashes in self._edge.partial():
            self._compare(level, number, hashes)
        if self._edge.size != self._found.size or self._edge.root() != self._found.root:
            self._report.fault(f"{PREFIX}-root", Problem("ledger.sm_root", size=self._found.size))

    def _compare(self, level: int, number: int, hashes: bytes) -> None:
        width = len(hashes) // tiles.HASH
        where = f"{PREFIX}/{tiles.path(level, number, width)}"
        try:
            stored = self._copy.tile(level, number, width)
        except LookupError:
            self._report.fault(f"{PREFIX}-tile", Problem("ledger.missing_part", part=where), incomplete=not self._copy.removed_is_tampering)
            return
        if stored != hashes:
            place = next((i for i, h in enumerate(split(hashes)) if stored[i * 32 : i * 32 + 32] != h), 0)
            seq = (number * tiles.WIDTH + place) << (8 * level)
            self._report.fault(f"{PREFIX}-tile", Problem("ledger.tile_altered", seq=seq, file=where))
