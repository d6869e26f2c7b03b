"""What STOW-RS holds of a request, whatever its size: a group of objects, and nothing of those before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from medmesh.dicomweb import stow
from medmesh.dicomweb.stow import Stored, Storing
from medmesh.errors import Problem

TYPE = 'multipart/related; type="application/dicom"; boundary=b'


class Sink:
    """An object is its length."""

    def __init__(self) -> None:
        self.size, self.abandoned = 0, False

    def write(self, data: bytes) -> None:
        self.size += len(data)

    def seal(self) -> int:
        return self.size

    def abandon(self) -> None:
        self.abandoned = True


def parts(*sizes: int, kind: bytes = b"application/dicom") -> Iterator[bytes]:
    for size in sizes:
        yield b"--b\r\nContent-Type: " + kind + b"\r\n\r\n" + b"x" * size + b"\r\n"


@pytest.mark.parametrize(("sizes", "groups"), [([10] * 100, [32, 32, 32, 4]), ([3 * 2**20] * 8, [6, 2]), ([20 * 2**20, 1, 1], [1, 2])])
def test_objects_are_kept_by_groups_that_are_bounded(sizes: list[int], groups: list[int]) -> None:
    kept: list[list[int]] = []

    def keep(sealed: list[int]) -> list[Stored]:
        kept.append(sealed)
        return [Stored(0, sop=str(one)) for one in sealed]

    storing = Storing(TYPE, Sink, keep)
    for part in parts(*sizes):
        for start in range(0, len(part), 256 * 1024):
            storing.feed(part[start : start + 256 * 1024])
    storing.feed(b"--b--")
    assert [one.sop for one in storing.finish()] == [str(size) for size in sizes]
    assert [len(one) for one in kept] == groups
    storing.close()


def test_answers_are_in_the_order_of_the_parts() -> None:
    storing = Storing(TYPE, Sink, lambda sealed: [Stored(0, sop=str(one)) for one in sealed])
    body = [*parts(1), *parts(2, kind=b"text/plain"), *parts(*range(3, 40)), *parts(40, kind=b"*")]
    storing.feed(b"".join(body) + b"--b--")
    found = storing.finish()
    assert [one.sop for one in found] == ["1", "", *(str(size) for size in range(3, 40)), ""]
    assert [one.status for one in found if not one.sop] == [stow.NOT_UNDERSTOOD] * 2


def test_what_was_whole_is_kept_when_the_body_breaks_off() -> None:
    sinks: list[Sink] = []
    kept: list[int] = []

    def begin() -> Sink:
        sinks.append(Sink())
        return sinks[-1]

    def keep(sealed: list[int]) -> list[Stored]:
        kept.extend(sealed)
        return [Stored(0) for _ in sealed]

    storing = Storing(TYPE, begin, keep)
    storing.feed(b"".join(parts(7, 8)) + b"--b\r\n\r\nhalf of one")
    with pytest.raises(Problem, match="cut short"):
        storing.finish()
    assert kept == []
    storing.close()
    assert kept == [7, 8]
    assert [one.abandoned for one in sinks] == [False, False, True]
