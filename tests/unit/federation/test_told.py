"""In how many messages hospitals are told what is sealed for each of them."""

from __future__ import annotations

import pytest

from medmesh_federation.steps import MOST_SEALED, together


@pytest.mark.parametrize(
    ("count", "each", "groups"), [(8, 400, 1), (64, 400, 7), (600, 400, 600), (3, 0, 1)], ids=["few", "many", "one each", "nothing sealed"]
)
def test_as_many_as_a_message_holds_and_everybody_once(count: int, each: int, groups: int) -> None:
    names = [f"h{place:03d}" for place in range(count)]
    shares = {one: dict.fromkeys(names, "x" * each) for one in names} if each else {}
    found = together(names, shares)
    assert [one for group in found for one in group] == names
    assert len(found) == groups
    for group in found:
        size = sum(len(name) + len(text) for one in group for name, text in shares.get(one, {}).items())
        assert size <= MOST_SEALED or len(group) == 1
