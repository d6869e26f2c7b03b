"""The right edge of a growing tree: all that appending to it and its root need, a few kilobytes at any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from medmesh.ledger.tiles import HASH, WIDTH, Tiles
from medmesh.ledger.tree import EMPTY, Pair, fold, node_hash

_HEIGHT = 8


class FullTile(NamedTuple):
    """256 hashes that never change again, and the hash over them."""

    level: int
    number: int
    hashes: bytes
    root: bytes


def split(hashes: bytes) -> list[bytes]:
    """The hashes of a tile."""
    return [hashes[i : i + HASH] for i in range(0, len(hashes), HASH)]


class Edge:
    """At most 255 hashes a level: those of the tile that is not full yet. `pair` and `empty` are those of the tree's hash function."""

    def __init__(self, pair: Pair = node_hash, empty: bytes = EMPTY) -> None:
        self._pair, self._empty = pair, empty
        self._rows: list[list[bytes]] = [[]]
        self._full: list[int] = [0]
        self._peaks: list[list[bytes]] = [[]]
        """Of each row the roots of its perfect subtrees, the widest first, as far as somebody asked for them."""
        self._climbed: list[int] = [0]
        """How many hashes of each row those are over."""

    @classmethod
    def resume(cls, size: int, read: Tiles, pair: Pair = node_hash, empty: bytes = EMPTY) -> Edge:
        """The edge of a tree of `size` leaves; `read(level, number, width)` answers its unfinished tiles. Nothing is checked: compare
        `root`. Raises `ValueError` for a short tile."""
        edge, level = cls(pair, empty), 0
        while count := size >> (_HEIGHT * level):
            number, width = divmod(count, WIDTH)
            tile = read(level, number, width) if width else b""
            if len(tile) != width * HASH:
                raise ValueError(f"the tile {level}/{number} has {len(tile)} bytes instead of {width * HASH}")
            edge._row(level)
            edge._rows[level], edge._full[level] = split(tile), number
            level += 1
        return edge

    def copy(self) -> Edge:
        """One to go on with while this one stays."""
        made = Edge(self._pair, self._empty)
        made._rows, made._full = [[*row] for row in self._rows], [*self._full]
        made._peaks, made._climbed = [[*peaks] for peaks in self._peaks], [*self._climbed]
        return made

    @property
    def size(self) -> int:
        """How many leaves."""
        return self._full[0] * WIDTH + len(self._rows[0])

    def add(self, hashes: Sequence[bytes]) -> list[FullTile]:
        """Append leaf hashes; answers the tiles that became full, from the bottom up."""
        done: list[FullTile] = []
        begin = 0
        while begin < len(hashes):
            end = begin + WIDTH - len(self._rows[0])
            self._rows[0] += hashes[begin:end]
            begin, level = end, 0
            while len(self._rows[level]) == WIDTH:
                row = self._rows[level]
                # What was hashed for a root on the way is not hashed again.
                root = self._climb(level)[0] if self._climbed[level] else fold(row, self._pair)
                done.append(FullTile(level, self._full[level], b"".join(row), root))
                self._rows[level], self._full[level] = [], self._full[level] + 1
                self._peaks[level], self._climbed[level] = [], 0
                level += 1
                self._row(level).append(root)
        return done

    def partial(self) -> Iterator[tuple[int, int, bytes]]:
        """The tiles (level, number, hashes) that are not full."""
        for level, row in enumerate(self._rows):
            if row:
                yield level, self._full[level], b"".join(row)

    def root(self, more: Sequence[bytes] = ()) -> bytes:
        """The root (RFC 6962 §2.1), or what it were with `more` leaf hashes, which must not fill the tile."""
        top: bytes | None = None
        for level in range(len(self._rows)):
            peaks = self._climb(level)
            if more and level == 0:
                peaks = climb([*peaks], self._climbed[0], more, self._pair)
            # What lies to the right is narrower, and RFC 6962 carries it up like an odd node.
            for peak in reversed(peaks):
                top = peak if top is None else self._pair(peak, top)
        return self._empty if top is None else top

    def _climb(self, level: int) -> list[bytes]:
        """The peaks of a row."""
        row = self._rows[level]
        peaks = climb(self._peaks[level], self._climbed[level], row[self._climbed[level] :], self._pair)
        self._climbed[level] = len(row)
        return peaks

    def _row(self, level: int) -> list[bytes]:
        if level == len(self._rows):
            self._rows.append([])
            self._full.append(0)
            self._peaks.append([])
            self._climbed.append(0)
        return self._rows[level]


def climb(peaks: list[bytes], count: int, fresh: Sequence[bytes], pair: Pair) -> list[bytes]:
    """Go on with `fresh` hashes from the roots of the perfect subtrees over `count`: each is hashed into the tree once."""
    for hash_ in fresh:
        odd = count
        while odd & 1:
            hash_ = pair(peaks.pop(), hash_)
            odd >>= 1
        peaks.append(hash_)
        count += 1
    return peaks
