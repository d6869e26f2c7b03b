"""The structure of a data set, walked without decoding it: what is answered to a sender is decided on this, in a fraction of a millisecond.

Elements of PS3.5 §7, in the three encodings of §A.1 to A.3. Lengths must fit into each other and into what arrived; values are not looked
at, but for the few UIDs that say which object it is. `medmesh.imaging.reading` decodes everything later, in a process of its own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

IMPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
PREFIX = 1 << 20
"""How much of an object is looked at: headers are shorter, and what is not is left to the one who decodes it."""
DEEPEST = 64
_SHORT = frozenset(
    (
        b"AE",
        b"AS",
        b"AT",
        b"CS",
        b"DA",
        b"DS",
        b"DT",
        b"FD",
        b"FL",
        b"IS",
        b"LO",
        b"LT",
        b"PN",
        b"SH",
        b"SL",
        b"SS",
        b"ST",
        b"TM",
        b"UI",
        b"UL",
        b"US",
    )
)
"""Kinds of values whose length has two bytes (PS3.5 §7.1.2)."""
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_UNDEFINED = 0xFFFFFFFF
_PIXELS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_SPECIAL = frozenset((0x7FE0, 0xFFFE))
"""Groups of pixels, and of what delimits."""
_WANTED = {0x00080016: "sop_class", 0x00080018: "sop", 0x0020000D: "study", 0x0020000E: "series"}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


class Malformed(Exception):
    """`reason` is a word: `truncated`, `structure`, `depth`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _More(Exception):
    """What is looked at ends before the header does."""


@dataclass(slots=True)
class Head:
    """What a data set says of itself; empty where it says nothing. `whole` is false where the header went on behind what was looked at."""

    sop_class: str = ""
    sop: str = ""
    study: str = ""
    series: str = ""
    whole: bool = True


def scan(data: bytes | bytearray | memoryview, total: int, syntax: str) -> Head:
    """Walk the data set that begins with `data` and has `total` bytes, up to its pixels or its end. Raises `Malformed`.

    A deflated one, and one that says nothing, is not looked at (`whole` is false).
    """
    if syntax == DEFLATED:
        return Head(whole=False)
    with memoryview(data) as view:
        try:
            return _walked(view, total, syntax)
        except Malformed as first:
            if syntax in (IMPLICIT, BIG_ENDIAN):
                raise
            try:  # some senders say Explicit VR and write Implicit; readers take either, and so do we
                return _walked(view, total, IMPLICIT)
            except Malformed:
                raise first from None


def _walked(view: memoryview, total: int, syntax: str) -> Head:
    walk = _Walk(view, total, syntax)
    try:
        walk.top()
    except _More:
        walk.head.whole = False
    return walk.head


class _Walk:
    def __init__(self, data: memoryview, total: int, syntax: str) -> None:
        self.data, self.total, self.have = data, total, len(data)
        order = ">" if syntax == BIG_ENDIAN else "<"
        self.implicit = syntax == IMPLICIT
        self.explicit = struct.Struct(f"{order}HH2sH").unpack_from
        self.long = struct.Struct(f"{order}L").unpack_from
        self.head = Head()

    def top(self) -> None:
        place, data, explicit, plain_end = 0, self.data, self.explicit, -1 if self.implicit else self.have - 8
        while place < self.total:
            if place <= plain_end:  # what most elements are: an object has hundreds, of which four are looked at
                group, number, vr, length = explicit(data, place)
                if vr in _SHORT and group not in _SPECIAL and group << 16 | number not in _WANTED:
                    place += 8 + length
                    if place > self.total:
                        raise Malformed("truncated")
                    continue
            tag, length, value, sequence = self.element(place)
            if tag in _PIXELS:
                if length != _UNDEFINED and value + length > self.total:
                    raise Malformed("truncated")
                return
            if tag >> 16 == 0xFFFE:
                raise Malformed("structure")
            name = _WANTED.get(tag)
            if name is not None and length <= 64:
                self.need(value + length)
                text = bytes(self.data[value : value + length]).decode("ascii", "replace").strip(" \0")
                setattr(self.head, name, text)
            place = self.after(length, value, sequence)

    def element(self, place: int) -> tuple[int, int, int, bool]:
        """(tag, length, where its value begins, whether a value of undefined length is a sequence of data sets encoded as this one)."""
        self.need(place + 8)
        group, number, vr, length = self.explicit(self.data, place)
        tag = group << 16 | number
        if self.implicit or group == 0xFFFE:
            return tag, self.long(self.data, place + 4)[0], place + 8, True
        if vr in _LONG:
            self.need(place + 12)
            return tag, self.long(self.data, place + 8)[0], place + 12, vr == b"SQ"
        if not (vr.isalpha() and vr.isupper()):
            raise Malformed("structure")
        return tag, length, place + 8, False

    def after(self, length: int, value: int, sequence: bool) -> int:
        """Where the next element begins."""
        if length != _UNDEFINED:
            if value + length > self.total:
                raise Malformed("truncated")
            return value + length
        if not sequence and not self.implicit:
            # UN of undefined length is a sequence in Implicit VR (PS3.5 §6.2.2 note 4).
            self.implicit = True
            try:
                return self.items(value)
            finally:
                self.implicit = False
        return self.items(value)

    def items(self, place: int) -> int:
        """Behind the delimiter of a sequence of undefined length; without recursion, so that depth costs no stack."""
        inside = [True]  # True: in a sequence, items follow; False: in an item, elements follow
        while inside:
            tag, length, value, sequence = self.element(place)
            if inside[-1]:
                if tag == _SEQUENCE_END:
                    inside.pop()
                    place = value
                elif tag == _ITEM:
                    if length == _UNDEFINED:
                        inside.append(False)
                        place = value
                    else:
                        place = self.after(length, value, sequence)
                else:
                    raise Malformed("structure")
            elif tag == _ITEM_END:
                inside.pop()
                place = value
            elif tag >> 16 == 0xFFFE:
                raise Malformed("structure")
            elif length == _UNDEFINED and (sequence or self.implicit):
                inside.append(True)
                place = value
            else:
                place = self.after(length, value, sequence)
            if len(inside) > 2 * DEEPEST:
                raise Malformed("depth")
        return place

    def need(self, end: int) -> None:
        if end > self.total:
            raise Malformed("truncated")
        if end > self.have:
            raise _More
