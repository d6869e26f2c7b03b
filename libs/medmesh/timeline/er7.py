"""HL7 v2's ER7 encoding: messages out of files, fields out of messages. No more than reading needs, and nothing is guessed.

HL7 v2.5.1 chapter 2: delimiters from MSH-1 and MSH-2, escape sequences (2.7), character sets by MSH-18 (table 0211), batches (2.10.3).
What Chinese hospitals write into MSH-18 beside the table is known, too. A trail byte of GB18030 may be a delimiter, never a line end:
segments are cut first and decoded before their fields are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO

LARGEST = 16 << 20
_ENVELOPES = (b"FHS", b"BHS", b"BTS", b"FTS")
_CHARSETS = {
    "": "", "ASCII": "utf-8", "UNICODE UTF-8": "utf-8", "UTF-8": "utf-8", "UTF8": "utf-8", "UNICODE": "utf-8",
    "8859/1": "iso8859-1", "8859/2": "iso8859-2", "8859/15": "iso8859-15", "8859/5": "iso8859-5",
    "GB 18030-2000": "gb18030", "GB18030": "gb18030", "GB 18030": "gb18030", "GBK": "gb18030", "GB2312": "gb18030",
    "BIG-5": "big5", "KS X 1001": "euc_kr", "ISO IR14": "shift_jis", "ISO IR87": "iso2022_jp",
}  # fmt: skip


class Unreadable(ValueError):
    """A message that is none; `code` says why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Segment:
    """One segment; `fields[0]` is its name, so that PID-3 is `fields[3]`."""

    fields: list[str]
    marks: str

    @property
    def name(self) -> str:
        return self.fields[0]

    def get(self, number: int, component: int = 1, *, repetition: int = 0, part: int = 1) -> str:
        """A value, escapes undone; empty where there is none. HL7's null (`""`) is empty, too."""
        return self.take(self.repetitions(number), repetition, component, part)

    def repetitions(self, number: int) -> list[str]:
        """The repetitions of a field as they are written."""
        text = self.fields[number] if number < len(self.fields) else ""
        return text.split(self.marks[2]) if text else []

    def take(self, repetitions: list[str], repetition: int, component: int, part: int = 1) -> str:
        """The same of repetitions that were taken apart already."""
        if repetition >= len(repetitions):
            return ""
        components = repetitions[repetition].split(self.marks[1])
        if component > len(components):
            return ""
        parts = components[component - 1].split(self.marks[4])
        value = unescape(parts[part - 1], self.marks).strip() if part <= len(parts) else ""
        return "" if value == '""' else value

    def whole(self, number: int, repetition: int = 0) -> str:
        """A repetition as text, components and all."""
        found = self.repetitions(number)
        return unescape(found[repetition], self.marks) if repetition < len(found) else ""


@dataclass
class Message:
    """One message; `line` is where its MSH stands in the file."""

    line: int
    raw: bytes
    segments: list[Segment] = field(default_factory=list)

    @cached_property
    def header(self) -> Segment:
        return self.segments[0]

    @property
    def kind(self) -> str:
        """For example ADT^A01."""
        return f"{self.header.get(9)}^{self.header.get(9, 2)}"

    def all(self, name: str) -> list[Segment]:
        """Every segment of a name."""
        return [one for one in self.segments if one.name == name]

    def first(self, name: str) -> Segment:
        """The first segment of a name; an empty one where there is none."""
        return next((one for one in self.segments if one.name == name), Segment([name], self.header.marks))


def unescape(text: str, marks: str) -> str:
    """Escape sequences undone (2.7): delimiters, characters by number, breaks; highlighting and what is local goes."""
    escape = marks[3]
    if escape not in text:
        return text
    plain = {"F": marks[0], "S": marks[1], "R": marks[2], "E": escape, "T": marks[4], ".br": "\n", ".sp": "\n"}

    def one(found: re.Match[str]) -> str:
        name = found[1]
        if name in plain:
            return plain[name]
        if re.fullmatch(r"X(?:[0-9A-Fa-f]{2})+", name):
            return bytes.fromhex(name[1:]).decode("utf-8", "replace")
        return "\n" if name.startswith(".sp") else ""

    return re.sub(f"{re.escape(escape)}([^{re.escape(escape)}]*){re.escape(escape)}", one, text)


def messages(file: IO[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """(line of MSH, its segments) of a file of one message, several, or batches; lines end by CR, LF or both, MLLP's frame is taken off.

    Lines that belong to no message are told as a message of their own, so that nothing is passed over.
    """
    begun: list[bytes] = []
    line, size = 1, 0
    for number, segment in _segments(file):
        if segment.startswith(_ENVELOPES):
            if begun:
                yield line, begun
            begun, size = [], 0
            continue
        if segment.startswith(b"MSH"):
            if begun:
                yield line, begun
            begun, line, size = [], number, 0
        elif not begun:
            line = number
        size += len(segment)
        if size <= LARGEST:
            begun.append(segment)
    if begun:
        yield line, begun


def _segments(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    rest, number = b"", 0
    while piece := file.read(1 << 16):
        rest += piece
        parts = re.split(rb"\r\n|\r(?=.)|\n", rest, flags=re.DOTALL)  # a CR at the very end may have its LF in the next piece
        rest = parts.pop()
        for part in parts:
            number += 1
            if found := part.strip(b"\x0b\x1c\r\n \t"):
                yield number, found
        if len(rest) > LARGEST:
            rest = rest[: LARGEST + 1]
    for part in rest.split(b"\r"):
        number += 1
        if found := part.strip(b"\x0b\x1c\r\n \t"):
            yield number, found


def parse(line: int, segments: list[bytes], default: str = "gb18030") -> Message:
    """A message of its segments. `default` is for bytes that are not UTF-8 where MSH-18 says nothing. Raises `Unreadable`."""
    head = segments[0]
    if not head.startswith(b"MSH") or len(head) < 8:
        raise Unreadable("timeline.no_msh")
    charset = _charset(head)
    if charset is None:
        raise Unreadable("timeline.charset")
    whole = b"\r".join(segments)
    if not charset:
        try:
            whole.decode("utf-8")
            charset = "utf-8"
        except UnicodeDecodeError:
            charset = default
    try:
        text = whole.decode(charset)
    except UnicodeDecodeError:
        raise Unreadable("timeline.charset") from None
    marks = text[3] + text[4:8]
    if len(set(marks)) != 5 or any(one.isalnum() or one.isspace() for one in marks):
        raise Unreadable("timeline.no_msh")
    made = Message(line, whole)
    for part in text.split("\r"):
        fields = part.split(marks[0])
        if fields[0] == "MSH":
            fields = ["MSH", marks[0], *fields[1:]]
        made.segments.append(Segment(fields, marks))
    return made


def _charset(head: bytes) -> str | None:
    """By MSH-18, of whose repetitions the first that says something holds; None for one that is not known."""
    for encoding in ("utf-8", "gb18030", "latin-1"):
        try:
            fields = head.decode(encoding).split(chr(head[3]))
        except UnicodeDecodeError:
            continue
        named = fields[17].split(chr(head[5]))[0:2] if len(fields) > 17 else [""]
        names = [one.strip().upper() for one in named]
        said = next((one for one in names if one not in ("", "ASCII")), names[0])
        return _CHARSETS.get(said)
    return None
