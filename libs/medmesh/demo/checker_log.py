"""`checker.py verify-log`: is this copy of the log what its key signed?

Written from the published formats alone: RFC 6962 section 2.1 (hashes), C2SP tlog-tiles (files), C2SP tlog-checkpoint and
signed-note (the signature, type 0x01 Ed25519). Everything is recomputed from the entries; nothing stored is believed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

WIDTH = 256  # hashes in a full tile, entries in a full bundle (C2SP tlog-tiles)
ED25519 = 0x01  # signature type (C2SP signed-note)
SHOWN = 20  # problems listed in the answer


class Bad(Exception):
    """The copy is not what was signed."""


@dataclass
class Findings:
    """What was wrong, and the lowest entry that is concerned."""

    problems: list[str] = field(default_factory=list)
    first_bad: int | None = None

    def add(self, problem: str, entry: int | None = None) -> None:
        self.problems.append(problem)
        if entry is not None:
            self.first_bad = entry if self.first_bad is None else min(self.first_bad, entry)


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def merkle_root(hashes: Iterable[bytes]) -> bytes:
    """RFC 6962 section 2.1 over leaf (or subtree) hashes; the empty tree is SHA-256 of nothing.

    The stack holds the roots of the perfect subtrees of a binary counter, largest first: what is merged when the counter
    carries is exactly the split at the largest power of two.
    """
    stack: list[bytes] = []
    for count, value in enumerate(hashes):
        while count & 1:
            value = _node(stack.pop(), value)
            count >>= 1
        stack.append(value)
    if not stack:
        return hashlib.sha256(b"").digest()
    root = stack.pop()
    while stack:
        root = _node(stack.pop(), root)
    return root


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def parse_vkey(vkey: str) -> tuple[str, bytes, Ed25519PublicKey]:
    """Name, 4-byte key id and key of `name+hex(id)+base64(type || key)`. Raises `ValueError` unless all three agree."""
    name, identifier, encoded = vkey.strip().split("+", 2)
    material = base64.b64decode(encoded, validate=True)
    if len(material) != 33 or material[0] != ED25519:
        raise ValueError("--key is not an Ed25519 verifier key")
    expected = hashlib.sha256(name.encode() + b"\n" + material).digest()[:4]
    if bytes.fromhex(identifier) != expected:
        raise ValueError("--key: the key id does not belong to this name and key")
    return name, expected, Ed25519PublicKey.from_public_bytes(material[1:])


def open_checkpoint(note: bytes, vkey: str) -> tuple[str, int, bytes]:
    """Origin, tree size and root of a checkpoint signed by `vkey`. Raises `Bad`. Lines of unknown keys are ignored."""
    name, identifier, key = parse_vkey(vkey)
    text, separator, signatures = note.rpartition(b"\n\n")
    text += b"\n"
    if not separator or not signatures.endswith(b"\n"):
        raise Bad("checkpoint: not a signed note")
    signed = False
    try:
        for line in signatures.decode().removesuffix("\n").split("\n"):
            dash, signer, encoded = line.split(" ")
            blob = base64.b64decode(encoded, validate=True)
            if dash != "—":
                raise Bad("checkpoint: not a signed note")
            if signer == name and blob[:4] == identifier:
                key.verify(blob[4:], text)
                signed = True
        lines = text.decode().removesuffix("\n").split("\n")
        origin, size, root = lines[0], lines[1], base64.b64decode(lines[2], validate=True)
    except InvalidSignature:
        raise Bad("checkpoint: the signature is wrong") from None
    except (ValueError, IndexError):
        raise Bad("checkpoint: malformed") from None
    if not signed:
        raise Bad(f"checkpoint: not signed by {name}")
    if origin != name:
        raise Bad(f"checkpoint: is of the log {origin!r}, the key is of {name!r}")
    if not (size.isascii() and size.isdecimal()) or size != str(int(size)) or len(root) != 32 or not all(lines):
        raise Bad("checkpoint: malformed")
    return origin, int(size), root


def tile_path(level: str, number: int, width: int) -> str:
    """`tile/<L>/<N>[.p/<W>]` with N in groups of three digits, all but the last marked by an x: 1234067 is x001/x234/067."""
    groups = [f"{number % 1000:03d}"]
    while number := number // 1000:
        groups.insert(0, f"x{number % 1000:03d}")
    return f"tile/{level}/{'/'.join(groups)}" + ("" if width == WIDTH else f".p/{width}")


def read_tile(log: Path, level: str, number: int, width: int) -> tuple[bytes, int]:
    """The tile of this width, or the full one that replaced it as the log grew, and its own width. Raises `Bad` without either."""
    for found in (width, WIDTH):
        file = log / tile_path(level, number, found)
        if file.is_file():
            return file.read_bytes(), found
    raise Bad(f"{tile_path(level, number, width)}: missing")


def read_hashes(log: Path, level: int, number: int, width: int) -> bytes:
    """The first `width` hashes of a tile, joined. Raises `Bad`."""
    content, found = read_tile(log, str(level), number, width)
    if len(content) != found * 32:
        raise Bad(f"{tile_path(str(level), number, found)}: is {len(content)} bytes, not {found * 32}")
    return content[: width * 32]


def tiles(count: int) -> Iterator[tuple[int, int]]:
    """Number and width of each tile that holds `count` hashes or entries."""
    for number in range(count // WIDTH):
        yield number, WIDTH
    if count % WIDTH:
        yield count // WIDTH, count % WIDTH


def entries(log: Path, number: int, width: int) -> Iterator[bytes]:
    """The first `width` entries of a bundle: each is its length as a big-endian uint16 and its bytes. Raises `Bad`."""
    bundle, found = read_tile(log, "entries", number, width)
    path, position = tile_path("entries", number, found), 0
    for _ in range(width):
        length = int.from_bytes(bundle[position : position + 2], "big")
        entry = bundle[position + 2 : position + 2 + length]
        if position + 2 > len(bundle) or len(entry) != length:
            raise Bad(f"{path}: is cut or its lengths are wrong")
        yield entry
        position += 2 + length
    if found == width and position != len(bundle):
        raise Bad(f"{path}: goes on after its last entry")


def read_leaves(log: Path, size: int, findings: Findings) -> list[bytes]:
    """All entries in order, each compared with its hash in the level 0 tile. Stops at the first bundle that cannot be read."""
    leaves: list[bytes] = []
    for number, width in tiles(size):
        try:
            hashes = read_hashes(log, 0, number, width)
        except Bad as error:
            findings.add(str(error), number * WIDTH)
            hashes = b""
        try:
            for entry in entries(log, number, width):
                offset = len(leaves) % WIDTH * 32
                if hashes and hashes[offset : offset + 32] != leaf_hash(entry):
                    findings.add(f"entry {len(leaves)} does not have the hash in {tile_path('0', number, width)}", len(leaves))
                leaves.append(entry)
        except Bad as error:
            findings.add(f"entry {len(leaves)}: {error}", len(leaves))
            break
    return leaves


def check_tiles(log: Path, leaf_hashes: list[bytes], findings: Findings) -> int:
    """Compare every stored tile above the leaves with its recomputation; returns how many tiles there are at all levels.

    A bad entry spoils every hash above it, so the first bad entry is taken from here only when the entries themselves are good.
    """
    level, row, checked, entries_good = 0, leaf_hashes, 0, findings.first_bad is None
    while row:
        for number, width in tiles(len(row)):
            checked += 1
            if level:
                expected = row[number * WIDTH : number * WIDTH + width]
                span = WIDTH**level
                try:
                    stored = read_hashes(log, level, number, width)
                except Bad as error:
                    findings.add(str(error), number * WIDTH * span if entries_good else None)
                    continue
                for place, value in enumerate(expected):
                    if stored[place * 32 : place * 32 + 32] != value:
                        first = (number * WIDTH + place) * span
                        problem = f"{tile_path(str(level), number, width)}: hash {place} is not that of its entries, from {first}"
                        findings.add(problem, first if entries_good else None)
                        break
        row = [merkle_root(row[start : start + WIDTH]) for start in range(0, len(row) - len(row) % WIDTH, WIDTH)]
        level += 1
    return checked


def check_body(leaf: bytes, stored: bytes) -> None:
    """`commit` of the leaf must be SHA-256 of salt and body, and the leaf canonical (RFC 8785 without floats). Raises `Bad`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise Bad("the header repeats a key")
        return dict(pairs)

    try:
        header = json.loads(leaf, object_pairs_hook=unique)
        if json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() != leaf:
            raise Bad("the header is not canonical JSON")
        commit = bytes.fromhex(header["commit"])
    except (ValueError, KeyError, TypeError):
        raise Bad("the header holds no commitment") from None
    try:
        record = json.loads(stored)
        opened = base64.b64decode(record["salt"], validate=True) + base64.b64decode(record["body"], validate=True)
    except (ValueError, KeyError, TypeError):
        raise Bad("the stored body is malformed") from None
    if hashlib.sha256(opened).digest() != commit:
        raise Bad("the stored body is not the one committed to")


def check_bodies(log: Path, leaves: list[bytes], findings: Findings) -> int:
    """Recheck `bodies/<index>.json`, or the lines of `bodies.jsonl`, where present; returns how many. A body may be absent: it can
    be erased, its leaf cannot."""
    checked = 0
    for index, body in bodies(log, len(leaves)):
        if not 0 <= index < len(leaves):
            findings.add(f"there is a body for entry {index}, which does not exist", index)
            continue
        checked += 1
        try:
            check_body(leaves[index], body)
        except Bad as error:
            findings.add(f"entry {index}: {error}", index)
    return checked


def bodies(log: Path, size: int) -> Iterator[tuple[int, bytes]]:
    """(index, salt and body as JSON) of every body in the copy."""
    for index in range(size):
        file = log / "bodies" / f"{index}.json"
        if file.is_file():
            yield index, file.read_bytes()
    together = log / "bodies.jsonl"
    if together.is_file():
        for line in together.read_bytes().splitlines():
            document = json.loads(line)
            yield int(document.pop("seq")), json.dumps(document).encode()


def verify(log: Path, vkey: str) -> dict[str, Any]:
    """Verify the log copy in `log`. The answer's `ok` is true only if every check held.

    Raises `ValueError` for an unusable key and `OSError` for a folder that cannot be read.
    """
    findings = Findings()
    answer: dict[str, Any] = {}
    try:
        origin, size, root = open_checkpoint((log / "checkpoint").read_bytes(), vkey)
    except Bad as error:
        findings.add(str(error))
    else:
        leaves = read_leaves(log, size, findings)
        answer = {"origin": origin, "size": size, "root": root.hex(), "entries": len(leaves), "bodies": check_bodies(log, leaves, findings)}
        if len(leaves) == size:
            hashes = [leaf_hash(leaf) for leaf in leaves]
            answer["tiles"] = check_tiles(log, hashes, findings)
            if merkle_root(hashes) != root:
                findings.add("the root of the entries is not the root that was signed")
    ok = not findings.problems
    return {"ok": ok, **answer, "first_bad": findings.first_bad, "bad": len(findings.problems), "problems": findings.problems[:SHOWN]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--key", required=True, help="the log's verifier key: name+hash+base64")


def run(given: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Exit status and answer."""
    answer = verify(given.log, given.key)
    return (0 if answer["ok"] else 1), answer
