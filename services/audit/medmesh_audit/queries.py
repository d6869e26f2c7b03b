"""What the log itself answers: checkpoints, tiles, entry bundles, proofs, coverage."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import ColumnElement, literal, select, union_all

from medmesh.contracts.audit import Evidence
from medmesh.errors import Problem
from medmesh.ledger import note, proof
from medmesh.ledger import tiles as tile
from medmesh.ledger.edge import split
from medmesh.ledger.leaf import body_document
from medmesh.ledger.tree import Node, consistency_proof, inclusion_proof, node_hash, root, verify_inclusion
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


_HEIGHT = 8

Tile = tuple[int, int, int]
"""(level, number, width)"""


async def _tiles(uow: UnitOfWork[Any], wanted: Iterable[Tile]) -> dict[Tile, bytes]:
    """Tiles by (level, number, width). Full ones are stored; a partial one is what lies below it: entries, or the roots of tiles."""
    whole = {(level, number) for level, number, _ in wanted}
    stored: dict[tuple[int, int], bytes] = {}
    for level, number in whole:  # by key, and seldom more than two: one statement for all of them takes longer to put together
        row = await uow.first(select(tiles.c.hashes).where(tiles.c.level == level, tiles.c.number == number))
        if row is not None:
            stored[level, number] = row.hashes
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


class Upper:
    """Hashes of perfect subtrees above the tiles of entries, kept for proofs alone: what a level and an index name never changes, and a
    proof has few that no other had. Reading the log itself, and watching its root, goes past them."""

    def __init__(self, most: int = 1 << 17) -> None:
        self._most = most
        self._known: dict[tuple[int, int], bytes] = {}

    def over(self, node: Node, taken: dict[tuple[int, int], bytes]) -> Node:
        """The hashes that are known, and `node` for the others. What was known is noted in `taken`: it may be forgotten meanwhile."""

        def hash_of(level: int, index: int) -> bytes:
            known = self._known.get((level, index))
            if known is None:
                return node(level, index)
            taken[level, index] = known
            return known

        return hash_of

    def learn(self, found: dict[Tile, bytes]) -> None:
        """All that follows from tiles above the lowest, and from the one at the right edge."""
        for (level, number, width), hashes in found.items():
            if (not level and width == tile.WIDTH) or len(hashes) != width * tile.HASH:
                continue  # what lies in a tile of entries is asked for by its 256 entries alone
            row, height, first = split(hashes), _HEIGHT * level, number * tile.WIDTH
            while row:
                self._known.update(((height, first + place), hash_) for place, hash_ in enumerate(row))
                row = [node_hash(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)]
                height, first = height + 1, first >> 1
                if height % _HEIGHT == 0:
                    break  # the next tile's own
        while len(self._known) > self._most:
            del self._known[next(iter(self._known))]

    def forget(self) -> None:
        """What was read makes a proof that does not hold."""
        self._known.clear()


async def _prove(uow: UnitOfWork[Any], size: int, ask: Callable[[Node], list[bytes]], upper: Upper | None = None) -> list[bytes]:
    """What `ask` computes from the tree of `size` leaves, reading only the tiles it needs."""
    taken: dict[tuple[int, int], bytes] = {}
    found = await _tiles(uow, tile.needed(size, lambda node: ask(upper.over(node, taken) if upper else node)))
    if upper is not None:
        upper.learn(found)
    stored = tile.nodes(lambda level, number, width: found[level, number, width], size)
    return ask(lambda level, index: taken.get((level, index)) or stored(level, index))


async def evidence(uow: UnitOfWork[Any], row: Any, newest: Shown, upper: Upper) -> Evidence:
    """Everything needed to verify one row of `entries` offline: leaf, salt, body and `.tlog-proof` under the checkpoint `newest`."""
    if row.seq >= newest.size:
        raise Problem("request.not_found", kind="audit record", id=str(row.seq))
    path = await _prove(uow, newest.size, lambda node: inclusion_proof(node, row.seq, newest.size), upper)
    if not verify_inclusion(row.hash, row.seq, newest.size, path, newest.root):
        upper.forget()  # somebody altered what lies in the database, perhaps for a moment: let the next proof be made from what lies there
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
    level, number, width = parse(path)
    return await entry_bundle(uow, number, width) if level < 0 else await tile_bytes(uow, level, number, width)


def parse(path: str) -> Tile:
    """(level, number, width) of such a path, the level -1 for entries. Raises `Problem`."""
    kind, _, rest = path.partition("/")
    level, *parts = rest.split("/")
    try:
        number, width = tile.parse(parts)
        chosen = note.decimal(level) if level != "entries" else -1
        if kind != "tile" or not -1 <= chosen < 8:
            raise ValueError
    except ValueError:
        raise Problem("request.not_found", kind="file of the log", id=path) from None
    return chosen, number, width


async def coverage(uow: UnitOfWork[Any]) -> list[dict[str, Any]]:
    """Each emitter, how many records it handed in and when the last."""
    rows = await uow.all(select(emitters).order_by(emitters.c.emitter))
    return [{"emitter": row.emitter, "records": row.n, "last": row.last_at.isoformat()} for row in rows]
