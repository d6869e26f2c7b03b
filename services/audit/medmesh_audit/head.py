"""The head of the log in the hands of its writer: read and checked once, moved by one transaction a group.

Only one instance has the lock; and whoever writes moves `state.size` from the size it knows, in the term it took over with. One
that was overtaken while it slept touches no row there, and writes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Table

from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger.edge import Edge, FullTile, split
from medmesh.ledger.tiles import WIDTH
from medmesh.ledger.tree import EMPTY, Pair, fold, leaf_hash, node_hash
from medmesh.store.session import Session
from medmesh_audit.domain import Entry, facts
from medmesh_audit.tables import checkpoints, emitters, entries, tiles
from medmesh_audit.tables import facts as facts_table

LOCK = 7_236_484
SILENT_SECONDS = 5.0
"""A writer that was not heard of for so long is unseated."""
_STEP = 64

_TILES = "SELECT number, hashes, root FROM {} WHERE level = $1 AND number >= $2 AND number < $3 ORDER BY number"
_MOVE = "UPDATE state SET size = $1, beat = now() WHERE size = $2 AND term = $3"


@dataclass(frozen=True)
class Head:
    """`counters` is the last number of each emitter, `edge` the tree's, `term` which writer this is since the log began."""

    term: int
    edge: Edge
    counters: Mapping[str, int]


async def take_over(session: Session, vkey: str) -> Head:
    """The head for a new writer who has the lock. Everything is computed anew from the leaf hashes; what contradicts the last signed
    checkpoint raises `Problem` (`audit.inconsistent`): such a log must never be signed again."""
    term, size = (await session.fetch("UPDATE state SET term = term + 1, beat = now() RETURNING term, size"))[0]
    edge = await derive(session, size, alive=lambda: beat(session, term))
    if (last := (await session.fetch("SELECT max(seq) AS seq FROM entries"))[0]["seq"]) != (size - 1 if size else None):
        raise Problem("audit.inconsistent", what=f"the last entry is {last}, the size {size}")
    await _agrees_with_checkpoint(session, edge, vkey)
    counted = await session.fetch("SELECT emitter, n, (SELECT max(n) FROM entries x WHERE x.emitter = e.emitter) AS last FROM emitters e")
    if odd := next((row["emitter"] for row in counted if row["n"] != row["last"]), None):
        raise Problem("audit.inconsistent", what=f"the counter of {odd}")
    return Head(term, edge, {row["emitter"]: row["n"] for row in counted})


class Hashing(NamedTuple):
    """One of the trees over the entries, and where its full tiles lie."""

    table: str = "tiles"
    leaf: Callable[[bytes], bytes] = leaf_hash
    pair: Pair = node_hash
    empty: bytes = EMPTY


async def _nobody() -> None:
    """Nobody waits for a sign of life."""


async def derive(session: Session, size: int, tree: Hashing = Hashing(), *, alive: Callable[[], Awaitable[None]] = _nobody) -> Edge:
    """The edge of a log of `size` entries from its leaf hashes, comparing every stored tile on the way. Raises `Problem`."""
    below: list[bytes] = []
    level, partial = 0, dict[int, bytes]()
    while count := size >> (8 * level):
        full, width = divmod(count, WIDTH)
        above: list[bytes] = []
        for first in range(0, full, _STEP):
            rows = await session.fetch(_TILES.format(tree.table), level, first, min(first + _STEP, full))
            known = below[first * WIDTH : (first + _STEP) * WIDTH] if level else None
            above += await asyncio.to_thread(_roots, tree, level, range(first, min(first + _STEP, full)), rows, known)
            await alive()
        if level:
            partial[level] = b"".join(below[full * WIDTH :])
        elif width:
            partial[0] = await _tail(session, tree, full * WIDTH, size)
        below, level = above, level + 1
    return Edge.resume(size, lambda level, number, width: partial[level], tree.pair, tree.empty)


def _roots(tree: Hashing, level: int, places: range, rows: Sequence[Mapping[str, Any]], known: list[bytes] | None) -> list[bytes]:
    if [row["number"] for row in rows] != list(places):
        raise Problem("audit.inconsistent", what=f"{tree.table} {level}/{places[0]} to {places[-1]} are not all there")
    found = []
    for place, row in enumerate(rows):
        hashes = split(row["hashes"])
        found.append(fold(hashes, tree.pair))
        if found[-1] != row["root"] or (known is not None and hashes != known[place * WIDTH : (place + 1) * WIDTH]):
            raise Problem("audit.inconsistent", what=f"{tree.table} {level}/{places[place]}")
    return found


async def _tail(session: Session, tree: Hashing, first: int, end: int) -> bytes:
    rows = await session.fetch("SELECT seq, leaf, hash FROM entries WHERE seq >= $1 AND seq < $2 ORDER BY seq", first, end)
    if [row["seq"] for row in rows] != list(range(first, end)) or any(leaf_hash(row["leaf"]) != row["hash"] for row in rows):
        raise Problem("audit.inconsistent", what=f"entries {first} to {end - 1}")
    return b"".join(tree.leaf(row["leaf"]) for row in rows)


async def _agrees_with_checkpoint(session: Session, edge: Edge, vkey: str) -> None:
    rows = await session.fetch("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1")
    if not rows:
        if edge.size:
            raise Problem("audit.inconsistent", what="there are entries and no checkpoint")
        return
    signed = note.parse_checkpoint(note.verify(rows[0]["note"], vkey))
    if (signed.size, signed.root) != (edge.size, edge.root()):
        raise Problem("audit.inconsistent", what=f"the entries make another root than the checkpoint of size {signed.size}")


async def beat(session: Session, term: int) -> None:
    """Say that the writer lives. Raises `Problem` (`audit.overtaken`) when another took over."""
    if not await session.execute("UPDATE state SET beat = now() WHERE term = $1", term):
        raise Problem("audit.overtaken")


async def silent(session: Session) -> bool:
    """Whether the writer was not heard of for too long, by the database's clock."""
    return bool(await session.fetch("SELECT 1 FROM state WHERE beat < now() - make_interval(secs => $1)", SILENT_SECONDS))


def extended(head: Head, fresh: Sequence[Entry]) -> tuple[Head, list[FullTile]]:
    """The head after these entries, and the tiles they complete."""
    edge = head.edge.copy()
    done = edge.add([entry.hash for entry in fresh])
    return Head(head.term, edge, {**head.counters, **{entry.emitter: entry.n for entry in fresh}}), done


async def write(
    session: Session, before: Head, after: Head, fresh: Sequence[Entry], done: list[FullTile], signed: str, now: datetime
) -> None:
    """One transaction: the entries, what follows from them, and the checkpoint over them.

    Raises `Problem` (`audit.overtaken`) and `Collision`, and has written nothing then.
    """
    first, end = before.edge.size, after.edge.size
    placed = list(zip(range(first, end), fresh, strict=True))
    rows: dict[Table, list[dict[str, Any]]] = {
        entries: [_row(seq, entry, now) for seq, entry in placed],
        facts_table: [facts(seq, entry.parts) for seq, entry in placed],
        emitters: [{"emitter": name, "n": after.counters[name], "last_at": now} for name in {entry.emitter for entry in fresh}],
        checkpoints: [{"size": end, "root": after.edge.root(), "note": signed, "at": now}],
    }
    if done:
        rows[tiles] = [tile._asdict() for tile in done]
    if not await session.write((_MOVE, (end, first, before.term)), rows, latest=emitters):
        raise Problem("audit.overtaken")


def _row(seq: int, entry: Entry, now: datetime) -> dict[str, Any]:
    return {
        "seq": seq,
        "id": entry.id,
        "emitter": entry.emitter,
        "n": entry.n,
        "leaf": entry.leaf,
        "hash": entry.hash,
        "salt": entry.salt,
        "body": entry.body,
        "at": now,
    }
