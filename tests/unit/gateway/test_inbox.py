"""What an open stream is handed: nothing twice, nothing out of its order, and nothing across a gap."""

from __future__ import annotations

import os

import pytest

from medmesh.store.objects.port import PART
from medmesh_gateway.inbox import PAGE, Ear, Fact, written


@pytest.mark.parametrize(
    ("handed", "after", "found"),
    [
        ([5, 6], 4, [5, 6]),
        ([3, 4, 5], 4, [5]),
        ([6], 4, []),
        ([6, 5], 4, []),
        ([5, 7], 4, []),
        ([], 4, []),
        (range(5, 5 + PAGE), 4, list(range(5, 5 + PAGE))),
        (range(5, 6 + PAGE), 4, []),
    ],
)
async def test_what_follows_without_a_gap(handed: list[int], after: int, found: list[int]) -> None:
    ear = Ear()
    for cursor in handed:
        ear.hand(Fact(cursor, "x", b""))
    assert ear.bell.is_set() == bool(handed)
    assert [fact.cursor for fact in ear.after(after)] == found
    assert [fact.cursor for fact in ear.after(found[-1] if found else after)] == [], "nothing twice"


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3 * PART + 5])
def test_a_fact_is_one_event_in_parts_that_are_not_large(size: int) -> None:
    enclosed = os.urandom(size).hex().encode()[:size]
    parts = written(Fact(7, "x", b"{}", enclosed))
    along = b"object: " + enclosed + b"\n" if enclosed else b""
    assert b"".join(parts) == b"id: 7\nevent: x\n" + along + b"data: {}\n\n"
    assert max(map(len, parts)) < PART + 100
