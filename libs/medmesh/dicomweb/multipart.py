"""`multipart/related` (RFC 2387, in the form of RFC 2046 §5.1) as a stream: fed with pieces of any size, it never holds a part."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from medmesh.errors import Problem

HEADER_BYTES = 16 * 1024
PREAMBLE_BYTES = 64 * 1024
PARTS = 10_000
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
_BEHIND = re.compile(rb"(?:(--)|([ \t]{0,254}\r\n)|(?:-|[ \t]{0,255}\r?)\Z)")
"""What follows a delimiter, or has begun to at the end of what is here."""


@dataclass(frozen=True, slots=True)
class Headers:
    """A part begins; its fields by names in lower case."""

    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class Data:
    """More of the part's body, where it lies in what the parser was fed."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class End:
    """The part is whole."""


Event = Headers | Data | End
_State = Literal["preamble", "headers", "body", "epilogue"]


def _broken(reason: str) -> Problem:
    return Problem("dicomweb.multipart", reason=reason)


class Parser:
    """Of one message. Raises `Problem` (`dicomweb.multipart`), and is of no more use then."""

    def __init__(self, boundary: str) -> None:
        if not _BOUNDARY.fullmatch(boundary):
            raise _broken("boundary")
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._rest = b"\r\n"  # so that a delimiter at the very beginning has its line break
        self._at = 0
        """Up to where that was looked at."""
        self._state: _State = "preamble"
        self._skipped = 0
        self.parts = 0

    @cached_property
    def _line(self) -> re.Pattern[bytes]:
        return re.compile(re.escape(self._delimiter) + _BEHIND.pattern)

    def feed(self, data: bytes) -> Iterator[Event]:
        """What follows from more bytes."""
        self._rest += data
        going = True
        while going:
            if self._state in ("preamble", "body"):
                going = yield from self._to_delimiter()
            elif self._state == "headers":
                going = yield from self._headers()
            else:
                self._at, going = len(self._rest), False
        self._rest, self._at = self._rest[self._at :], 0

    def close(self) -> None:
        """At the end of the message."""
        if self._state != "epilogue":
            raise _broken("cut short")

    def _to_delimiter(self) -> Generator[Event, None, bool]:
        """Give out what lies before the next delimiter; whether there is more to look at."""
        at, behind, last = self._find()
        if at < 0:
            # What may be the beginning of a delimiter waits, with the white space that may follow it.
            yield from self._out(max(self._at, len(self._rest) - len(self._delimiter) - 1 if behind < 0 else behind))
            return False
        yield from self._out(at)
        if self._state == "body":
            yield End()
        self._at = behind
        self._state = "epilogue" if last else "headers"
        return True

    def _find(self) -> tuple[int, int, bool]:
        """(where a delimiter begins, where what follows it begins, whether it is the last). Without one, -1 and where a delimiter may
        have begun that is not all here yet, or -1."""
        if (at := self._rest.find(self._delimiter, self._at)) < 0:
            return -1, -1, False
        found = _BEHIND.match(self._rest, at + len(self._delimiter))
        if found is None:
            # Of text that only begins like a delimiter there may be very much: it is passed over without a step of ours for each.
            if (found := self._line.search(self._rest, at + 1)) is None:
                return -1, -1, False
            at = found.start()
        if found[1] is None and found[2] is None:
            return -1, at, False
        return at, found.end(), found[1] is not None

    def _out(self, end: int) -> Iterator[Event]:
        begin, self._at = self._at, end
        if self._state == "body":
            if begin < end:
                yield Data(memoryview(self._rest)[begin:end])
        else:
            self._skipped += end - begin
            if self._skipped > PREAMBLE_BYTES:
                raise _broken("no boundary")

    def _headers(self) -> Generator[Event, None, bool]:
        """The fields of a part, once all of them are there."""
        if self._rest.startswith(b"\r\n", self._at):
            block, self._at = b"", self._at + 2
        else:
            end = self._rest.find(b"\r\n\r\n", self._at, self._at + HEADER_BYTES)
            if end < 0:
                if len(self._rest) - self._at >= HEADER_BYTES:
                    raise _broken("headers")
                return False
            block, self._at = self._rest[self._at : end], end + 4
        self.parts += 1
        if self.parts > PARTS:
            raise _broken("too many parts")
        fields: dict[str, str] = {}
        for line in block.decode("latin-1").split("\r\n") if block else ():
            found = _FIELD.fullmatch(line)
            if found is None or found[1].lower() in fields:
                raise _broken("headers")
            fields[found[1].lower()] = found[2]
        self._state = "body"
        yield Headers(fields)
        return True


def written(boundary: str, parts: Iterable[tuple[str, Iterable[bytes]]]) -> Iterator[bytes]:
    """A message, piece by piece, of (media type, pieces of the body)."""
    for content_type, body in parts:
        yield f"--{boundary}\r\nContent-Type: {content_type}\r\n\r\n".encode()
        yield from body
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()
