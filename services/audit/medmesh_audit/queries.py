"""What auditors ask: records by who, what and when, proofs, tiles, bodies."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, literal, select, tuple_, type_coerce, union_all
from sqlalchemy.dialects.postgresql import JSONB

from medmesh.errors import Problem
from medmesh.ledger import proof
from medmesh.ledger import tiles as tile
from medmesh.ledger.leaf import body_document
from medmesh.ledger.tree import Node, consistency_proof, inclusion_proof
from medmesh.store.unit import UnitOfWork
from medmesh_audit.domain import Shown
from medmesh_audit.tables import checkpoints, emitters, entries, facts, tiles

PAGE = 500


async def checkpoint(uow: UnitOfWork[Any], size: int | None = None) -> Any:
    """The newest checkpoint row, or that of a size. Raises `Problem`."""
    wanted = select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1)
    row = await uow.first(wanted if size is None else wanted.where(checkpoints.c.size == size))
    if row is None:
        raise Problem("request.not_found", kind="checkpoint", id=str(size or "newest"))
    return row


async def tile_bytes(uow: UnitOfWork[Any], level: int, number: int, width: int) -> bytes:
    """A tile's hashes. Raises `Problem` when the log is not that large."""
    found = (await _tiles(uow, [(level, number, width)]))[level, number, width]
    if len(found) != width * tile.HASH:
        raise Problem("request.not_found", kind="tile", id=tile.path(level, number, width))
    return found


Tile = tuple[int, int, int]
"""(level, number, width)"""


async def _tiles(uow: UnitOfWork[Any], wanted: Iterable[Tile]) -> dict[Tile, bytes]:
    """Tiles by (level, number, width). Full ones are stored; a partial one is what lies below it: entries, or the roots of tiles."""
    whole = {(level, number) for level, number, _ in wanted}
    rows = await uow.all(select(tiles.c.level, tiles.c.number, tiles.c.hashes).where(tuple_(tiles.c.level, tiles.c.number).in_(whole)))
    stored = {(row.level, row.number): row.hashes for row in rows}
    partial = [tile_ for tile_ in wanted if tile_[:2] not in stored]
    above = [
        select(literal(level).label("level"), tiles.c.number.label("place"), tiles.c.root.label("hash")).where(
            tiles.c.level == level - 1, _inside(tiles.c.number, number, width)
        )
        if level
        else select(literal(0).label("level"), entries.c.seq.label("place"), entries.c.hash.label("hash")).where(
            _inside(entries.c.seq, number, width)
        )
        for level, number, width in partial
    ]
    below: dict[tuple[int, int], list[bytes]] = {}
    for row in await uow.all(union_all(*above).order_by("place")) if above else ():
        below.setdefault((row.level, row.place // tile.WIDTH), []).append(row.hash)
    found = {tile_: stored[tile_[:2]][: tile_[2] * tile.HASH] for tile_ in wanted if tile_[:2] in stored}
    return found | {tile_: b"".join(below.get(tile_[:2], ())) for tile_ in partial}


def _inside(column: ColumnElement[int], number: int, width: int) -> ColumnElement[bool]:
    return column.between(number * tile.WIDTH, number * tile.WIDTH + width - 1)


async def entry_bundle(uow: UnitOfWork[Any], number: int, width: int) -> bytes:
    """The leaves of a bundle."""
    first = number * tile.WIDTH
    rows = await uow.all(select(entries.c.leaf).where(entries.c.seq >= first, entries.c.seq < first + width).order_by(entries.c.seq))
    if len(rows) != width:
        raise Problem("request.not_found", kind="entries", id=tile.path("entries", number, width))
    return tile.bundle([row.leaf for row in rows])


async def _prove(uow: UnitOfWork[Any], size: int, ask: Callable[[Node], list[bytes]]) -> list[bytes]:
    """What `ask` computes from the tree of `size` leaves, reading only the tiles it needs."""
    found = await _tiles(uow, tile.needed(size, ask))
    return ask(tile.nodes(lambda level, number, width: found[level, number, width], size))


async def record_proof(uow: UnitOfWork[Any], seq: int, newest: Shown) -> dict[str, Any]:
    """Everything needed to verify one record offline: leaf, salt, body and `.tlog-proof` under the checkpoint `newest`."""
    row = await uow.first(select(entries).where(entries.c.seq == seq)) if 0 <= seq < newest.size else None
    if row is None:
        raise Problem("request.not_found", kind="record", id=str(seq))
    path = await _prove(uow, newest.size, lambda node: inclusion_proof(node, seq, newest.size))
    return {
        "seq": seq,
        "leaf": base64.b64encode(row.leaf).decode(),
        **body_document(row.salt, row.body),
        "proof": proof.encode(seq, path, newest.note),
        "witnesses": newest.state,
    }


async def consistency(uow: UnitOfWork[Any], old: int, new: int) -> list[bytes]:
    """Proof that nothing before `old` changed."""
    return await _prove(uow, new, lambda node: consistency_proof(node, old, new))


async def search(
    uow: UnitOfWork[Any],
    *,
    entity: str | None,
    who: str | None,
    verb: str | None,
    since: datetime | None,
    until: datetime | None,
    org: str | None,
    after: int,
    limit: int,
) -> dict[str, Any]:
    """Records that match, oldest first; go on with `after` = the last `seq`."""
    wanted = select(facts, entries.c.body).join(entries, entries.c.seq == facts.c.seq).where(facts.c.seq > after)
    if entity:
        wanted = wanted.where(type_coerce(facts.c.entities, JSONB).contains([entity]))
    if who:
        wanted = wanted.where(facts.c.who == who)
    if verb:
        wanted = wanted.where(facts.c.verb.startswith(verb[:-1]) if verb.endswith("*") else facts.c.verb == verb)
    if since:
        wanted = wanted.where(facts.c.t >= since)
    if until:
        wanted = wanted.where(facts.c.t < until)
    if org is not None:
        wanted = wanted.where(facts.c.org == org)
    rows = await uow.all(wanted.order_by(facts.c.seq).limit(max(1, min(limit, PAGE))))
    return {"records": [{"seq": row.seq, "record": json.loads(row.body)} for row in rows], "next": rows[-1].seq if rows else None}


async def bodies(uow: UnitOfWork[Any], first: int, limit: int) -> list[dict[str, Any]]:
    """Salt and body of a range of records."""
    wanted = select(entries.c.seq, entries.c.salt, entries.c.body).where(entries.c.seq >= first)
    rows = await uow.all(wanted.order_by(entries.c.seq).limit(max(1, min(limit, PAGE))))
    return [{"seq": row.seq, **body_document(row.salt, row.body)} for row in rows]


async def coverage(uow: UnitOfWork[Any]) -> list[dict[str, Any]]:
    """Each emitter, how many records it handed in and when the last."""
    rows = await uow.all(select(emitters).order_by(emitters.c.emitter))
    return [{"emitter": row.emitter, "records": row.n, "last": row.last_at.isoformat()} for row in rows]
