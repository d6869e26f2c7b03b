"""Verifying a log from end to end: signatures, every entry, every tile, every stored body, every emitter's counter.

One pass from the first entry to the last; what is kept in memory is the right edge of the tree and a line an emitter, so that ten million
records take no more than ten. Nothing that is stored is believed: hashes are computed from entries, commitments from bodies.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice

from medmesh.errors import Problem
from medmesh.ledger import leaf as leaves
from medmesh.ledger import note, tiles
from medmesh.ledger.clocks import Counters
from medmesh.ledger.copies import Body, Copy, Signed
from medmesh.ledger.differ import differs
from medmesh.ledger.edge import Edge, split
from medmesh.ledger.missing import Missing
from medmesh.ledger.policy import Policy
from medmesh.ledger.record import outline
from medmesh.ledger.report import Report
from medmesh.ledger.second import Second, second

TOLERANCE = 900


@dataclass(frozen=True)
class Wanted:
    """How thoroughly. `bodies`: whether records are looked at; `partial`: whether some may be absent; `parse`: whether they are read,
    beyond their hash; `ours`: whether entries are leaves of an audit log, rather than anything in a tree.

    `kept`: a checkpoint from an earlier verification, which the log must still contain; with `resume` what it vouches for is not read
    again. `tolerance`: seconds a clock may run back before an entry counts as back-dated. `inspect` is shown every record that is what its
    leaf says, and notes what it finds in the report.
    """

    policy: Policy
    bodies: bool = True
    partial: bool = False
    parse: bool = True
    ours: bool = True
    kept: str | bytes | None = None
    resume: bool = False
    tolerance: int = TOLERANCE
    inspect: Callable[[Report, int, bytes], None] | None = None
    second: tuple[str, ...] = ()
    """Keys of the second tree: one of them must have signed it. Without any it is compared with its entries where there is one."""


def verify_log(copy: Copy, wanted: Wanted, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
    """Check everything in a copy. Raises `Problem` only when there is nothing to check, or the kept checkpoint is none."""
    run = _Run(copy, wanted)
    with _no_search_for_cycles():
        if run.begin():
            run.pass_over(progress)
            run.end()
    return run.report


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """What is read makes none, and looking for them takes an eighth of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


class _Run:
    def __init__(self, copy: Copy, wanted: Wanted) -> None:
        self.copy, self.wanted, self.report = copy, wanted, Report()
        self.edge = Edge()
        self.kept: note.Checkpoint | None = None
        self.root_known = True
        self.wrong_leaf: tuple[int, str] | None = None
        self.counters = Counters(self.report, wanted.tolerance)
        self.missing = Missing(self.report, allowed=wanted.partial)
        self.incoming: Iterator[Body] | None = None
        self.last_body = -1
        self.signed: Signed | None = None
        self.second: Second | None = None

    # --- before ------------------------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """The checkpoint and the one that was kept; whether there is a tree to go through."""
        if self.wanted.kept is not None:
            # Witnesses were asked for when it was kept; that the log signed it is what counts now.
            self.kept = Policy(self.wanted.policy.logs).verify(self.wanted.kept).checkpoint
        try:
            self.report.note = self.copy.checkpoint()
            found = self.wanted.policy.verify(self.report.note)
        except LookupError:
            self.report.fault(
                "checkpoint", Problem("ledger.missing_part", part="checkpoint"), incomplete=not self.copy.removed_is_tampering
            )
            return False
        except Problem as problem:
            if problem.code in ("ledger.no_copy", "ledger.unreachable"):
                raise
            self.report.fault("witness" if problem.code == "ledger.quorum" else "checkpoint", problem)
            return False
        self.checkpoint = found.checkpoint
        self.report.origin, self.report.size, self.report.root = found.log.name, found.checkpoint.size, found.checkpoint.root.hex()
        self.report.witnesses = dict(found.witnesses)
        if self.kept is not None and self.kept.size > self.checkpoint.size:
            self.report.fault("kept", Problem("ledger.rolled_back", kept=self.kept.size, size=self.checkpoint.size))
            self.kept = None
        if self.kept is not None and self.wanted.resume:
            self._resume(self.kept)
        self.last_body = self.report.start - 1
        self.incoming = self.copy.bodies(self.report.start, self.checkpoint.size) if self.wanted.bodies else None
        self.history = self.copy.history()
        self._next_signed()
        self.second = second(self.copy.second(), self.wanted.second, self.report, self.checkpoint.size, self.report.start)
        if self.wanted.bodies and self.incoming is None and self.checkpoint.size:
            self.report.fault("missing", Problem("ledger.no_bodies"), incomplete=not self.copy.removed_is_tampering)
        return True

    def _resume(self, kept: note.Checkpoint) -> None:
        size = self.checkpoint.size

        def read(level: int, number: int, width: int) -> bytes:
            """Tiles as the log is now: the narrower ones of then may be gone."""
            return self.copy.tile(level, number, tiles.width_at(size, level, number))[: width * tiles.HASH]

        try:
            self.edge = Edge.resume(kept.size, read)
        except (LookupError, ValueError) as error:
            self.report.fault("tile", Problem("ledger.missing_part", part=str(error)), incomplete=True)
            return
        if self.edge.root() != kept.root:
            self.report.fault("kept", Problem("ledger.not_an_extension", kept=kept.size))
            self.edge = Edge()
            return
        self.report.start = self.report.leaves = kept.size
        self.counters.resumed()
        self.kept = None

    # --- from end to end ---------------------------------------------------------------------------------------------

    def pass_over(self, progress: Callable[[int, int], None]) -> None:
        """Every bundle in turn."""
        size, sha = self.checkpoint.size, hashlib.sha256
        for number in range(self.report.start // tiles.WIDTH, -(-size // tiles.WIDTH)):
            begin, end = number * tiles.WIDTH, min(size, (number + 1) * tiles.WIDTH)
            skip = max(0, self.report.start - begin)
            bodies = self._bodies(begin + skip, end)
            stored = self._stored(0, number, end - begin)
            entries = self._entries(number, end - begin)
            if entries is None:
                self._blind(begin, skip, stored, end - begin)
            else:
                hashes = [sha(b"\0" + entry).digest() for entry in entries]
                self._leaves(begin, hashes, stored)
                if self.second is not None:
                    self.second.see(begin, entries)
                self._grow(begin, hashes[skip:])
                if self.wanted.ours:
                    self._records(begin + skip, entries[skip:], bodies)
                self.report.leaves += len(entries) - skip
            if number % 64 == 0:
                progress(end, size)
        progress(size, size)

    def _entries(self, number: int, width: int) -> Sequence[bytes] | None:
        where = tiles.path("entries", number, width)
        try:
            found = self.copy.entries(number, width)
        except LookupError:
            problem = Problem("ledger.missing_entries", seq=number * tiles.WIDTH, file=where)
            self.report.fault("entries", problem, incomplete=not self.copy.removed_is_tampering)
            return None
        except ValueError:
            found = []
        if len(found) != width:
            self.report.fault("entries", Problem("ledger.bundle", seq=number * tiles.WIDTH, file=where, got=len(found), wanted=width))
            return None
        return found

    def _stored(self, level: int, number: int, width: int) -> bytes | None:
        try:
            return self.copy.tile(level, number, width)
        except LookupError:
            where = tiles.path(level, number, width)
            self.report.fault("tile", Problem("ledger.missing_part", part=where), incomplete=not self.copy.removed_is_tampering)
            return None

    def _blind(self, begin: int, skip: int, stored: bytes | None, width: int) -> None:
        """Go on with the stored hashes where entries cannot be read: the rest is still compared with the root."""
        self.counters.interrupted()
        if self.second is not None:
            self.second.blind()
        if stored is not None and len(stored) == width * tiles.HASH:
            self._grow(begin, [stored[i : i + tiles.HASH] for i in range(0, len(stored), tiles.HASH)][skip:])
        else:
            self.root_known = False

    def _leaves(self, begin: int, hashes: list[bytes], stored: bytes | None) -> None:
        if stored is None or stored == b"".join(hashes):
            return
        place = next((i for i, h in enumerate(hashes) if stored[i * 32 : i * 32 + 32] != h), len(hashes) - 1)
        if self.wrong_leaf is None:
            self.wrong_leaf = begin + place, tiles.path(0, begin // tiles.WIDTH, len(hashes))

    def _grow(self, begin: int, hashes: list[bytes]) -> None:
        if not self.root_known:
            return
        first = self.edge.size
        while self.signed is not None and self.signed[0] <= first + len(hashes):
            self._check_signed(self.signed, hashes[: max(0, self.signed[0] - first)])
            self._next_signed()
        if self.kept is not None and self.kept.size <= first + len(hashes):
            if self.edge.root(hashes[: self.kept.size - first]) != self.kept.root:
                self.report.fault("kept", Problem("ledger.not_an_extension", kept=self.kept.size))
            self.kept = None
        for level, number, full, _ in self.edge.add(hashes):
            if level:
                self._compare(level, number, full)

    def _compare(self, level: int, number: int, hashes: bytes) -> None:
        width = len(hashes) // tiles.HASH
        stored = self._stored(level, number, width)
        if stored is not None and stored != hashes:
            place = next((i for i, h in enumerate(split(hashes)) if stored[i * 32 : i * 32 + 32] != h), 0)
            seq = (number * tiles.WIDTH + place) << (8 * level)
            self.report.fault("tile", Problem("ledger.tile_altered", seq=seq, file=tiles.path(level, number, width)))

    def _check_signed(self, signed: Signed, more: list[bytes]) -> None:
        """A checkpoint of the past that the copy still holds."""
        size, root, text = signed
        try:
            found = Policy(self.wanted.policy.logs).verify(text).checkpoint
        except Problem:
            self.report.fault("history", Problem("ledger.past_signature", size=size))
            return
        if (found.size, found.root) != (size, root) or size < self.edge.size or self.edge.root(more) != root:
            self.report.fault("history", Problem("ledger.past_root", size=size))

    def _next_signed(self) -> None:
        last = self.signed[0] if self.signed else -1
        self.signed = next(self.history, None)
        if self.signed is not None and self.signed[0] <= last:
            self.report.fault("history", Problem("ledger.past_root", size=self.signed[0]))

    # --- records -----------------------------------------------------------------------------------------------------

    def _bodies(self, begin: int, end: int) -> Sequence[Body | None]:
        """The bodies of these entries, in their places."""
        if self.incoming is None:
            return [None] * (end - begin)
        batch = list(islice(self.incoming, end - begin))
        if [body[0] for body in batch] == list(range(begin, end)):
            self.last_body = end - 1
            return batch
        got: list[Body | None] = [None] * (end - begin)
        self.incoming = chain(batch, self.incoming)
        for body in self.incoming:
            seq = body[0]
            if seq >= end:
                self.incoming = chain([body], self.incoming)
                break
            if seq < 0:
                self.report.fault("order", Problem("ledger.body_line", after=self.last_body))
            elif seq <= self.last_body:
                self.report.fault("order", Problem("ledger.body_order", seq=seq, after=self.last_body))
            else:
                self.last_body = seq
                got[seq - begin] = body
        self.last_body = max(self.last_body, end - 1)
        return got

    def _records(self, begin: int, entries: Sequence[bytes], bodies: Sequence[Body | None]) -> None:
        sha, counters, parse, report = hashlib.sha256, self.counters, self.wanted.parse, self.report
        inspect = self.wanted.inspect
        match = leaves.LAYOUT.fullmatch
        for seq, entry, body in zip(range(begin, begin + len(entries)), entries, bodies, strict=True):
            found = match(entry)
            if found is not None:
                _, digest, emitter, hour, number = found.groups()
                commit, n = digest.decode(), int(number)
            else:
                try:
                    leaf = leaves.decode(entry)
                except Problem:
                    report.fault("leaf", Problem("ledger.foreign_leaf", seq=seq))
                    counters.interrupted()
                    continue
                commit, emitter, hour, n = leaf.commit, leaf.emitter.encode(), leaf.hour.encode(), leaf.n
            if body is None:
                counters.see(seq, emitter, n, hour)
                if self.incoming is not None:
                    self.missing.note(seq)
                continue
            report.bodies += 1
            if sha(body[1] + body[2]).hexdigest() != commit:
                counters.see(seq, emitter, n, hour)
                self._altered(body, leaves.decode(entry))
                continue
            self.missing.read(seq, emitter, body[2])
            if not parse:
                counters.see(seq, emitter, n, hour)
                continue
            try:
                its, service, t, tr = outline(body[2])
            except Problem:
                counters.see(seq, emitter, n, hour)
                report.fault("body", Problem("ledger.body_form", seq=seq))
                continue
            counters.see(seq, emitter, n, hour, t, tr)
            if its != n or service.encode() != emitter or tr[:13].encode() != hour:
                field = "n" if its != n else "src.service" if service.encode() != emitter else "tr"
                report.fault("body", Problem("ledger.body_contradicts", seq=seq, field=field))
            if inspect is not None:
                inspect(report, seq, body[2])

    def _altered(self, body: Body, leaf: leaves.Leaf) -> None:
        seq, salt, content = body
        # The search for the field costs a second: for the first one only.
        field = differs(salt, content, leaf) if "body" not in self.report.counts else ""
        self.report.fault("body", Problem("ledger.body_altered", seq=seq, field=field or "-"))

    # --- after -------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Partial tiles, the root, and what is left over."""
        report, size = self.report, self.checkpoint.size
        self.missing.end()
        if self.root_known:
            for level, number, row in self.edge.partial():
                if level:
                    self._compare(level, number, row)
        whole = self.root_known and self.edge.root() == self.checkpoint.root
        if self.wrong_leaf is not None:
            seq, file = self.wrong_leaf
            # The root tells which of the two was touched: the entry, or the hash beside it.
            if whole:
                report.fault("tile", Problem("ledger.tile_altered", seq=seq, file=file))
            else:
                report.fault("leaf", Problem("ledger.leaf_altered", seq=seq, file=file))
        if self.second is not None:
            self.second.end()
        if self.root_known and not whole:
            report.fault("root", Problem("ledger.root", size=size))
        for seq, _, _ in self.incoming or ():
            if seq < 0:
                report.fault("order", Problem("ledger.body_line", after=self.last_body))
            else:
                report.fault("order", Problem("ledger.body_beyond", seq=seq, size=size))
        while self.signed is not None:
            report.fault("history", Problem("ledger.past_beyond", size=self.signed[0], newest=size))
            self._next_signed()
        for problem in self.copy.oddities():
            report.fault("column", problem)
        report.emitters = self.counters.document()
