"""C2SP tlog-tiles v0.1.0: 256 hashes a tile, entries in bundles of 256, paths as on the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from medmesh.ledger.note import decimal
from medmesh.ledger.tree import Node, fold

WIDTH = 256
HASH = 32
_MOST_PARTS = 5
"""Enough for 2^57 entries, and no number that a database cannot hold."""

Tiles = Callable[[int, int, int], bytes]
"""(level, number, width) -> the concatenated hashes of a tile."""


def number_path(number: int) -> str:
    """1234067 is `x001/x234/067`."""
    parts = [f"{number % 1000:03d}"]
    while number := number // 1000:
        parts.insert(0, f"x{number % 1000:03d}")
    return "/".join(parts)


def parse_number(parts: Sequence[str]) -> int:
    """The inverse of `number_path`. Raises `ValueError`."""
    digits = "".join(part.removeprefix("x") for part in parts)
    if len(parts) > _MOST_PARTS or not (digits.isascii() and digits.isdecimal()) or number_path(int(digits)) != "/".join(parts):
        raise ValueError(f"not a tile number: {'/'.join(parts)}")
    return int(digits)


def path(level: int | str, number: int, width: int = WIDTH) -> str:
    """The path of a tile (`level` a number) or of an entry bundle (`level` "entries"), partial when narrower than 256."""
    partial = "" if width == WIDTH else f".p/{width}"
    return f"tile/{level}/{number_path(number)}{partial}"


def parse(parts: Sequence[str]) -> tuple[int, int]:
    """(number, width) from the part of a path after the level. Raises `ValueError`."""
    if len(parts) >= 2 and parts[-2].endswith(".p"):
        width = decimal(parts[-1])
        if not 1 <= width < WIDTH:
            raise ValueError("a partial tile is 1 to 255 wide")
        return parse_number([*parts[:-2], parts[-2][:-2]]), width
    return parse_number(parts), WIDTH


def shape(size: int) -> Iterator[tuple[int, int, int]]:
    """Every (level, number, width) of a tree of `size` leaves."""
    level, count = 0, size
    while count:
        full, rest = divmod(count, WIDTH)
        for number in range(full):
            yield level, number, WIDTH
        if rest:
            yield level, full, rest
        level, count = level + 1, full


def width_at(size: int, level: int, number: int) -> int:
    """How wide a tile is in a tree of `size` leaves; 0 when it has none."""
    return max(0, min(WIDTH, (size >> (8 * level)) - number * WIDTH))


def nodes(read: Tiles, size: int) -> Node:
    """Hashes of subtrees of a tree of `size` leaves, computed from its tiles."""

    def node(level: int, index: int) -> bytes:
        tile_level, above = divmod(level, 8)
        first = index << above
        number, start = divmod(first, WIDTH)
        tile = read(tile_level, number, width_at(size, tile_level, number))
        hashes = [tile[i * HASH : (i + 1) * HASH] for i in range(start, start + (1 << above))]
        if len(hashes[-1]) != HASH:
            raise ValueError(f"the tile {tile_level}/{number} is too short")
        return fold(hashes)

    return node


def needed(size: int, ask: Callable[[Node], object]) -> list[tuple[int, int, int]]:
    """The tiles (level, number, width) that `ask` reads of a tree of `size` leaves: which hashes it asks for never depends on them."""
    seen: dict[tuple[int, int, int], None] = {}

    def note(level: int, index: int) -> bytes:
        tile_level, above = divmod(level, 8)
        number = (index << above) // WIDTH
        seen[tile_level, number, width_at(size, tile_level, number)] = None
        return b""

    ask(note)
    return list(seen)


def bundle(entries: Sequence[bytes]) -> bytes:
    """Entries with their length before each (big-endian uint16)."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def unbundle(data: bytes) -> list[bytes]:
    """The entries of a bundle. Raises `ValueError` when it is cut."""
    entries, place, end = [], 0, len(data)
    while place < end:
        begin = place + 2
        place = begin + int.from_bytes(data[place:begin], "big")
        if place > end or begin > end:
            raise ValueError("the bundle is cut")
        entries.append(data[begin:place])
    return entries
