"""How an object lies at rest: its own key (DEK), wrapped under a key that somebody else keeps (KEK), and its bytes in sealed pieces.

    header      one line of JSON: suite, bytes, piece size, which body, and the wrapped DEK
    body        pieces of 1 MiB, each sealed under the DEK with its place and whether it is the last as nonce

A DEK is used for one body, so places may be nonces (the STREAM construction). Whatever is cut off, put in another order, doubled, or
brought over from another object or suite does not open. The header is bound into the wrapping of the DEK: who alters it cannot unwrap.
Turning the KEK over writes headers anew and touches no body.

What is known by its SHA-256 before it is sealed is sealed for that (`v` 1). What is sealed while it arrives (`incoming`) is sealed for the
name of its body, and the header, written last, binds both to each other (`v` 2).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Self

from cryptography.exceptions import InvalidTag

from medmesh.errors import Problem
from medmesh.security import suites
from medmesh.security.keyring.port import KeyProvider
from medmesh.store.objects.blobs import Source

PIECE = 1 << 20
HEADER = 2048
"""No header is longer."""


@dataclass(frozen=True, slots=True)
class Wrapping:
    """Under which key DEKs are wrapped, and with which suite bodies are sealed."""

    keys: KeyProvider
    label: str
    suite: str = suites.DEFAULT
    allowed: frozenset[str] = suites.ALL


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an object at rest; `wrapped` is its DEK."""

    sha256: str
    suite: str
    size: int
    piece: int
    body: str
    """Empty when the body follows the header in the same blob."""
    wrapped: str = ""
    arrived: bool = False
    """Whether it was sealed before its SHA-256 was known."""

    @property
    def bound(self) -> bytes:
        """What the wrapping of the DEK vouches for: everything but itself."""
        vouched = [self.sha256, self.suite, self.size, self.piece, self.body] + [2] * self.arrived
        return json.dumps(vouched, separators=(",", ":")).encode()

    def line(self) -> bytes:
        """As it is stored."""
        document = {
            "v": 2 if self.arrived else 1,
            "suite": self.suite,
            "bytes": self.size,
            "piece": self.piece,
            "body": self.body,
            "key": self.wrapped,
        }
        return json.dumps(document, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def parse(cls, sha256: str, line: bytes) -> Self:
        """Raises `Problem` (`objects.damaged`)."""
        try:
            found = json.loads(line)
            numbers = (int(found["bytes"]), int(found["piece"]))
            made = cls(sha256, str(found["suite"]), *numbers, str(found["body"]), str(found["key"]), found["v"] == 2)
            if found["v"] not in (1, 2) or made.size < 0 or not 0 < made.piece <= 8 * 2**20 or (made.arrived and not made.body):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise Problem("objects.damaged", sha256=sha256) from None
        return made

    @property
    def pieces(self) -> int:
        """How many there are; an empty object has one."""
        return max(1, -(-self.size // self.piece))

    @property
    def sealed_bytes(self) -> int:
        """Length of the body."""
        return self.size + self.pieces * suites.TAG

    def opened(self, wrapping: Wrapping) -> suites.Aead:
        """The cipher under the DEK. Raises `Problem`."""
        suite = suites.suite(self.suite, wrapping.allowed)
        return suite.aead(wrapping.keys.unwrap(wrapping.label, self.wrapped, self.bound))

    def rewrapped(self, wrapping: Wrapping) -> Header:
        """The same object, its DEK under the newest KEK. Raises `Problem`."""
        dek = wrapping.keys.unwrap(wrapping.label, self.wrapped, self.bound)
        return replace(self, wrapped=wrapping.keys.wrap(wrapping.label, dek, self.bound))


def begin(sha256: str, size: int, wrapping: Wrapping, *, inline: bool) -> tuple[Header, suites.Aead]:
    """A new header with a new DEK, and the cipher to seal the body with."""
    suite = suites.suite(wrapping.suite, wrapping.allowed)
    dek = suite.new_key()
    header = Header(sha256, suite.name, size, PIECE, "" if inline else secrets.token_hex(8))
    return replace(header, wrapped=wrapping.keys.wrap(wrapping.label, dek, header.bound)), suite.aead(dek)


def begin_unknown(wrapping: Wrapping) -> tuple[str, bytes, suites.Aead]:
    """For an object that is sealed while it arrives: the name of its body, its DEK, and the cipher to seal with."""
    suite = suites.suite(wrapping.suite, wrapping.allowed)
    dek = suite.new_key()
    return secrets.token_hex(8), dek, suite.aead(dek)


def seal_piece(cipher: suites.Aead, suite: str, body: str, place: int, last: bool, plain: bytes | bytearray) -> bytes:
    """One piece of such an object; all but the last are `PIECE` long."""
    return cipher.encrypt(_nonce(place, last), plain, _associated_with(body, suite))


def arrived(sha256: str, size: int, body: str, dek: bytes, wrapping: Wrapping) -> Header:
    """The header of such an object, once all of it was sealed."""
    header = Header(sha256, wrapping.suite, size, PIECE, body, arrived=True)
    return replace(header, wrapped=wrapping.keys.wrap(wrapping.label, dek, header.bound))


def _nonce(place: int, last: bool) -> bytes:
    return place.to_bytes(8, "big") + bytes((last, 0, 0, 0))


def _associated(header: Header) -> bytes:
    return _associated_with(header.body if header.arrived else header.sha256, header.suite)


def _associated_with(name: str, suite: str) -> bytes:
    return f"medmesh-object\0{name}\0{suite}".encode()


def seal_pieces(header: Header, cipher: suites.Aead, source: Source) -> Iterator[bytes]:
    """The pieces of a body, from plain bytes. Raises `Problem` (`objects.digest`) when there are not as many as the header says."""
    associated, left = _associated(header), header.size
    for place in range(header.pieces):
        wanted = min(header.piece, left)
        plain = _exactly(source, wanted)
        if len(plain) != wanted:
            raise Problem("objects.digest", expected=header.sha256, found="?")
        left -= wanted
        yield cipher.encrypt(_nonce(place, place == header.pieces - 1), plain, associated)


def open_pieces(header: Header, cipher: suites.Aead, sealed: Iterator[bytes], first: int = 0, last: int | None = None) -> Iterator[bytes]:
    """Plain pieces `first`..`last` (exclusive) of a body, from its bytes beginning with piece `first`. Raises `Problem`
    (`objects.damaged`) before it gives out anything of a piece that is not whole and in its place."""
    associated, source = _associated(header), Rejoined(sealed)
    try:
        for place in range(first, header.pieces if last is None else last):
            is_last = place == header.pieces - 1
            plain_bytes = header.size - place * header.piece if is_last else header.piece
            try:
                plain = cipher.decrypt(_nonce(place, is_last), source.read(plain_bytes + suites.TAG), associated)
            except (InvalidTag, ValueError):
                raise Problem("objects.damaged", sha256=header.sha256) from None
            yield plain
    finally:
        if isinstance(sealed, Generator):  # the file or the connection behind it is done with
            sealed.close()


def _exactly(source: Source, length: int) -> bytes:
    parts: list[bytes] = []
    while length and (part := source.read(length)):
        parts.append(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class Rejoined:
    """Reads any number of bytes from an iterator of pieces; fewer at its end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest: bytes | memoryview = b""

    def read(self, size: int = -1, /) -> bytes:
        """See `Source`. A piece that is wanted whole, and nothing with it, is given as it is and not copied."""
        parts: list[bytes | memoryview] = []
        while size:
            rest = self._rest or next(self._pieces, None)
            if rest is None:
                break
            part: bytes | memoryview = rest
            if 0 <= size < len(rest):
                whole = memoryview(rest)
                part, self._rest = whole[:size], whole[size:]
            else:
                self._rest = b""
            size -= len(part) if size > 0 else 0
            parts.append(part)
        return parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)
