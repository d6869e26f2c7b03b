"""The parser of multipart messages, fed in pieces of every size, against Python's own parser of messages, and what is no message."""

from __future__ import annotations

import cProfile
import email.parser
import email.policy
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmesh.dicomweb.multipart import HEADER_BYTES, Data, End, Headers, Parser
from medmesh.errors import Problem

Parts = list[tuple[dict[str, str], bytes]]


def parsed(body: bytes, boundary: str = "b", sizes: Sequence[int] = (1 << 30,)) -> Parts:
    parser, found, place, turn = Parser(boundary), [], 0, 0
    fields: dict[str, str] = {}
    data = b""
    while place < len(body):
        size = sizes[turn % len(sizes)]
        for event in parser.feed(body[place : place + size]):
            match event:
                case Headers(fields):
                    data = b""
                case Data(more):
                    assert more
                    data += more
                case End():
                    found.append((fields, data))
        place, turn = place + size, turn + 1
    parser.close()
    return found


def written(parts: Sequence[bytes], boundary: str = "b") -> bytes:
    head = b"Content-Type: application/dicom\r\nX-Two:  2 \r\n\r\n"
    return b"".join(b"--" + boundary.encode() + b"\r\n" + head + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1 << 20])
def test_pieces_of_every_size(size: int) -> None:
    parts = [b"one", b"", b"\r\n--bx\r\n--", b"--b\r\n", b"\r\n", bytes(range(256)) * 5]
    found = parsed(b"preamble\r\n" + written(parts) + b"epilogue --b", sizes=(size,))
    assert [data for _, data in found] == parts
    assert found[0][0] == {"content-type": "application/dicom", "x-two": "2"}


@given(
    st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\x00", b"\r\n--b")), max_size=4),
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
)
def test_as_pythons_own_parser_reads_it(parts: list[bytes], sizes: list[int]) -> None:
    boundary = "=_b 1"
    body = written(parts, boundary)
    # It takes other line breaks for some, too: compared is what holds none.
    found = parsed(body, boundary, sizes)
    assert [data for _, data in found] == parts
    if all(b"\n" not in part and b"\r" not in part for part in parts) and parts:
        head = f'Content-Type: multipart/related; boundary="{boundary}"\r\n\r\n'.encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        assert [one.get_payload(decode=True) for one in message.iter_parts()] == [data for _, data in found]


def test_white_space_behind_a_boundary_belongs_to_it() -> None:
    body = b"--b \t \r\n\r\none\r\n--b\t--\r\n--b--"
    for size in (1, 4, 100):
        assert parsed(body, sizes=(size,)) == [({}, b"one\r\n--b\t--")]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "cut short"),
        (b"no boundary at all", "cut short"),
        (b"--b\r\n\r\none", "cut short"),
        (b"--b\r\nContent-Type: application/dicom\r\n", "cut short"),
        (b"--b\r\nno field\r\n\r\none\r\n--b--", "headers"),
        (b"--b\r\nA: 1\r\na: 2\r\n\r\none\r\n--b--", "headers"),
        (b"--b\r\nA: 1\r\n folded\r\n\r\none\r\n--b--", "headers"),
        (b"--b\r\nA: " + b"x" * HEADER_BYTES, "headers"),
        (b"x" * 70_000 + b"\r\n--b--", "no boundary"),
        (b"--b\r\n\r\n\r\n" * 10_001 + b"--b--", "too many parts"),
    ],
)
def test_what_is_no_message(body: bytes, reason: str) -> None:
    with pytest.raises(Problem) as caught:
        parsed(body)
    assert (caught.value.code, caught.value.params["reason"]) == ("dicomweb.multipart", reason)


@pytest.mark.parametrize("boundary", ["", " ", "x" * 71, "a\r\nb", "中", 'a"b'])
def test_what_is_no_boundary(boundary: str) -> None:
    with pytest.raises(Problem):
        Parser(boundary)


def test_a_large_part_is_never_held() -> None:
    parser = Parser("b")
    list(parser.feed(b"--b\r\n\r\n"))
    piece = b"\r\n--" + b"x" * 65_532
    for _ in range(64):
        assert sum(len(e.data) for e in parser.feed(piece) if isinstance(e, Data)) > 65_000
        assert len(parser._rest) < 64


def test_text_that_only_begins_like_a_delimiter_costs_no_step_each() -> None:
    """Else whoever sends megabytes of it keeps the others of an event loop waiting."""
    text, profile = b"\r\n--bX" * 200_000, cProfile.Profile()
    parser = Parser("b")
    with profile:
        events = [*parser.feed(b"--b\r\n\r\n" + text + b"\r\n--b--\r\n")]
    assert b"".join(event.data for event in events if isinstance(event, Data)) == text
    assert sum(entry.callcount for entry in profile.getstats()) < 1000
