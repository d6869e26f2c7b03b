"""Verifying a copy of the log offline: every tile, every leaf, every stored body, every emitter's counter.

A copy is a folder: `checkpoint`, `tile/<level>/<number>`, `tile/entries/<number>`, and `bodies.jsonl` with one
`{"seq", "salt", "body"}` a line for the records the auditor may read.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmesh.errors import Problem
from medmesh.ledger import leaf as leaves
from medmesh.ledger import note, tiles
from medmesh.ledger.record import read_record
from medmesh.ledger.tree import leaf_hash, node_hash, root


@dataclass
class Report:
    """What was checked. `faults` name the first bad entry of each kind; none means that the copy is whole and unaltered."""

    origin: str = ""
    size: int = 0
    root: str = ""
    leaves: int = 0
    bodies: int = 0
    without_body: int = 0
    emitters: dict[str, int] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)

    @property
    def verified(self) -> bool:
        """Whether nothing was found."""
        return not self.faults

    def fault(self, check: str, **where: Any) -> None:
        """Note a fault; only the first of each check, so that the report stays readable."""
        if not any(known["check"] == check for known in self.faults):
            self.faults.append({"check": check, **where})


def verify_folder(
    folder: Path, vkey: str, *, need_bodies: bool = True, progress: Callable[[int, int], None] = lambda done, total: None
) -> Report:
    """Check everything in a copy. Raises `Problem` only when there is no copy to check."""
    report = Report()
    try:
        text = (folder / "checkpoint").read_text(encoding="utf-8")
    except OSError:
        raise Problem("ledger.no_copy", folder=folder.name) from None
    try:
        checkpoint = note.parse_checkpoint(note.verify(text, vkey))
    except Problem as problem:
        report.fault("checkpoint", reason=str(problem))
        return report
    report.origin, report.size, report.root = checkpoint.origin, checkpoint.size, checkpoint.root.hex()
    entries = list(_entries(folder, checkpoint.size, report))
    report.leaves = len(entries)
    _check_tiles(folder, checkpoint, entries, report)
    _check_bodies(folder, entries, report, need_bodies, progress)
    _check_counters(entries, report)
    return report


def _entries(folder: Path, size: int, report: Report) -> Iterator[bytes]:
    for number in range((size + tiles.WIDTH - 1) // tiles.WIDTH):
        width = min(tiles.WIDTH, size - number * tiles.WIDTH)
        where = tiles.path("entries", number, width)
        try:
            found = tiles.unbundle((folder / where).read_bytes())
        except (OSError, ValueError):
            found = []
        if len(found) != width:
            report.fault("entries", file=where, reason=f"{len(found)} entries instead of {width}")
        yield from found[:width]


def _check_tiles(folder: Path, checkpoint: note.Checkpoint, entries: list[bytes], report: Report) -> None:
    below = [leaf_hash(entry) for entry in entries]
    level = 0
    while below:
        for number in range((len(below) + tiles.WIDTH - 1) // tiles.WIDTH):
            hashes = below[number * tiles.WIDTH : (number + 1) * tiles.WIDTH]
            where = tiles.path(level, number, len(hashes))
            try:
                stored = (folder / where).read_bytes()
            except OSError:
                stored = b""
            if stored != b"".join(hashes):
                place = next((i for i, h in enumerate(hashes) if stored[i * 32 : i * 32 + 32] != h), 0)
                index = (number * tiles.WIDTH + place) << (8 * level)
                report.fault("tile" if level else "leaf", file=where, seq=index, reason="the stored hash is not that of the entry")
        full = [below[i : i + tiles.WIDTH] for i in range(0, len(below) - tiles.WIDTH + 1, tiles.WIDTH)]
        below = [_perfect(part) for part in full]
        level += 1
    cache = [leaf_hash(entry) for entry in entries]

    def node(height: int, index: int) -> bytes:
        return _perfect(cache[index << height : (index + 1) << height])

    if len(entries) == checkpoint.size and root(node, checkpoint.size) != checkpoint.root:
        report.fault("root", reason="the entries do not make the checkpoint's root")


def _perfect(hashes: list[bytes]) -> bytes:
    while len(hashes) > 1:
        hashes = [node_hash(hashes[i], hashes[i + 1]) for i in range(0, len(hashes), 2)]
    return hashes[0]


def _check_bodies(folder: Path, entries: list[bytes], report: Report, needed: bool, progress: Callable[[int, int], None]) -> None:
    seen = bytearray(len(entries))
    file = folder / "bodies.jsonl"
    for line in _lines(file):
        try:
            document = json.loads(line)
            seq, salt, body = int(document["seq"]), base64.b64decode(document["salt"]), base64.b64decode(document["body"])
        except (ValueError, KeyError, TypeError):
            report.fault("body", reason="a line cannot be read")
            continue
        if not 0 <= seq < len(entries):
            report.fault("body", seq=seq, reason="there is no such entry")
            continue
        seen[seq] = 1
        _check_body(seq, entries[seq], salt, body, report)
        report.bodies += 1
        if report.bodies % 1000 == 0:
            progress(report.bodies, len(entries))
    report.without_body = seen.count(0)
    if needed and report.without_body:
        report.fault("missing", seq=seen.index(0), reason="its body is not there")


def _lines(file: Path) -> Iterator[bytes]:
    if file.exists():
        with file.open("rb") as opened:
            yield from opened


def _check_body(seq: int, entry: bytes, salt: bytes, body: bytes, report: Report) -> None:
    try:
        leaf = leaves.decode(entry)
        if hashlib.sha256(salt + body).hexdigest() != leaf.commit:
            report.fault("body", seq=seq, reason="it is not the body that was logged", **_differs(body, leaf))
            return
        record = read_record(body)
        if record["n"] != leaf.n or record["src"]["service"] != leaf.emitter:
            report.fault("body", seq=seq, reason="it contradicts its leaf")
    except Problem as problem:
        report.fault("body", seq=seq, reason=str(problem))


def _differs(body: bytes, leaf: leaves.Leaf) -> dict[str, str]:
    """The field that can be told to differ although the original is gone: what stands in the leaf too, or what is malformed."""
    try:
        record = read_record(body)
    except Problem:
        return {"field": "canonical form"}
    if record["n"] != leaf.n:
        return {"field": "n"}
    return {"field": "one of the record's fields"}


def _check_counters(entries: list[bytes], report: Report) -> None:
    """Each emitter counts its own records: a gap is a loss before the log."""
    for seq, entry in enumerate(entries):
        try:
            leaf = leaves.decode(entry)
        except Problem:
            report.fault("leaf", seq=seq, reason="it is not a leaf of ours")
            continue
        last = report.emitters.get(leaf.emitter, 0)
        if leaf.n != last + 1:
            report.fault("counter", seq=seq, emitter=leaf.emitter, reason=f"record {leaf.n} follows {last}")
        report.emitters[leaf.emitter] = max(last, leaf.n)
