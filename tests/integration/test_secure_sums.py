"""The coordinator of secure sums on real servers, with pretended hospitals that speak the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pytest
from tests.federations import alive, opened, view
from tests.platform import Platform
from tests.secure_parties import HOSPITALS, SAMPLES, VALUES, Parties, advanced, fail, say, start, summed, told

from medmesh.client.results import cross_site, curve, kept_round
from medmesh.contracts.federation import (
    FederationCompleted,
    FederationFailed,
    FederationView,
    GetFederation,
    RoundCommitted,
    RoundKind,
    RoundVoided,
    SecureAdvanced,
    SecurePhase,
    SubmitEvaluation,
    WithdrawFromFederation,
)
from medmesh.contracts.plan import EarlyStopping
from medmesh.federated.secure.contributor import Contributor
from medmesh.learning import weights
from medmesh.store.objects.port import load


async def test_a_round_after_one_that_nobody_missed_begins_with_its_vectors(p: Platform) -> None:
    await start(p, rounds=2)
    first = Parties(p, (await opened(p, 1)).data)
    second = Parties(p, first.round.model_copy(update={"round": 2}))
    await first.vectors(second)
    await first.open(second)
    told = (await opened(p, 2)).data
    assert told.everybody == HOSPITALS and not told.shares
    for name in HOSPITALS:
        assert set(told.sealed[name]) == set(HOSPITALS)
        second.sealed[name] = told.sealed[name]
    unsaid = Parties(p, second.round.model_copy(update={"round": 3}))
    for name in HOSPITALS:
        done = await second.vector(name, ahead=unsaid)
        assert done.succeeded, done.problem
    await p.wait(SecureAdvanced, lambda e: e.data.round == 2 and e.data.phase == "reveal", timeout=30)
    for name, party in second.all.items():
        found = party.reveal(second.roster, None, (await advanced(p, 2))[-1].messages, datetime.now(UTC), lambda *a: a[-1])
        assert (await say(p, second.round, name, SecurePhase.REVEAL, found.shares)).succeeded
    committed = (await p.wait(RoundCommitted, lambda e: e.data.round == 2, timeout=30)).data
    target = p.folder / "committed"
    target.write_bytes(await load(await p.stores.holding(committed.model.sha256), committed.model))
    exact = sum((VALUES[n] + 1) * SAMPLES[n] for n in HOSPITALS) / sum(SAMPLES.values())
    np.testing.assert_allclose(weights.load(target)["weight"], exact, rtol=1e-6)
    steps = [r["detail"] for r in await p.audited("federation") if r["sub"] == "federation.secure" and r["act"] == "U"]
    assert [(one["round"], one["phase"]) for one in steps] == [(1, "shares"), (1, "vectors"), (1, "reveal"), (2, "reveal")]


async def test_where_one_did_not_seal_ahead_the_next_round_begins_with_its_keys(p: Platform) -> None:
    await start(p, rounds=2)
    first = Parties(p, (await opened(p, 1)).data)
    second = Parties(p, first.round.model_copy(update={"round": 2}))
    await first.vectors(second)
    await first.open(second, HOSPITALS[1:])
    round_ = (await opened(p, 2)).data
    assert round_.hospitals == HOSPITALS and not round_.sealed
    again = Parties(p, round_)
    await again.keys()  # what was said ahead is forgotten: other keys count
    await again.shares()
    for name in HOSPITALS:
        assert (await again.vector(name)).succeeded
    await again.reveal(HOSPITALS, await again.survive(HOSPITALS))
    await p.wait(RoundCommitted, lambda e: e.data.round == 2, timeout=30)


async def test_a_list_without_keys_for_the_round_that_follows_is_refused(p: Platform) -> None:
    await start(p, rounds=2)
    first = Parties(p, (await opened(p, 1)).data)
    await first.keys()
    await first.shares()
    renji = first.all["renji"]
    renji.whole = lambda signer, now, following=None: Contributor.whole(renji, signer, now)  # type: ignore[method-assign]
    done = await first.vector("renji", ahead=first)
    assert not done.succeeded and done.problem and done.problem["code"] == "secure.changed"


async def test_shares_that_were_sealed_for_keys_that_nobody_was_told_prepare_nothing(p: Platform) -> None:
    await start(p, rounds=2)
    first = Parties(p, (await opened(p, 1)).data)
    await first.vectors()
    survivors = await first.survive(HOSPITALS)
    await first.reveal_and_seal(survivors, Parties(p, first.round.model_copy(update={"round": 2})))
    assert not (await opened(p, 2)).data.sealed
    await Parties(p, (await opened(p, 2)).data).keys()


async def test_models_are_evaluated_by_sums_of_counts_that_end_the_training(p: Platform) -> None:
    """Each table is exactly the plain sum over those whose vectors arrived; no answer and no row has one hospital's."""
    stop = EarlyStopping(patience=1, min_delta="0.01")
    federation = await start(p, rounds=5, evaluate_every=1, stop=stop, small_cell=5)

    def table(right: int, name: str) -> list[int]:
        more = 5 * HOSPITALS.index(name)  # in which they differ
        return [right, 50 - right + more, 50 - right, right + more]

    def plain(right: int, names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        a, b, c, d = (sum(cells) for cells in zip(*(table(right, name) for name in names), strict=True))
        return ((a, b), (c, d))

    for number, (right, lost) in enumerate(((20, ()), (40, ("renji",)), (35, ())), start=1):
        round_ = (await opened(p, number)).data
        loss = {name: round(VALUES[name] * SAMPLES[name] * 2**24) for name in HOSPITALS}
        if number == 1:
            unmasked = SubmitEvaluation(federation=federation, round=1, attempt=1, results=())
            assert (await p.send(unmasked, p.hospital("renji"))).problem["code"] == "federation.evaluation"
        await summed(p, round_, {name: [*table(right, name), loss[name]] for name in HOSPITALS}, lost)
        left = [name for name in HOSPITALS if name not in lost]
        await p.wait(RoundCommitted, lambda e, number=number: e.data.round == number, timeout=30)
        seen = next(one.sum for one in (await view(p, federation)).rounds if (one.round, one.state) == (number, "committed"))
        assert seen is not None and seen.counts == plain(right, left)
        assert seen.samples == sum(SAMPLES[name] for name in left)
        assert seen.loss == sum(loss[name] for name in left) / 2**24 / seen.samples
    last = (await opened(p, 6, kind=RoundKind.EVALUATE)).data
    assert [model.name for model in last.models] == ["round-3", "round-1"], "two of five were not begun: the third was no better"
    await summed(p, last, {name: [*table(35, name), *table(45, name)] for name in HOSPITALS})
    await p.wait(FederationCompleted, lambda e: e.data.federation == federation, timeout=30)
    seen = await view(p, federation)
    assert [(point.round, point.samples) for point in curve(seen)] == [(0, 460), (1, 350), (2, 460)]
    assert kept_round(seen) == 1
    assert {(one.name, one.hospital): one.counts for one in seen.evaluation} == {
        ("round-3", ""): plain(35, HOSPITALS),
        ("federated", ""): plain(45, HOSPITALS),
    }
    assert [cell.hospital for cell in cross_site(seen)] == ["", ""]
    assert not any(answer.counts or answer.metrics for one in seen.rounds for answer in one.answers)
    theirs = await p.ask(GetFederation(federation=federation), FederationView, p.hospital("renji"))
    assert not theirs.evaluation and not any(one.sum for one in theirs.rounds), "less its own part it would be few hospitals'"


@pytest.mark.parametrize(("dropped", "wrong"), [((), ()), (("renji",), ()), ((), (("huashan", "renji"),))])
async def test_the_committed_model_is_the_mean_of_those_whose_vectors_arrived(
    p: Platform, dropped: tuple[str, ...], wrong: tuple[tuple[str, str], ...]
) -> None:
    """Also where one sealed for another what does not open: who can do nothing for it takes part all the same."""
    await start(p)
    parties = Parties(p, (await opened(p, 1)).data)
    await parties.keys()
    await parties.shares(wrong)
    for name in HOSPITALS:
        await alive(p, *HOSPITALS)
        if name in dropped:
            await fail(p, parties.round, name)
        else:
            done = await parties.vector(name)
            assert done.succeeded, done.problem
    left = [name for name in HOSPITALS if name not in dropped]
    survivors = await parties.survive(left)
    assert survivors == left
    await parties.reveal(left, survivors)
    committed = (await p.wait(RoundCommitted, timeout=30)).data
    assert committed.participants == tuple(left)
    stored = await p.stores.holding(committed.model.sha256)
    target = p.folder / "committed"
    target.write_bytes(await load(stored, committed.model))
    exact = sum(VALUES[n] * SAMPLES[n] for n in left) / sum(SAMPLES[n] for n in left)
    np.testing.assert_allclose(weights.load(target)["weight"], exact, rtol=1e-6)


async def test_a_hospital_that_leaves_while_the_sum_is_opened_stays_in_it_and_keeps_nobody_from_opening_it(p: Platform) -> None:
    """Its vector cannot be taken out of what the others signed; without it the rest could not be opened either."""
    federation = await start(p)
    parties = Parties(p, (await opened(p, 1)).data)
    await parties.keys()
    await parties.shares()
    for name in HOSPITALS:
        await alive(p, *HOSPITALS)
        assert (await parties.vector(name)).succeeded
    survivors = await parties.survive(HOSPITALS)
    gone, *left = HOSPITALS
    assert (await p.send(WithdrawFromFederation(federation=federation), p.hospital(gone))).succeeded
    await parties.reveal(left, survivors)
    committed = (await p.wait(RoundCommitted, timeout=30)).data
    assert committed.participants == tuple(HOSPITALS)
    assert (await say(p, parties.round, gone, SecurePhase.REVEAL, {})).problem["code"] == "federation.not_taking_part"


async def test_what_is_not_asked_for_counts_for_nothing(p: Platform) -> None:
    await start(p)
    round_ = (await opened(p, 1)).data
    parties = Parties(p, round_)
    forged = parties.all["renji"].advertise(parties.signer("xiehe"), datetime.now(UTC))
    refused = await say(p, round_, "renji", SecurePhase.KEYS, {"renji": forged})
    assert not refused.succeeded and refused.problem and refused.problem["code"] == "roster.unknown"
    early = await say(p, round_, "renji", SecurePhase.REVEAL, {"xiehe": "1"})
    assert early.succeeded and early.result == {"late": True}
    await parties.keys()
    again = parties.all["renji"].advertise(parties.signer("renji"), datetime.now(UTC))
    assert (await say(p, round_, "renji", SecurePhase.KEYS, {"renji": again})).result == {"late": True}


async def test_a_sum_that_too_few_open_is_skipped_and_never_tried_again_and_the_next_round_goes_on(p: Platform) -> None:
    federation = await start(p, rounds=2, round_deadline_seconds=20, lease_seconds=8)

    async def living() -> None:
        while True:
            await alive(p, *HOSPITALS)
            await asyncio.sleep(1)

    heart = asyncio.create_task(living())
    first = (await opened(p, 1)).data
    parties = Parties(p, first)
    await parties.vectors()
    await told(p, SecurePhase.SURVIVORS, "renji")
    voided = (await p.wait(RoundVoided, timeout=60)).data
    assert (voided.round, voided.skipped) == (1, True)
    second = (await opened(p, 2)).data
    assert second.attempt == 1 and second.base == first.base
    again = Parties(p, second)
    await again.vectors()
    survivors = await again.survive(HOSPITALS)
    await again.reveal(HOSPITALS, survivors)
    completed = (await p.wait(FederationCompleted, lambda e: e.data.federation == federation, timeout=30)).data
    heart.cancel()
    assert completed.rounds == 2, "the round whose model it is"
    seen = await view(p, federation)
    assert (seen.state, seen.failure) == ("completed", "secure.unopened")
    assert [(one.round, one.state) for one in seen.rounds] == [(1, "skipped"), (2, "committed")]
    voids = [(r["detail"]["round"], r["why"]) for r in await p.audited("federation") if r["sub"] == "federation.void"]
    assert voids == [(1, "secure.unopened")]
    steps = [r["detail"] for r in await p.audited("federation") if r["sub"] == "federation.secure" and r["act"] == "U"]
    phases = ["shares", "vectors", "survivors", "reveal"]
    assert {(one["round"], one["phase"]): one["parties"] for one in steps} == {
        **{(1, phase): 4 for phase in phases[:3]},
        **{(2, phase): 4 for phase in phases},
    }


async def test_a_federation_whose_only_sum_stays_closed_fails_by_its_name(p: Platform) -> None:
    federation = await start(p, round_deadline_seconds=20, lease_seconds=8)
    parties = Parties(p, (await opened(p, 1)).data)
    for step in (parties.keys, parties.shares):
        await alive(p, *HOSPITALS)
        await step()
    for name in HOSPITALS:
        await alive(p, *HOSPITALS)
        await parties.vector(name)
    await told(p, SecurePhase.SURVIVORS, "renji")
    failed = (await p.wait(FederationFailed, lambda e: e.data.federation == federation, timeout=60)).data
    assert failed.code == "secure.unopened"
