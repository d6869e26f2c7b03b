"""In how many messages hospitals are told what is sealed for each of them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from medmesh.contracts.federation import RoundKind, RoundOpened, SecureAdvanced, SecurePhase
from medmesh.contracts.message import ObjectRef, encode, envelope
from medmesh.federated.secure.contributor import Contributor
from medmesh.federated.secure.session import Session
from medmesh.federated.secure.shamir import PRIME
from medmesh.security.signing import Signer
from medmesh_federation.steps import MOST_TOGETHER, together, told
from medmesh_federation.transcript import MOST_REVEALED, MOST_SEALED, MOST_SIGNED, sizes


@pytest.mark.parametrize("count", [3, 16, 64])
def test_what_is_sealed_for_hospitals_fits_into_the_messages_that_open_their_round(count: int) -> None:
    names = tuple(f"{place:02d}-{'x' * 60}" for place in range(count))
    base, deadline = ObjectRef(sha256="0" * 64, bytes=1), datetime.now(UTC)
    about = {"federation": "f" * 36, "round": 2, "attempt": 1, "plan_hash": "0" * 64, "base": base, "steps": 1, "seed": 1}
    event = RoundOpened(**about, kind=RoundKind.TRAIN, deadline=deadline, hospitals=names, changed={}, committed="0" * 64)
    shares = {one: dict.fromkeys(names, "x" * MOST_SEALED) for one in names}
    every = list(told(event, None, shares))
    for one in every:
        encode(envelope(one, source="federation", actor="t" * 1000))
    assert [name for one in every for name in one.hospitals] == list(names)


@pytest.mark.parametrize(
    ("count", "each", "groups"), [(8, 400, 1), (20, 400, 5), (64, 400, 64), (3, 0, 1)], ids=["few", "many", "one each", "nothing sealed"]
)
def test_as_many_as_a_message_holds_and_everybody_once(count: int, each: int, groups: int) -> None:
    names = [f"h{place:03d}" for place in range(count)]
    shares = {one: dict.fromkeys(names, "x" * each) for one in names} if each else {}
    found = together(names, shares)
    assert [one for group in found for one in group] == names
    assert len(found) == groups
    for group in found:
        size = sum(len(name) + len(text) for one in group for name, text in shares.get(one, {}).items())
        assert size <= MOST_TOGETHER or len(group) == 1


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


def test_what_the_longest_names_say_may_be_said_and_fits_into_one_message() -> None:
    names = tuple(f"{place:02d}-{'x' * 60}" for place in range(64))
    session = Session("f" * 36, "0" * 64, 999, 99, names, 43)
    one, now, signer = Contributor(session, names[0]), datetime.now(UTC), Signer.create(f"hospital:{names[0]}")
    shares = one.share({name: Contributor(session, name).public() for name in names[1:]} | {names[0]: one.public()})
    one.sealed = dict.fromkeys(names, "")
    sizes({"keys": one.advertise(signer, now), "whole": one.whole(signer, now, one.public())}, MOST_SIGNED)
    sizes({"survivors": one.survive(names, signer, now, lambda *claimed: claimed[-1])}, MOST_SIGNED)
    sizes(shares, MOST_SEALED)
    sizes({"share": f"{PRIME:x}"}, MOST_REVEALED)
    about = {"federation": "f" * 36, "round": 999, "attempt": 99, "plan_hash": "0" * 64}
    for phase, most in ((SecurePhase.SHARES, MOST_SIGNED), (SecurePhase.VECTORS, MOST_SEALED), (SecurePhase.REVEAL, MOST_SIGNED)):
        said = dict.fromkeys(names, "x" * (most - 2))
        encode(envelope(SecureAdvanced(**about, phase=phase, messages=said, hospitals=names), source="federation", actor="t" * 1000))
