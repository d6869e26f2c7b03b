"""What hospitals of one process read once for all of them."""

from __future__ import annotations

from typing import Any

from medmesh.simulation.field import MOST_SHELVED, SHELVED, Shelf


async def test_a_small_piece_is_asked_for_once_and_a_large_one_by_each() -> None:
    asked: list[tuple[str, int]] = []

    async def ask(name: str, *, sha256: str, start: int, end: int) -> tuple[Any, bytes]:
        asked.append((sha256, start))
        return end, bytes(end - start)

    shelf = Shelf()
    for _ in range(3):
        assert await shelf.read(ask, "a", 0, 10) == (10, bytes(10))
    assert asked == [("a", 0)]
    for _ in range(2):
        assert len((await shelf.read(ask, "b", 0, SHELVED + 1))[1]) == SHELVED + 1
    assert asked == [("a", 0), ("b", 0), ("b", 0)]
    for place in range(MOST_SHELVED):
        await shelf.read(ask, "c", place, place + 1)
    await shelf.read(ask, "a", 0, 10)  # the oldest had to go
    assert asked[-1] == ("a", 0)
