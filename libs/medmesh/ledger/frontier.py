"""The right edge of a growing tree: all that is kept of a log that is hashed from end to end, whatever its length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medmesh.ledger.tiles import HASH, WIDTH, Tiles, width_at
from medmesh.ledger.tree import EMPTY, Pair, fold, node_hash

Tile = tuple[int, int, list[bytes]]
"""(level, number, hashes)"""


class Frontier:
    """At most 255 hashes a level: those of the tile that is not full yet."""

    def __init__(self, pair: Pair = node_hash, empty: bytes = EMPTY) -> None:
        self._pair, self._empty = pair, empty
        self._rows: list[list[bytes]] = [[]]
        self._full: list[int] = [0]

    @classmethod
    def of_tiles(cls, read: Tiles, size: int) -> Frontier:
        """The edge of a tree of `size` leaves, from its tiles. Nothing is checked: compare `root`. Raises `ValueError` for a short tile."""
        edge = cls()
        level = 0
        while size >> (8 * level):
            number, width = divmod(size >> (8 * level), WIDTH)
            tile = read(level, number, width) if width else b""
            if len(tile) != width * HASH or width != width_at(size, level, number):
                raise ValueError(f"the tile {level}/{number} has {len(tile)} bytes instead of {width * HASH}")
            edge._row(level)
            edge._rows[level], edge._full[level] = [tile[i : i + HASH] for i in range(0, len(tile), HASH)], number
            level += 1
        return edge

    @property
    def size(self) -> int:
        """How many leaves."""
        return self._full[0] * WIDTH + len(self._rows[0])

    def add(self, hashes: Sequence[bytes]) -> list[Tile]:
        """Append leaf hashes, as many as go into the current tile at most; answers the tiles that became full."""
        assert len(self._rows[0]) + len(hashes) <= WIDTH
        self._rows[0] += hashes
        done: list[Tile] = []
        level = 0
        while len(self._rows[level]) == WIDTH:
            tile = self._rows[level]
            done.append((level, self._full[level], tile))
            self._rows[level], self._full[level] = [], self._full[level] + 1
            level += 1
            self._row(level).append(fold(tile, self._pair))
        return done

    def partial(self) -> Iterator[Tile]:
        """The tiles that are not full."""
        for level, row in enumerate(self._rows):
            if row:
                yield level, self._full[level], row

    def root(self, more: Sequence[bytes] = ()) -> bytes:
        """The root, or what it were with `more` leaf hashes (which must not fill the tile)."""
        top: bytes | None = None
        for level, row in enumerate(self._rows):
            hashes = [*row, *more] if level == 0 else row
            # What lies to the right is narrower than one hash of this row, and RFC 6962 carries it up like an odd node.
            if top is not None:
                hashes = [*hashes, top]
            if hashes:
                top = fold(hashes, self._pair)
        return self._empty if top is None else top

    def _row(self, level: int) -> list[bytes]:
        if level == len(self._rows):
            self._rows.append([])
            self._full.append(0)
        return self._rows[level]
