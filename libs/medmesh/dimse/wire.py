"""The DICOM upper layer and command sets as bytes: PDUs (PS3.8 §9.3) and DIMSE commands (PS3.7 §6.3, §9.3), in and out.

Only what an acceptor of objects needs. What comes from the network is looked at here byte by byte: nothing is trusted to be as long as it
says, and every doubt is a `Violation`, which ends the association with an A-ABORT and nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
VERIFICATION = "1.2.840.10008.1.1"
IMPLEMENTATION = "2.25.252613914104957853871105217843920215711"
IMPLEMENTATION_NAME = "MEDMESH"

C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0FFF
NO_DATA_SET = 0x0101
LARGEST_COMMAND = 16 * 2**10
LARGEST_REQUEST = 256 * 2**10
"""Bytes of an A-ASSOCIATE-RQ: 128 contexts with every transfer syntax there is take less than 200 KiB."""

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


class Violation(Exception):
    """The peer does not speak the protocol. `reason` is that of an A-ABORT by the provider (PS3.8 table 9-26)."""

    def __init__(self, reason: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason


def is_uid(value: str) -> bool:
    """Whether it is shaped as a UID (PS3.5 §9.1); leading zeros in a component, which many senders write, are let through."""
    return len(value) <= 64 and _UID.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Proposed:
    """A presentation context as it is asked for."""

    id: int
    abstract: str
    transfers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """An A-ASSOCIATE-RQ. `largest` is how long a PDU the peer takes, 0 for any length."""

    called: str
    calling: str
    application: str
    contexts: tuple[Proposed, ...]
    largest: int


@dataclass(frozen=True, slots=True)
class Context:
    """A presentation context as it was answered; `result` as PS3.8 table 9-18."""

    id: int
    abstract: str
    transfer: str
    result: int


def request(body: bytes) -> Request:
    """What an A-ASSOCIATE-RQ asks for; `body` begins after its length. Raises `Violation`."""
    if len(body) < 68:
        raise Violation(6)
    application, largest, contexts = "", 0, []
    for kind, item in _items(body, 68):
        if kind == 0x10:
            application = _text(item)
        elif kind == 0x20:
            contexts.append(_proposed(item))
        elif kind == 0x50:
            for inner, value in _items(item, 0):
                if inner == 0x51 and len(value) == 4:
                    largest = int.from_bytes(value, "big")
    if not contexts or len({one.id for one in contexts}) != len(contexts):
        raise Violation(6)
    return Request(_text(body[4:20]), _text(body[20:36]), application, tuple(contexts), largest)


def _proposed(item: bytes) -> Proposed:
    if len(item) < 4:
        raise Violation(6)
    found = list(_items(item, 4))
    abstract = next((_text(value) for kind, value in found if kind == 0x30), "")
    return Proposed(item[0], abstract, tuple(_text(value) for kind, value in found if kind == 0x40))


def _items(body: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    while start < len(body):
        if start + 4 > len(body):
            raise Violation(6)
        length = int.from_bytes(body[start + 2 : start + 4], "big")
        if start + 4 + length > len(body):
            raise Violation(6)
        yield body[start], body[start + 4 : start + 4 + length]
        start += 4 + length


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(" \0")


def accepted(asked: Request, contexts: list[Context], largest: int) -> bytes:
    """An A-ASSOCIATE-AC; `largest` is how long a PDU we take."""
    items = [_item(0x10, APPLICATION_CONTEXT.encode())]
    items += [_item(0x21, bytes((one.id, 0, one.result, 0)) + _item(0x40, one.transfer.encode())) for one in contexts]
    user = _item(0x51, struct.pack(">L", largest)) + _item(0x52, IMPLEMENTATION.encode()) + _item(0x55, IMPLEMENTATION_NAME.encode())
    titles = f"{asked.called:16.16}{asked.calling:16.16}".encode("ascii", "replace")
    return pdu(ASSOCIATE_AC, struct.pack(">HH", 1, 0) + titles + bytes(32) + b"".join(items) + _item(0x50, user))


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def rejected(result: int, source: int, reason: int) -> bytes:
    """An A-ASSOCIATE-RJ (PS3.8 table 9-21)."""
    return pdu(ASSOCIATE_RJ, bytes((0, result, source, reason)))


def aborted(reason: int) -> bytes:
    """An A-ABORT by the provider."""
    return pdu(ABORT, bytes((0, 0, 2, reason)))


def pdu(kind: int, body: bytes) -> bytes:
    """Any PDU."""
    return struct.pack(">BBL", kind, 0, len(body)) + body


@dataclass(frozen=True, slots=True)
class Command:
    """A DIMSE request; UIDs as the peer wrote them."""

    field: int
    message: int
    sop_class: str
    sop: str
    has_data: bool


def command(data: bytes) -> Command:
    """The command set in `data`, Implicit VR Little Endian (PS3.7 §6.3.1). Raises `Violation`."""
    values: dict[int, bytes] = {}
    start = 0
    while start < len(data):
        if start + 8 > len(data):
            raise Violation(6)
        group, element, length = struct.unpack_from("<HHL", data, start)
        if group != 0 or start + 8 + length > len(data):
            raise Violation(6)
        values[element] = data[start + 8 : start + 8 + length]
        start += 8 + length
    field, message, kind = (_short(values, element) for element in (0x0100, 0x0110, 0x0800))
    if field is None or kind is None:
        raise Violation(6)
    sop_class = values.get(0x0002) or values.get(0x0003) or b""
    return Command(field, message or 0, _text(sop_class), _text(values.get(0x1000) or b""), kind != NO_DATA_SET)


def _short(values: Mapping[int, bytes], element: int) -> int | None:
    value = values.get(element)
    return None if value is None or len(value) != 2 else int.from_bytes(value, "little")


def response(asked: Command, context: int, status: int, comment: str = "") -> bytes:
    """The P-DATA-TF with our answer; `comment` (at most 64 characters, no patient's data) goes with a failure."""
    elements = [(0x0100, struct.pack("<H", asked.field | 0x8000)), (0x0120, struct.pack("<H", asked.message))]
    elements += [(0x0800, struct.pack("<H", NO_DATA_SET)), (0x0900, struct.pack("<H", status))]
    if asked.sop_class:
        elements.insert(0, (0x0002, _padded(asked.sop_class, b"\0")))
    if comment:
        elements.append((0x0902, _padded(comment[:64], b" ")))
    if asked.sop:
        elements.append((0x1000, _padded(asked.sop, b"\0")))
    body = b"".join(struct.pack("<HHL", 0, element, len(value)) + value for element, value in elements)
    body = struct.pack("<HHLL", 0, 0, 4, len(body)) + body
    return pdu(P_DATA, struct.pack(">LBB", len(body) + 2, context, 3) + body)


def _padded(value: str, pad: bytes) -> bytes:
    found = value.encode("ascii", "replace")
    return found + pad if len(found) % 2 else found


def values(body: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """(context, control header, fragment) of the presentation data values in a P-DATA-TF (PS3.8 §9.3.5). Raises `Violation`."""
    start = 0
    while start < len(body):
        if start + 6 > len(body):
            raise Violation(6)
        length = int.from_bytes(body[start : start + 4], "big")
        if length < 2 or start + 4 + length > len(body):
            raise Violation(6)
        yield body[start + 4], body[start + 5], body[start + 6 : start + 4 + length]
        start += 4 + length
