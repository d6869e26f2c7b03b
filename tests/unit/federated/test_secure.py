"""Secure aggregation: the opened sum is the plain fixed-point sum bit by bit, and a coordinator that cheats learns no single update."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.rosters import roster_of
from tests.unit.federated.test_plan import plan

from medmesh.errors import Problem
from medmesh.federated import streams
from medmesh.federated.plan import canonical, explain, plan_hash
from medmesh.federated.secure import collector, shamir, vectors
from medmesh.federated.secure.contributor import Contributor, keys_of
from medmesh.federated.secure.session import Session
from medmesh.learning import weights
from medmesh.security.roster import Roster
from medmesh.security.signing import Signer
from medmesh.security.statements import Keys

BITS = 24
HOSPITALS = ("h1", "h2", "h3", "h4", "h5")


@dataclass
class World:
    """Hospitals with a trained model each, and the platform between them."""

    folder: Path
    signers: dict[str, Signer]
    roster: Roster
    threshold: int = 4
    claims: dict[str, dict[tuple[str, int], str]] = field(default_factory=dict)

    def session(self, attempt: int = 1) -> Session:
        return Session("f", "a" * 64, 1, attempt, HOSPITALS, self.threshold)

    def model(self, name: str) -> Path:
        path, generator = self.folder / f"{name}.model", np.random.default_rng(HOSPITALS.index(name))
        arrays = {"a": generator.normal(size=(37, 11)), "b": generator.normal(size=5).astype(np.float32), "n": np.arange(3)}
        weights.save(arrays, path)
        return path

    def samples(self, name: str) -> int:
        return 100 + 7 * HOSPITALS.index(name)

    def counts(self, name: str) -> list[int]:
        """What it evaluated, and one number below nothing."""
        place = HOSPITALS.index(name)
        return [5 * place, 40 - 5 * place, 0, 2**40 + place, -3 * place]

    def claim(self, name: str) -> Callable[[str, int, str], str]:
        return lambda federation, round_, digest: self.claims.setdefault(name, {}).setdefault((federation, round_), digest)

    def plain(self, names: Sequence[str]) -> list[int]:
        total = np.zeros(1 + 37 * 11 + 5 + 5, np.int64)
        for name in names:
            arrays = weights.load(self.model(name))
            numbers = np.concatenate([arrays["a"].ravel(), arrays["b"].astype(np.float64)])
            fixed = np.rint(numbers * self.samples(name) * 2**BITS).astype(np.int64)
            total += np.array([self.samples(name), *fixed, *self.counts(name)])
        return [int(number) for number in total]


@pytest.fixture
def world(private: Path) -> World:
    signers = {name: Signer.create(f"hospital:{name}") for name in HOSPITALS}
    return World(private, signers, roster_of(*signers.values()))


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Run:
    """A round of the protocol up to the masked vectors."""

    world: World
    parties: dict[str, Contributor]
    advertised: dict[str, str]
    vectors: dict[str, Path]

    def reveal(self, survivors: Sequence[str], speakers: Sequence[str] | None = None) -> dict[str, dict[str, str]]:
        signed = {n: self.parties[n].survive(survivors, self.world.signers[n], now(), self.world.claim(n)) for n in survivors}
        return {
            n: self.parties[n].reveal(self.world.roster, survivors, signed, now(), self.world.claim(n)).shares
            for n in (speakers or survivors)
        }

    def open(self, survivors: Sequence[str], revealed: dict[str, dict[str, str]]) -> list[int]:
        with self.sum(survivors, revealed) as total:
            return [int(number) for piece in total.numbers(0, total.length) for number in piece]

    def sum(self, survivors: Sequence[str], revealed: dict[str, dict[str, str]]) -> vectors.Sum:
        session = next(iter(self.parties.values())).session
        keys = keys_of(session, self.world.roster, self.advertised, now())
        masks = collector.corrections(session, keys, list(self.vectors), survivors, revealed)
        return vectors.Sum([self.vectors[name] for name in survivors], masks)


def shares(party: Contributor, roster: Roster, advertised: dict[str, str]) -> dict[str, str]:
    return party.share(keys_of(party.session, roster, advertised, now()))


def masked(
    world: World, names: Sequence[str] = HOSPITALS, attempt: int = 1, wrong: Mapping[str, Mapping[str, str]] | None = None, **said: int
) -> Run:
    """`wrong` is what a hospital seals for others instead of its shares."""
    parties = {name: Contributor(world.session(attempt), name) for name in names}
    advertised = {name: party.advertise(world.signers[name], now()) for name, party in parties.items()}
    sealed = {name: shares(party, world.roster, advertised) | dict((wrong or {}).get(name, {})) for name, party in parties.items()}
    made = {}
    for name, party in parties.items():
        masks = party.masks({sender: sealed[sender][name] for sender in names})
        made[name] = world.folder / f"{name}.{attempt}.vector"
        settings: dict[str, Any] = {"bits": BITS, "parties": len(HOSPITALS), "masks": masks, "beside": world.counts(name), **said}
        vectors.encode(world.model(name), world.samples(name), made[name], **settings)
        parties[name] = Contributor.restore(party.document())  # the node dies and comes back
    return Run(world, parties, advertised, made)


def code(excinfo: pytest.ExceptionInfo[Problem]) -> str:
    return excinfo.value.code


@pytest.mark.parametrize(("chunk", "piece"), [(64, 333), (1 << 19, 1 << 19)])
@pytest.mark.parametrize("dropped", [(), ("h1",), ("h3",), ("h5",)])
def test_the_opened_sum_is_the_plain_one_bit_by_bit(
    world: World, dropped: tuple[str, ...], chunk: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "CHUNK", chunk)
    monkeypatch.setattr(streams, "CHUNK_ELEMENTS", piece)
    run = masked(world)
    survivors = [name for name in HOSPITALS if name not in dropped]
    assert run.open(survivors, run.reveal(survivors)) == world.plain(survivors)
    base, out = world.model("h1"), world.folder / "out"
    with run.sum(survivors, run.reveal(survivors)) as total:
        assert vectors.decode(total, base, out, bits=BITS, beside=5) == sum(map(world.samples, survivors))
        assert total.last(5) == [sum(cells) for cells in zip(*map(world.counts, survivors), strict=True)]
    exact = sum(weights.load(world.model(n))["a"] * world.samples(n) for n in survivors) / sum(map(world.samples, survivors))
    np.testing.assert_allclose(weights.load(out)["a"], exact, rtol=0, atol=2**-BITS)
    np.testing.assert_array_equal(weights.load(out)["n"], np.arange(3))


def test_in_the_short_ring_the_opened_sum_is_the_plain_one_too_at_half_the_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums that pass 2^31 on the way, since masks do, come out whole."""
    monkeypatch.setattr(World, "counts", lambda self, name: [5 * HOSPITALS.index(name), 2**28, 0, 0, -(2**28) - HOSPITALS.index(name)])
    long = masked(world).vectors["h1"].stat().st_size
    monkeypatch.setattr("tests.unit.federated.test_secure.BITS", 16)
    run, survivors = masked(world, ring=32), ["h1", "h2", "h4", "h5"]
    assert run.vectors["h1"].stat().st_size < 0.6 * long
    assert run.open(survivors, run.reveal(survivors)) == world.plain(survivors)
    base, out = world.model("h1"), world.folder / "out"
    with run.sum(survivors, run.reveal(survivors)) as total:
        assert vectors.decode(total, base, out, bits=16, beside=5) == sum(map(world.samples, survivors))
        assert total.last(5) == [sum(cells) for cells in zip(*map(world.counts, survivors), strict=True)]
    exact = sum(weights.load(world.model(n))["a"] * world.samples(n) for n in survivors) / sum(map(world.samples, survivors))
    np.testing.assert_allclose(weights.load(out)["a"], exact, rtol=0, atol=2**-16)
    with pytest.raises(Problem) as mixed:
        vectors.Sum([run.vectors["h1"], masked(world, attempt=2).vectors["h2"]])
    assert code(mixed) == "weights.signature"


def test_a_plan_says_the_ring_and_one_of_before_keeps_its_hash() -> None:
    before = plan(secure={"threshold": 3}, min_participants=3)
    assert b'"secure":{"bits":24,"threshold":3}' in canonical(before), "as the first plans with secure sums were hashed"
    short = plan(secure={"threshold": 3, "ring": 32}, min_participants=3)
    assert plan_hash(short) != plan_hash(before)
    assert "32 bits" in str(explain(short, "en")) and "32 bits" not in str(explain(before, "en"))


def test_four_of_five_that_came_and_any_threshold_of_shares_open_it(world: World) -> None:
    run = masked(world, HOSPITALS[1:])
    assert run.open(HOSPITALS[1:], run.reveal(HOSPITALS[1:])) == world.plain(HOSPITALS[1:])


def test_a_hospital_that_dies_after_signing_does_not_hold_the_sum_up(world: World) -> None:
    run = masked(world)
    assert run.open(HOSPITALS, run.reveal(HOSPITALS, HOSPITALS[:4])) == world.plain(HOSPITALS)
    with pytest.raises(Problem) as few:
        run.open(HOSPITALS, {n: {} for n in HOSPITALS[:3]})
    assert code(few) == "secure.few"


def test_a_vector_alone_is_noise(world: World) -> None:
    run = masked(world)
    for name, path in run.vectors.items():
        bits = np.unpackbits(weights.load(path)[vectors.TENSOR].view(np.uint8))
        assert abs(bits.mean() - 0.5) < 0.02, name
        assert weights.load(path)[vectors.TENSOR][0] != world.samples(name), "the samples are masked too"
        assert not set(weights.load(path)[vectors.TENSOR][-5:]) & set(world.counts(name)), "and what was counted"


def test_retrying_with_one_site_fewer_opens_nothing(world: World) -> None:
    first = masked(world)
    first.reveal(HOSPITALS)
    fewer = HOSPITALS[:4]
    with pytest.raises(Problem) as same_attempt:
        first.reveal(fewer)
    again = masked(world, attempt=2)
    with pytest.raises(Problem) as next_attempt:
        again.reveal(fewer)
    assert code(same_attempt) == code(next_attempt) == "secure.opened"


def test_two_lists_shown_to_two_groups_open_at_most_one(world: World) -> None:
    run = masked(world)
    lists = [list(HOSPITALS), list(HOSPITALS[:4])]
    for split in combinations(HOSPITALS[:4], 2):
        world.claims.clear()
        signed: list[dict[str, str]] = [{}, {}]
        for name in HOSPITALS:
            which = 0 if name in split or name == "h5" else 1
            signed[which][name] = run.parties[name].survive(lists[which], world.signers[name], now(), world.claim(name))
        for which in (0, 1):
            for name in signed[which]:
                with pytest.raises(Problem) as few:
                    run.parties[name].reveal(world.roster, lists[which], signed[which], now(), world.claim(name))
                assert code(few) == "secure.few"


def whole(run: Run, following: Mapping[str, Contributor] | None = None) -> dict[str, str]:
    """The lists that go with the vectors, with keys for the round after where there are any."""
    keys = {name: party.public() for name, party in (following or {}).items()}
    return {name: party.whole(run.world.signers[name], now(), keys.get(name)) for name, party in run.parties.items()}


def test_a_sum_of_everybody_is_opened_by_the_lists_that_came_with_the_vectors(world: World) -> None:
    run = masked(world)
    signed = whole(run)
    revealed = {n: party.reveal(world.roster, None, signed, now(), world.claim(n)).shares for n, party in run.parties.items()}
    assert run.open(HOSPITALS, revealed) == world.plain(HOSPITALS)
    with pytest.raises(Problem) as fewer:
        run.reveal(HOSPITALS[:4])
    with pytest.raises(Problem) as again:
        masked(world, attempt=2).reveal(HOSPITALS)
    assert code(fewer) == code(again) == "secure.opened", "and no other sum of the round, in no attempt"


def test_the_next_round_is_prepared_with_keys_that_everybody_signed_with_its_list(world: World) -> None:
    """Its sum is the plain one too; where one gave no keys, or not everybody's list came, there are none."""
    run = masked(world)
    following = {name: Contributor(replace(world.session(), round=2), name) for name in HOSPITALS}
    signed = whole(run, following)

    def keys(name: str, lists: Mapping[str, str]) -> dict[str, Keys]:
        return run.parties[name].reveal(world.roster, None, lists, now(), world.claim(name)).following

    sealed = {name: party.share(keys(name, signed)) for name, party in following.items()}
    made = {}
    for name, party in following.items():
        made[name] = world.folder / f"{name}.second"
        settings: dict[str, Any] = {"bits": BITS, "parties": len(HOSPITALS), "beside": world.counts(name)}
        masks = party.masks({sender: sealed[sender][name] for sender in HOSPITALS})
        vectors.encode(world.model(name), world.samples(name), made[name], masks=masks, **settings)
    advertised = {name: party.advertise(world.signers[name], now()) for name, party in following.items()}
    second = Run(world, following, advertised, made)
    assert second.open(HOSPITALS[:4], second.reveal(HOSPITALS[:4])) == world.plain(HOSPITALS[:4])
    assert not keys("h1", {**signed, "h5": whole(run)["h5"]})
    assert not keys("h1", {name: signed[name] for name in HOSPITALS[:4]})
    with pytest.raises(Problem) as others:
        following["h1"].share(keys("h1", whole(run, {**following, "h5": Contributor(world.session(), "h5")})))
    assert code(others) == "secure.changed", "a second list of keys is refused"
    theirs = following["h5"].public().cipher
    with pytest.raises(Problem) as forged:
        keys("h1", {**signed, "h5": signed["h5"].replace(theirs, theirs[::-1])})
    assert code(forged) == "ledger.signature"


def test_until_it_is_opened_a_smaller_list_takes_its_place_and_then_it_stays_closed(world: World) -> None:
    run = masked(world)
    signed, fewer = whole(run), HOSPITALS[:4]
    assert run.open(fewer, run.reveal(fewer)) == world.plain(fewer)
    for name in fewer:
        with pytest.raises(Problem) as other:
            run.parties[name].reveal(world.roster, None, signed, now(), world.claim(name))
        assert code(other) == "secure.opened"
    # The only one that claimed no list gives one share of each, where four are needed.
    assert run.parties["h5"].reveal(world.roster, None, signed, now(), world.claim("h5"))


def test_a_list_signed_with_a_vector_counts_for_nothing_else(world: World) -> None:
    run = masked(world)
    signed = whole(run)
    with pytest.raises(Problem) as unclaimed:
        run.parties["h1"].reveal(world.roster, HOSPITALS, signed, now(), world.claim("h1"))
    claimed = {n: party.survive(HOSPITALS, world.signers[n], now(), world.claim(n)) for n, party in run.parties.items()}
    with pytest.raises(Problem) as whole_by_others:
        run.parties["h1"].reveal(world.roster, None, claimed, now(), world.claim("h1"))
    assert code(unclaimed) == code(whole_by_others) == "statement.kind"
    with pytest.raises(Problem) as few:
        run.parties["h1"].reveal(world.roster, None, {n: signed[n] for n in HOSPITALS[:3]}, now(), world.claim("h1"))
    assert code(few) == "secure.few"


def test_hospitals_that_were_given_different_shares_open_nothing_of_everybody(world: World) -> None:
    """A platform that passes some hospitals' shares to some only: whose list is another's is noticed before anything is given away."""
    parties = {name: Contributor(world.session(), name) for name in HOSPITALS}
    advertised = {name: party.advertise(world.signers[name], now()) for name, party in parties.items()}
    sealed = {name: shares(party, world.roster, advertised) for name, party in parties.items()}
    for name, party in parties.items():
        party.take({sender: sealed[sender][name] for sender in (HOSPITALS if name in ("h1", "h2", "h5") else HOSPITALS[:4])})
    signed = {name: party.whole(world.signers[name], now()) for name, party in parties.items()}
    for name in HOSPITALS[:4]:
        with pytest.raises(Problem) as other:
            parties[name].reveal(world.roster, None, {n: signed[n] for n in HOSPITALS[:4]}, now(), world.claim(name))
        assert code(other) == "secure.changed"
    assert not world.claims


NOTHING = base64.b64encode(bytes(100)).decode()


@pytest.mark.parametrize("said", [NOTHING, "", "*", base64.b64encode(b"x").decode()])
def test_who_is_sent_shares_that_do_not_open_is_not_to_blame_and_the_sum_is_opened(world: World, said: str) -> None:
    run = masked(world, wrong={"h3": {"h1": said}})
    revealed = run.reveal(HOSPITALS)
    assert [name for name, share in revealed["h1"].items() if not share] == ["h3"], "what is asked for all the same"
    assert run.open(HOSPITALS, revealed) == world.plain(HOSPITALS)


def test_who_can_open_too_few_shares_or_sealed_too_many_wrongly_opens_nothing(world: World) -> None:
    with pytest.raises(Problem) as nothing:
        masked(world, wrong={"h3": {"h1": NOTHING}, "h2": {"h1": NOTHING}})
    assert (code(nothing), nothing.value.params) == ("secure.sealed", {"hospital": "h2"})
    run = masked(world, wrong={"h3": {"h1": NOTHING, "h2": NOTHING}})
    with pytest.raises(Problem) as closed:
        run.open(HOSPITALS, run.reveal(HOSPITALS))
    assert code(closed) == "secure.few"


def test_sybils_are_strangers_even_with_keys_in_the_roster(world: World) -> None:
    sybil = Signer.create("hospital:sybil")
    roster = roster_of(*world.signers.values(), sybil)
    parties = {name: Contributor(world.session(), name) for name in HOSPITALS}
    advertised = {name: party.advertise(world.signers[name], now()) for name, party in parties.items()}
    wider = Session("f", "a" * 64, 1, 1, (*HOSPITALS, "sybil"), 5)
    advertised["sybil"] = Contributor(wider, "sybil").advertise(sybil, now())
    with pytest.raises(Problem) as refused:
        shares(parties["h1"], roster, advertised)
    assert code(refused) == "secure.stranger"
    # Nor does the platform speak for a hospital: keys signed by another do not count as its own.
    forged = Contributor(world.session(), "h2").advertise(sybil, now())
    with pytest.raises(Problem) as forgery:
        shares(parties["h1"], roster, {name: advertised[name] for name in HOSPITALS} | {"h2": forged})
    assert code(forgery) == "roster.unknown"


def test_dropping_all_but_two_opens_nothing(world: World) -> None:
    run = masked(world)
    for count in (1, 2, 3):
        with pytest.raises(Problem) as few:
            run.parties["h1"].survive(HOSPITALS[:count], world.signers["h1"], now(), world.claim("h1"))
        assert code(few) == "secure.few"
    assert not world.claims.get("h1"), "a list that was refused does not use the round up"
    parties = {name: Contributor(world.session(), name) for name in HOSPITALS[:2]}
    advertised = {name: party.advertise(world.signers[name], now()) for name, party in parties.items()}
    with pytest.raises(Problem) as early:
        shares(parties["h1"], world.roster, advertised)
    assert code(early) == "secure.few"


@pytest.mark.parametrize(
    ("contributors", "threshold"), [(("a", "b"), 2), (("a", "b", "c"), 2), (HOSPITALS, 3), (HOSPITALS, 6), (("b", "a", "c"), 3)]
)
def test_a_session_with_too_few_is_none(contributors: tuple[str, ...], threshold: int) -> None:
    with pytest.raises(Problem) as refused:
        Session("f", "a" * 64, 1, 1, contributors, threshold)
    assert code(refused) == "secure.contributors"


def test_the_same_step_with_other_content_is_refused(world: World) -> None:
    run = masked(world)
    party = run.parties["h1"]
    others = {name: Contributor(world.session(), name).advertise(world.signers[name], now()) for name in HOSPITALS[1:]}
    with pytest.raises(Problem) as keys:
        shares(party, world.roster, {**others, "h1": run.advertised["h1"]})
    with pytest.raises(Problem) as fewer:
        party.masks({name: party.sealed[name] for name in HOSPITALS[:4]})
    assert code(keys) == code(fewer) == "secure.changed"


def test_keys_of_another_attempt_are_refused(world: World) -> None:
    party, old = Contributor(world.session(2), "h1"), masked(world)
    advertised = {**old.advertised, "h1": party.advertise(world.signers["h1"], now())}
    with pytest.raises(Problem) as replayed:
        shares(party, world.roster, advertised)
    assert code(replayed) == "statement.other"


@pytest.mark.parametrize("share", ["1", "no number", f"{shamir.PRIME - 1:x}"])
def test_a_false_share_is_noticed_and_holds_nothing_up_where_there_are_enough(world: World, share: str) -> None:
    run = masked(world)
    for liar in HOSPITALS:
        revealed = run.reveal(HOSPITALS)
        for name in revealed[liar]:
            revealed[liar][name] = share
        assert run.open(HOSPITALS, revealed) == world.plain(HOSPITALS)
        with pytest.raises(Problem) as false:  # four are as many as it takes: none may lie
            run.open(HOSPITALS, {name: given for name, given in revealed.items() if name != HOSPITALS[HOSPITALS.index(liar) - 1]})
        assert code(false) == ("secure.few" if share == "no number" else "secure.share")


def test_a_false_share_holds_nothing_up_where_a_hospital_dropped_out(world: World) -> None:
    run, survivors = masked(world), HOSPITALS[:4]
    revealed = run.reveal(survivors)
    revealed["h2"]["h5"] = "1"
    with pytest.raises(Problem) as false:
        run.open(survivors, revealed)
    assert code(false) == "secure.share", "and where it does, it is said"


def test_shamir_against_published_shares() -> None:
    """The example of the encyclopaedia: 1234 + 166 x + 94 x^2 over GF(1613)."""
    drawn = iter([166, 94])
    shares = shamir.split(1234, 3, [1, 2, 3, 4, 5, 6], 1613, lambda _: next(drawn))
    assert shares == {1: 1494, 2: 329, 3: 965, 4: 176, 5: 1188, 6: 775}
    for three in combinations(shares.items(), 3):
        assert shamir.combine(dict(three), 1613) == 1234


def test_shamir_over_the_field_in_use() -> None:
    secret = 2**256 - 1
    shares = shamir.split(secret, 4, [1, 2, 3, 4, 5])
    for four in combinations(shares.items(), 4):
        assert shamir.combine(dict(four)) == secret
    assert all(shamir.combine(dict(three)) != secret for three in combinations(shares.items(), 3))
