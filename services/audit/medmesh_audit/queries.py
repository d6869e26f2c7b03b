"""What the log itself answers: checkpoints, tiles, entry bundles, proofs, coverage."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import ColumnElement, literal, select, tuple_, union_all

from medmesh.contracts.audit import Evidence
from medmesh.errors import Problem
from medmesh.ledger import note, proof
from medmesh.ledger import tiles as tile
from medmesh.ledger.leaf import body_document
from medmesh.ledger.tree import Node, consistency_proof, inclusion_proof, root
from medmesh.store.unit import UnitOfWork
from medmesh_audit.domain import Shown
from medmesh_audit.tables import checkpoints, emitters, entries, tiles


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


async def evidence(uow: UnitOfWork[Any], row: Any, newest: Shown) -> Evidence:
    """Everything needed to verify one row of `entries` offline: leaf, salt, body and `.tlog-proof` under the checkpoint `newest`."""
    if row.seq >= newest.size:
        raise Problem("request.not_found", kind="audit record", id=str(row.seq))
    path = await _prove(uow, newest.size, lambda node: inclusion_proof(node, row.seq, newest.size))
    opened = body_document(row.salt, row.body)
    made = proof.encode(row.seq, path, newest.note)
    return Evidence(seq=row.seq, leaf=base64.b64encode(row.leaf).decode(), **opened, proof=made, witnesses=newest.state)


async def root_of(uow: UnitOfWork[Any], size: int) -> bytes:
    """The root of the first `size` entries as the stored tiles and hashes make it. Raises when they are not all there."""
    return (await _prove(uow, size, lambda node: [root(node, size)]))[0]


async def consistency(uow: UnitOfWork[Any], old: int, new: int) -> list[bytes]:
    """Proof that nothing before `old` changed."""
    return await _prove(uow, new, lambda node: consistency_proof(node, old, new))


async def log_file(uow: UnitOfWork[Any], path: str) -> bytes:
    """`tile/<level>/<number>` or `tile/entries/<number>`, as C2SP tlog-tiles names them. Raises `Problem`."""
    kind, _, rest = path.partition("/")
    level, *parts = rest.split("/")
    try:
        number, width = tile.parse(parts)
        chosen = note.decimal(level) if level != "entries" else -1
        if kind != "tile" or not -1 <= chosen < 8:
            raise ValueError
    except ValueError:
        raise Problem("request.not_found", kind="file of the log", id=path) from None
    return await entry_bundle(uow, number, width) if chosen < 0 else await tile_bytes(uow, chosen, number, width)


async def coverage(uow: UnitOfWork[Any]) -> list[dict[str, Any]]:
    """Each emitter, how many records it handed in and when the last."""
    rows = await uow.all(select(emitters).order_by(emitters.c.emitter))
    return [{"emitter": row.emitter, "records": row.n, "last": row.last_at.isoformat()} for row in rows]
