"""`checker.py scan`: does any canary lie in these files, in any dress?

A canary is a unique text. Few stems stand for thousands of canaries: those of a run share a random prefix, names share their
first characters, and every pixel row begins with one marker. A stem is looked for with `bytes.find`, which costs about the
same per byte however many canaries share it; only where a stem stands is the canary read back and looked up.

Not seen: encryption, block formats without a magic of their own (snappy, pglz, raw deflate), zstd (reported where a file
starts with it), lossy images, and base64 broken into lines within the canary.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import mmap
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from os.path import commonprefix
from pathlib import Path
from typing import Any
from urllib.parse import quote

BLOCK = 1 << 20  # bytes searched at a time: stays in the cache while every stem passes over it
IN_MEMORY = 1 << 26  # larger files are mapped
DEPTH = 6  # containers within containers
ZSTD = b"\x28\xb5\x2f\xfd"  # no decoder for it in the standard library
SHOWN = 50  # hits listed in the answer
BEHIND = 3  # base64 characters before a stem that its decoding needs

PIXEL_SIDE = 32
PIXEL_MARKER = hashlib.sha256(b"canary pixel row").digest()[:12]


def pixel_pattern(canary: str) -> bytes:
    """The canary as an image: 32 x 32 bytes, row-major, uint8. Each row is a common 12-byte marker and 20 bytes of its own."""
    rows = (hashlib.sha256(f"{canary}|{row}".encode()).digest()[: PIXEL_SIDE - len(PIXEL_MARKER)] for row in range(PIXEL_SIDE))
    return b"".join(PIXEL_MARKER + row for row in rows)


# What is looked for ---------------------------------------------------------------------------------------------------


class Family:
    """Byte strings that begin with one stem, each with what it stands for: (index of the canary, how it was written).

    `certain` says that the stem alone is a leak (a run's prefix, the pixel marker): index -1 when no member follows it whole.
    """

    def __init__(self, stem: bytes, members: dict[bytes, tuple[int, str]], certain: bool) -> None:
        self.stem, self.members, self.certain = stem, members, certain
        self.lengths = sorted({len(member) for member in members}, reverse=True)

    def identify(self, text: bytes) -> tuple[int, str] | None:
        """The longest member with which `text` begins."""
        if not text.startswith(self.stem):
            return None  # a dress shows only whole characters of the stem: its first or last bits differ
        for length in self.lengths:
            if found := self.members.get(text[:length]):
                return found
        return (-1, "stem only") if self.certain else None


@dataclass(frozen=True)
class Needle:
    """One stem in one dress. The window of `reach` bytes from `back` before the stem is undressed by `undress`."""

    dress: str
    stem: bytes
    back: int
    reach: int
    undress: Callable[[bytes], bytes]
    family: Family


def charsets(text: str) -> dict[str, bytes]:
    """The text as bytes in every way it may be stored as text. All keep prefixes: a prefix of a text is a prefix of its bytes."""
    written = {name: text.encode(name) for name in ("utf-8", "gb18030", "utf-16-le", "utf-16-be")}
    return {**written, "json-escape": json.dumps(text)[1:-1].encode(), "percent": quote(text, safe="").encode()}


def text_families(canaries: list[str], prefix: str) -> Iterator[Family]:
    """One family per stem and way of writing; ways that write the stem alike (ASCII) share one."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, canary in enumerate(canaries):
        groups[prefix if prefix and canary.startswith(prefix) else canary[:2]].append(index)
    for start, indexes in groups.items():
        certain = bool(prefix) and start == prefix
        stem = prefix if certain else commonprefix([canaries[index] for index in indexes])  # noqa: RUF071 - characters are meant
        members: dict[bytes, dict[bytes, tuple[int, str]]] = defaultdict(dict)
        stems = charsets(stem)
        for index in indexes:
            for charset, written in charsets(canaries[index]).items():
                members[stems[charset]].setdefault(written, (index, charset))
        for stem_bytes, family in members.items():
            yield Family(stem_bytes, family, certain)


def pixel_family(canaries: list[str]) -> Family:
    """Every row of every canary's pattern."""
    rows = {}
    for index, canary in enumerate(canaries):
        pattern = pixel_pattern(canary)
        rows.update({pattern[at : at + PIXEL_SIDE]: (index, "pixels") for at in range(0, len(pattern), PIXEL_SIDE)})
    return Family(PIXEL_MARKER, rows, certain=True)


def plain_needle(family: Family) -> Needle:
    return Needle("", family.stem, 0, family.lengths[0], bytes, family)


def hex_needles(family: Family) -> Iterator[Needle]:
    def undress(window: bytes) -> bytes:
        digits = re.match(rb"(?:[0-9a-fA-F]{2})*", window)
        return bytes.fromhex(digits[0].decode()) if digits else b""

    for dress, stem in (("hex-lower", family.stem.hex()), ("hex-upper", family.stem.hex().upper())):
        yield Needle(dress, stem.encode(), 0, 2 * family.lengths[0], undress, family)


def base64_needles(family: Family) -> Iterator[Needle]:
    """The stem at each place `before` (0, 1, 2) in a group of three bytes, in both alphabets.

    Searched are the characters that hold bits of the stem alone: from bit 8 `before` up to bit 8 (`before` + length).
    """

    def undress(window: bytes, before: int, first: int) -> bytes:
        digits = re.match(rb"[A-Za-z0-9+/]*", window.translate(bytes.maketrans(b"-_", b"+/")))
        text = digits[0] if digits else b""
        text = text[: len(text) - (len(text) % 4 == 1)]
        return base64.b64decode(text + b"=" * (-len(text) % 4))[before:] if len(text) > first else b""

    for before in range(3):
        first, last = -(-8 * before // 6), 8 * (before + len(family.stem)) // 6
        reach = 4 * -(-(before + family.lengths[0]) // 3)
        bits = bytes(before) + family.stem
        for stem in {base64.b64encode(bits)[first:last], base64.urlsafe_b64encode(bits)[first:last]}:
            yield Needle(f"base64-{before}", stem, first, reach, partial(undress, before=before, first=first), family)


def pixel_needles(family: Family) -> Iterator[Needle]:
    """Rows of pixels as 8 bit, 8 bit inverted, the low or high byte first of 16 bit, and grey in RGB."""
    inverted = bytes(range(255, -1, -1))
    zero = bytes(len(family.stem))
    side = PIXEL_SIDE
    yield Needle("8-inverted", family.stem.translate(inverted), 0, side, lambda window: window.translate(inverted), family)
    little, big = _interleave(family.stem, zero), _interleave(zero, family.stem)
    yield Needle("16-le", little, 0, 2 * side, lambda window: window[::2], family)
    yield Needle("16-be", big, 0, 2 * side, lambda window: window[1::2], family)
    yield Needle("rgb", _interleave(family.stem, family.stem, family.stem), 0, 3 * side, lambda window: window[::3], family)


def _interleave(*lanes: bytes) -> bytes:
    return bytes(value for group in zip(*lanes, strict=True) for value in group)


def needles_for(canaries: list[str], prefix: str) -> list[Needle]:
    """Everything to be looked for. Raises `ValueError` for canaries that could be met by chance, or twice."""
    if len(set(canaries)) != len(canaries) or not canaries:
        raise ValueError("the canaries must be different texts, at least one")
    if prefix and len(prefix) < 10:
        raise ValueError("--prefix needs at least 10 characters")
    for index, canary in enumerate(canaries):
        if len(canary.encode("gb18030")) < 6:
            raise ValueError(f"canary {index} is too short to be unmistakable: 3 Chinese or 6 Latin characters at least")
    found: list[Needle] = []
    for family in text_families(canaries, prefix):
        found.append(plain_needle(family))
        if {"utf-8", "gb18030"} & {charset for _, charset in family.members.values()}:
            found += [*hex_needles(family), *base64_needles(family)]
    pixels = pixel_family(canaries)
    return [*found, plain_needle(pixels), *pixel_needles(pixels), *base64_needles(pixels)]


# Where it is looked for -----------------------------------------------------------------------------------------------


# Kind, its bytes to the end of the file, overlap of pieces -> what it holds in pieces, the offset of a stream within it that
# need not be opened again (0 for none), and what cannot be opened ("" for nothing).
OpenContainer = Callable[[str, memoryview, int], tuple[Iterable[bytes], int, str]]


@dataclass
class Scanner:
    """Looks for `needles`; gathers how many hits there were, the first of them, which canaries, and what it could not see into.

    In a hit, `offset` is that in the file, of the outermost container where there is one; `canary_index` is -1 for a canary
    cut short after its stem.
    """

    needles: list[Needle]
    magics: dict[str, re.Pattern[bytes]]  # how each kind of container begins
    open_container: OpenContainer
    total: int = 0
    hits: list[dict[str, Any]] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    unsupported: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ahead = max(needle.reach for needle in self.needles)
        self.shortest = min(len(needle.stem) for needle in self.needles)

    def scan_file(self, path: Path) -> int:
        """Search one file; returns its size in bytes. Raises `OSError` when it cannot be read."""
        with path.open("rb") as stream:
            large = path.stat().st_size > IN_MEMORY
            view = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if large else stream.read())
        if view[: len(ZSTD)] == ZSTD:
            self.note(str(path), "zstd")
        self.scan_view(view, str(path), -1, "", 0)
        return len(view)

    def note(self, file: str, what: str) -> None:
        self.unsupported.append({"file": file, "what": what})

    def scan_view(self, view: memoryview, file: str, outer: int, trail: str, depth: int) -> None:
        """Search `view` and the containers in it. `outer` is the offset of the outermost container, -1 outside of any."""
        done: set[int] = set()
        known: set[tuple[int, int]] = set()
        for start in range(0, len(view), BLOCK):
            origin = max(0, start - BEHIND)
            block = bytes(view[origin : start + BLOCK + self.ahead])
            if not block.strip(b"\0"):
                continue
            first, limit = start - origin, start - origin + BLOCK  # what begins here belongs to this block
            for needle in self.needles:
                last = limit + len(needle.stem) - 1
                place = block.find(needle.stem, first, last)
                while place >= 0:
                    found = self.look(needle, block, place)
                    # Little-endian UTF-16 behind a zero byte is big-endian one as well: one byte apart is one canary.
                    if found and not {(found[0], origin + place + step) for step in (-1, 0, 1)} & known:
                        known.add((found[0], origin + place))
                        self.record(file, origin + place if outer < 0 else outer, trail + found[1], found[0])
                    place = block.find(needle.stem, place + 1, last)
            for kind, magic in self.magics.items():
                for match in magic.finditer(block, first):
                    position = origin + match.start()
                    if match.start() < limit and position not in done:
                        done |= self.open(kind, view, position, file, position if outer < 0 else outer, trail, depth)

    def look(self, needle: Needle, block: bytes, place: int) -> tuple[int, str] | None:
        """Index and encoding of the canary whose stem stands at `place`, None if it is none."""
        begin = place - needle.back
        window = b"A" * -begin + block[max(0, begin) : begin + needle.reach]  # as if the text before the file were base64
        found = needle.family.identify(needle.undress(window))
        return (found[0], "-".join(filter(None, (found[1], needle.dress)))) if found else None

    def record(self, file: str, offset: int, encoding: str, index: int) -> None:
        self.total += 1
        self.seen.add(index)
        if len(self.hits) < SHOWN:
            self.hits.append({"file": file, "offset": offset, "encoding": encoding, "canary_index": index})

    def open(self, kind: str, view: memoryview, position: int, file: str, outer: int, trail: str, depth: int) -> set[int]:
        """Search what the container at `position` holds; returns the positions of streams that need not be opened again."""
        if depth == DEPTH:
            self.note(file, f"{trail}{kind}: deeper than {DEPTH} containers")
            return set()
        pieces, stream, unsupported = self.open_container(kind, view[position:], self.ahead)
        if unsupported:
            self.note(file, trail + unsupported)
        for number, piece in enumerate(pieces):
            if number == 1:
                self.note(file, f"{trail}{kind}: unpacked in pieces, a container across a border of two is seen in part")
            if len(piece) >= self.shortest:
                self.scan_view(memoryview(piece), file, outer, f"{trail}{kind}/", depth + 1)
        return {position + stream} if stream else set()


def files_under(paths: Iterable[Path], skipped: set[Path]) -> Iterator[Path]:
    """Every file, without `skipped`. Symbolic links within a folder are not followed. Raises `ValueError` for a missing path."""
    for path in paths:
        if not path.exists():
            raise ValueError(f"no such file or folder: {path}")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and (file == path or not file.is_symlink()) and file.resolve() not in skipped:
                yield file


def prove(new: Callable[[], Scanner], canaries: list[str], plants: Iterable[tuple[str, bytes]], folder: Path) -> tuple[int, set[Path]]:
    """Write each plant, a file that holds every canary in one dress, and find every canary in it.

    Returns how many were planted (and found) and the files. Raises `ValueError` naming the dresses in which one was missed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    planted, files, blind = 0, set(), []
    for name, content in plants:
        file = folder / name
        file.write_bytes(content)
        files.add(file.resolve())
        scanner = new()
        scanner.scan_file(file)
        planted += len(canaries)
        missed = set(range(len(canaries))) - scanner.seen
        if missed:
            blind.append(f"{name} ({len(missed)} of {len(canaries)})")
    if blind:
        raise ValueError(f"scanner blind to {', '.join(blind)}")
    return planted, files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--canaries", type=Path, required=True, help="UTF-8 text, one canary a line; its index counts from 0")
    parser.add_argument("--manifest", type=Path, nargs="+", required=True, help="files and folders to search")
    parser.add_argument("--plant", type=Path, required=True, help="folder for the files that prove the search; stays")
    parser.add_argument("--prefix", default="", help="what the canaries of this run begin with, 10 characters or more")


def run(
    given: argparse.Namespace,
    plants: Callable[[list[str]], Iterable[tuple[str, bytes]]],
    magics: dict[str, re.Pattern[bytes]],
    open_container: OpenContainer,
) -> tuple[int, dict[str, Any]]:
    """Exit status and answer. The planted files and the list of canaries are not themselves searched."""
    canaries = [line for line in given.canaries.read_text(encoding="utf-8").splitlines() if line]
    new = partial(Scanner, needles_for(canaries, given.prefix), magics, open_container)
    planted, skipped = prove(new, canaries, plants(canaries), given.plant)
    print(f"scan: {planted} planted canaries found in {len(skipped)} files", file=sys.stderr)
    scanner, files, size, said = new(), 0, 0, time.monotonic()
    for file in files_under(given.manifest, skipped | {given.canaries.resolve()}):
        try:
            size += scanner.scan_file(file)
            files += 1
        except FileNotFoundError:
            continue  # the store deleted it meanwhile
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"scan: {files} files, {size / 1e6:.0f} MB, {scanner.total} hits", file=sys.stderr)
    answer = {
        "files": files,
        "bytes": size,
        "planted": planted,
        "found_planted": planted,
        "canary_hits": scanner.total,
        "canaries_hit": len(scanner.seen),
        "hits": scanner.hits,
        "unsupported": scanner.unsupported,
    }
    return (1 if scanner.total else 0), answer
