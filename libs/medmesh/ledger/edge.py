"""The right edge of a growing tree: all that appending to it and its root need, a few kilobytes at any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple

from medmesh.ledger.tiles import HASH, WIDTH
from medmesh.ledger.tree import EMPTY, fold, node_hash

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


@dataclass
class Edge:
    """`peaks` are the roots of the perfect subtrees by their height, `partial` the tile that is being filled on each tile level."""

    size: int = 0
    peaks: dict[int, bytes] = field(default_factory=dict)
    partial: dict[int, bytearray] = field(default_factory=dict)

    @classmethod
    def resume(cls, size: int, partial: Callable[[int, int, int], bytes]) -> Edge:
        """The edge of a tree of `size` leaves; `partial(level, number, width)` answers its unfinished tiles."""
        edge = cls(size)
        level = 0
        while count := size >> (_HEIGHT * level):
            number, width = divmod(count, WIDTH)
            hashes = partial(level, number, width) if width else b""
            if len(hashes) != width * HASH:
                raise ValueError(f"the tile {level}/{number} is not {width} wide")
            edge.partial[level] = bytearray(hashes)
            place, parts = 0, split(hashes)
            for height in reversed(range(_HEIGHT)):
                if width >> height & 1:
                    edge.peaks[_HEIGHT * level + height] = fold(parts[place : place + (1 << height)])
                    place += 1 << height
            level += 1
        return edge

    def copy(self) -> Edge:
        """One to go on with while this one stays."""
        return deepcopy(self)

    def append(self, leaf: bytes) -> Iterator[FullTile]:
        """Add a leaf hash; answers the tiles it completes, from the bottom up. Run it to its end."""
        index, height, node = self.size, 0, leaf
        self.size += 1
        while True:
            level, inside = divmod(height, _HEIGHT)
            if not inside:
                if level:
                    done = bytes(self.partial[level - 1])
                    self.partial[level - 1] = bytearray()
                    yield FullTile(level - 1, index >> (_HEIGHT * level), done, node)
                self.partial.setdefault(level, bytearray()).extend(node)
            if not index >> height & 1:
                break
            node = node_hash(self.peaks.pop(height), node)
            height += 1
        self.peaks[height] = node

    def root(self) -> bytes:
        """The root over all leaves (RFC 6962 §2.1)."""
        top: bytes | None = None
        for height in sorted(self.peaks):
            top = self.peaks[height] if top is None else node_hash(self.peaks[height], top)
        return top or EMPTY
