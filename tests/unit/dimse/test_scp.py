"""The acceptor as its peers see it: pynetdicom's requestor, and raw bytes where no proper peer would send them."""

from __future__ import annotations

import gc
import socket
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pynetdicom import AE, build_context
from pynetdicom.sop_class import CTImageStorage, ModalityWorklistInformationFind, Verification  # type: ignore[attr-defined]

from medmesh.dimse import scu, wire
from medmesh.dimse.association import LARGEST_PDU, Limits
from medmesh.dimse.port import CALLED_UNKNOWN, CALLING_UNKNOWN, Refused
from medmesh.dimse.server import Server, serving
from medmesh.errors import Problem


class Kept:
    """A sink in memory; a SOP instance that begins with `9.` is refused, and `8.` breaks."""

    def __init__(self, service: Memory, sop: str, syntax: str) -> None:
        self.service, self.sop, self.syntax, self.data, self.done = service, sop, syntax, bytearray(), False
        self.largest = 0

    def write(self, fragment: memoryview) -> None:
        self.data += fragment
        self.largest = max(self.largest, len(fragment))

    def finish(self) -> tuple[int, str]:
        if self.sop.startswith("8."):
            raise RuntimeError("a defect of ours")
        self.done = True
        if self.sop.startswith("9."):
            return 0xC000, "the data set cannot be read"
        self.service.kept[self.sop] = (bytes(self.data), self.syntax)
        return 0, ""

    def abandon(self) -> None:
        self.service.abandoned += not self.done


class Memory:
    def __init__(self) -> None:
        self.kept: dict[str, tuple[bytes, str]] = {}
        self.abandoned = 0

    def admit(self, called: str, calling: str, address: str, secured: frozenset[str] | None) -> Any | Refused:
        if called != "MEDMESH":
            return CALLED_UNKNOWN
        return (calling, address) if calling == "CT1" else CALLING_UNKNOWN

    def store(self, bound: Any, sop_class: str, sop: str, syntax: str) -> Kept:
        return Kept(self, sop, syntax)


@pytest.fixture
def service() -> Memory:
    return Memory()


@pytest.fixture
def server(service: Memory) -> Iterator[Server]:
    with serving("127.0.0.1", 0, service, limits=Limits(request=1, idle=2, network=1), most=3) as running:
        yield running


def peer(server: Server, title: str = "MEDMESH", us: str = "CT1") -> scu.Peer:
    return scu.Peer(title, "127.0.0.1", server.port, us)


def image(sop: str = "1.2.3", frames: int = 1) -> pydicom.Dataset:
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = sop
    if frames > 1:
        dataset.PixelData = dataset.PixelData * frames
    return dataset


def encoded(dataset: pydicom.Dataset) -> bytes:
    """Its data set as it goes over the network."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    found = buffer.getvalue()
    return found[144 + int.from_bytes(found[140:144], "little") :]


def test_echo_and_store(server: Server, service: Memory, tmp_path: Path) -> None:
    assert scu.echo(peer(server)) < 2000
    paths = []
    for number, frames in enumerate((1, 40), start=1):
        paths.append(tmp_path / f"{number}.dcm")
        image(f"1.2.{number}", frames).save_as(paths[-1])
    (tmp_path / "none.dcm").write_bytes(b"not DICOM")
    told: list[tuple[int, int]] = []
    counts = scu.send(peer(server), [*paths, tmp_path / "none.dcm"], lambda *so_far: told.append(so_far))
    assert (counts.completed, counts.failed, counts.failures) == (2, 1, {"not DICOM": 1})
    assert told == [(1, 3), (2, 3)]
    assert {sop: data for sop, (data, _) in service.kept.items()} == {
        f"1.2.{n}": encoded(image(f"1.2.{n}", f)) for n, f in ((1, 1), (2, 40))
    }
    assert service.abandoned == 0


def test_a_refused_object_costs_itself_alone(server: Server, service: Memory, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, sop in zip(paths, ("1.1", "9.1", "1.2"), strict=True):
        image(sop).save_as(path)
    counts = scu.send(peer(server), paths)
    assert (counts.completed, counts.failures) == (2, {"0xC000": 1})
    assert set(service.kept) == {"1.1", "1.2"}


@pytest.mark.parametrize(("title", "us", "reason"), [("OTHER", "CT1", "1/1/7"), ("MEDMESH", "CT2", "1/1/3")])
def test_who_is_not_named_is_turned_away_with_the_reason(server: Server, title: str, us: str, reason: str) -> None:
    with pytest.raises(Problem) as found:
        scu.echo(peer(server, title, us))
    assert (found.value.code, found.value.params["reason"]) == ("dicom.rejected", reason)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom leaves the socket open that found nobody
def test_nobody_there(server: Server) -> None:
    with pytest.raises(Problem, match="does not answer"):
        scu.echo(scu.Peer("MEDMESH", "127.0.0.1", 1, "CT1"))
    gc.collect()


def test_contexts_are_answered_one_by_one(server: Server) -> None:
    entity = AE("CT1")
    contexts = [
        build_context(CTImageStorage, ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"]),
        build_context(CTImageStorage, "1.2.840.10008.1.2.4.90"),
        build_context("1.2.276.0.7230010.3.1.0.1", "1.2.840.10008.1.2"),  # a private storage class
        build_context(CTImageStorage, "1.2.3.4"),
        build_context(ModalityWorklistInformationFind),
        build_context(Verification),
    ]
    association = entity.associate("127.0.0.1", server.port, contexts=contexts, ae_title="MEDMESH")
    assert association.is_established
    taken = {(one.abstract_syntax, one.transfer_syntax[0]) for one in association.accepted_contexts}
    assert taken == {
        (CTImageStorage, "1.2.840.10008.1.2.1"),
        (CTImageStorage, "1.2.840.10008.1.2.4.90"),
        ("1.2.276.0.7230010.3.1.0.1", "1.2.840.10008.1.2"),
        (Verification, "1.2.840.10008.1.2.1"),
    }
    assert association.acceptor.maximum_length == LARGEST_PDU
    association.release()


def requested(*, version: int = 1, called: bytes = b"MEDMESH", calling: bytes = b"CT1") -> bytes:
    item = wire._item
    context = item(0x20, bytes((1, 0, 0, 0)) + item(0x30, CTImageStorage.encode()) + item(0x40, b"1.2.840.10008.1.2.1"))
    user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3"))
    titles = called.ljust(16) + calling.ljust(16)
    fixed = struct.pack(">HH", version, 0) + titles + bytes(32)
    return wire.pdu(wire.ASSOCIATE_RQ, fixed + item(0x10, wire.APPLICATION_CONTEXT.encode()) + context + user)


def command(*, data: bool = True, field: int = 1, sop: bytes = b"1.2.3\0") -> bytes:
    elements = [(2, CTImageStorage.encode() + b"\0"), (0x100, struct.pack("<H", field)), (0x110, b"\7\0")]
    elements += [(0x800, b"\1\0" if data else b"\1\1"), (0x1000, sop)]
    body = b"".join(struct.pack("<HHL", 0, element, len(value)) + value for element, value in elements)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def values(*fragments: tuple[int, int, bytes]) -> bytes:
    return wire.pdu(
        wire.P_DATA, b"".join(struct.pack(">LBB", len(data) + 2, context, control) + data for context, control, data in fragments)
    )


class Raw:
    """A peer that sends whatever it is told to."""

    def __init__(self, server: Server, associate: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        if associate:
            self.socket.sendall(requested())
            assert self.answer()[0] == wire.ASSOCIATE_AC

    def __del__(self) -> None:
        self.socket.close()

    def answer(self) -> tuple[int, bytes]:
        head = self._exactly(6)
        return (head[0], self._exactly(int.from_bytes(head[2:], "big"))) if head else (0, b"")

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count and (part := self.socket.recv(count - len(found))):
            found += part
        return found

    def status(self) -> int:
        kind, body = self.answer()
        assert kind == wire.P_DATA
        place, found = 6, {}
        while place < len(body):
            element, length = struct.unpack_from("<HL", body, place + 2)
            found[element] = body[place + 8 : place + 8 + length]
            place += 8 + length
        assert int.from_bytes(found[0x120], "little") == 7
        return int.from_bytes(found[0x900], "little")


def test_a_message_may_come_in_any_pieces(server: Server, service: Memory) -> None:
    raw = Raw(server)
    whole = values((1, 1, command()[:10])) + values((1, 3, command()[10:]), (1, 0, b"ab"), (1, 2, b"cd"))
    for byte in whole:
        raw.socket.sendall(bytes((byte,)))
    assert raw.status() == 0
    assert service.kept["1.2.3"] == (b"abcd", "1.2.840.10008.1.2.1")
    raw.socket.sendall(wire.pdu(wire.RELEASE_RQ, bytes(4)))
    assert raw.answer()[0] == wire.RELEASE_RP


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (values((1, 3, command(field=0x20)), (1, 2, b"x")), 0x0211),
        (values((1, 3, command(data=False))), 0xC000),
        (values((1, 3, command().replace(CTImageStorage.encode(), b"1.2.840.10008.5.1.4.1.1.4")), (1, 2, b"x")), 0x0122),
        (values((1, 3, command(data=False, field=0x30))), 0),
    ],
)
def test_what_is_not_taken_is_answered_and_the_association_goes_on(server: Server, service: Memory, sent: bytes, status: int) -> None:
    raw = Raw(server)
    raw.socket.sendall(sent)
    assert raw.status() == status
    raw.socket.sendall(values((1, 3, command()), (1, 2, b"ok")))
    assert raw.status() == 0


@pytest.mark.parametrize(
    "sent",
    [
        wire.pdu(9, b""),  # no such PDU
        wire.pdu(wire.ASSOCIATE_AC, bytes(80)),  # not now
        b"\4\0\xff\xff\xff\xff",  # longer than we take
        values((3, 3, command())),  # a context that was not negotiated
        values((1, 2, b"x")),  # a data set without a command
        values((1, 3, command()), (1, 3, command())),  # a command where data should be
        values((1, 3, b"\1\0\0\0\xff\xff\xff\xff")),
        values((1, 1, bytes(20_000))),
        wire.pdu(wire.P_DATA, b"\0\0\0\1\1"),
        wire.pdu(wire.P_DATA, b"\0\0\xff\xff\1\3"),
    ],
)
def test_who_breaks_the_protocol_is_told_so_and_only_he_ends(server: Server, service: Memory, sent: bytes) -> None:
    raw, other = Raw(server), Raw(server)
    raw.socket.sendall(sent)
    assert raw.answer()[0] == wire.ABORT
    assert raw.answer()[0] == 0
    other.socket.sendall(values((1, 3, command()), (1, 2, b"ok")))
    assert other.status() == 0


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (requested(version=2), (wire.ASSOCIATE_RJ, b"\0\1\2\2")),
        (requested().replace(b"3.1.1.1", b"3.1.1.9"), (wire.ASSOCIATE_RJ, b"\0\1\1\2")),
        (requested()[:-8], None),
        (wire.pdu(wire.ASSOCIATE_RQ, bytes(10)), (wire.ABORT, b"\0\0\2\6")),
        (wire.pdu(wire.P_DATA, b""), (wire.ABORT, b"\0\0\2\2")),
        (b"GET / HTTP/1.1\r\n\r\n", (wire.ABORT, b"\0\0\2\1")),
        (b"\1\0\x7f\xff\xff\xff", (wire.ABORT, b"\0\0\2\6")),
    ],
)
def test_what_is_no_request_is_answered(server: Server, sent: bytes, answer: tuple[int, bytes] | None) -> None:
    raw = Raw(server, associate=False)
    raw.socket.sendall(sent)
    assert raw.answer() == (answer or (wire.ABORT, b"\0\0\2\0")), "a request that never ends is waited for for a second"


def test_silence_within_an_object_ends_it_and_nothing_stays(server: Server, service: Memory) -> None:
    raw = Raw(server)
    raw.socket.sendall(values((1, 3, command()), (1, 0, b"half")))
    assert raw.answer()[0] == wire.ABORT
    assert (service.abandoned, service.kept) == (1, {})
    gone = Raw(server)
    gone.socket.sendall(values((1, 3, command()), (1, 0, b"half")) + wire.pdu(wire.ABORT, bytes(4)))
    assert gone.answer()[0] == wire.ABORT
    assert service.abandoned == 2


def test_a_defect_of_ours_ends_one_association(server: Server, service: Memory) -> None:
    raw = Raw(server)
    raw.socket.sendall(values((1, 3, command(sop=b"8.1\0")), (1, 2, b"x")))
    assert raw.answer()[0] == wire.ABORT
    assert service.abandoned == 1
    assert scu.echo(peer(server)) > 0


def test_more_associations_than_can_be_served_are_told_to_come_again(server: Server) -> None:
    held = [Raw(server) for _ in range(3)]
    late = Raw(server, associate=False)
    late.socket.sendall(requested())
    assert late.answer() == (wire.ASSOCIATE_RJ, b"\0\2\3\2")
    assert held
