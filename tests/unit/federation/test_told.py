"""In how many messages hospitals are told what is sealed for each of them."""

from __future__ import annotations

import pytest

from medmesh.contracts.federation import RoundOpened
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


def test_each_reads_what_is_sealed_for_it_and_nothing_of_anybody_else() -> None:
    document = {
        "type": RoundOpened.subject(),
        "data": {"hospitals": ["a", "b", "c"], "round": 3, "sealed": {"a": {"b": "x"}, "b": {"a": "y"}}},
    }
    first, second, third = RoundOpened.parted(document, ["a", "b", "c"])
    common = {"hospitals": ["a", "b", "c"], "round": 3}
    assert first["data"] == {**common, "shares": {"b": "x"}} and second["data"] == {**common, "shares": {"a": "y"}}
    assert third["data"] == common, "nothing is sealed for it"
    assert document["data"]["sealed"], "what was told stays as it was"


@pytest.mark.parametrize("sealed", [{}, None])
def test_where_nothing_is_sealed_all_read_the_same(sealed: dict[str, str] | None) -> None:
    document = {"type": RoundOpened.subject(), "data": {"round": 3, **({} if sealed is None else {"sealed": sealed})}}
    assert RoundOpened.parted(document, ["a", "b"]) == [{"type": RoundOpened.subject(), "data": {"round": 3}}]
