"""An attempt that becomes void and is tried again, together with whatever else a plan may have: nothing that was given to it counts, and
what it could have spent is spent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import update
from tests.federations import alive, opened, opened_each, submit, view
from tests.integration.test_algorithms import read
from tests.integration.test_evaluation import right
from tests.integration.test_privacy import model_of
from tests.integration.test_rollback import value_of
from tests.integration.test_rollback_combined import THREE, TWO, Going
from tests.platform import Platform, platform

from medmesh.client.results import cross_site, curve, kept_round
from medmesh.contracts.federation import Confusion, RoundCommitted, RoundKind, RoundOpened, RoundVoided, SubmitEvaluation, SubmitUpdate
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import EarlyStopping
from medmesh.contracts.privacy import Privacy
from medmesh.embedded.testing import RunningServers
from medmesh.federated.chain import link, undone_link
from medmesh.federated.privacy.budget import spent
from medmesh.federated.privacy.clipping import WITHIN
from medmesh.federated.undoing import proven
from medmesh.learning import weights
from medmesh.store.objects.port import file_digest
from medmesh_federation.service import SERVICE
from medmesh_federation.tables import rounds


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    async with platform(servers, private, SERVICE, settings={"federation": {"tick_seconds": 0.1, "states_kept": 4}}) as made:
        yield made


async def over(p: Platform, one: RoundOpened) -> None:
    """Its deadline is now."""
    async with p.runtimes["federation"].unit() as uow:
        this = (rounds.c.federation == one.federation) & (rounds.c.round == one.round) & (rounds.c.attempt == one.attempt)
        await uow.execute(update(rounds).where(this).values(deadline=uow.now))


async def voided(p: Platform, one: RoundOpened) -> RoundOpened:
    """The next attempt at a round to which too few have answered."""
    await over(p, one)
    await p.wait(RoundVoided, lambda e: (e.data.round, e.data.attempt) == (one.round, one.attempt), timeout=30)
    return (await opened(p, one.round, one.attempt + 1)).data


async def recorded(p: Platform, verb: str, *fields: str) -> list[tuple[Any, ...]]:
    return [tuple(r["detail"].get(field) for field in fields) for r in await p.audited("federation") if r["sub"] == verb]


async def counted(p: Platform, one: RoundOpened, hospital: str, value: float, within: float) -> None:
    """An update that is all `value`, and whether it was within the norm."""
    path = p.folder / f"counted-{hospital}-{one.round}-{one.attempt}"
    weights.save(
        {"weight": np.full((64, 2), value, np.float32), "bias": np.full(2, value, np.float32), WITHIN.name: np.array([within])}, path
    )
    about = {"federation": one.federation, "round": one.round, "attempt": one.attempt}
    ref = await p.stores.scratch.put_file(path, file_digest(path)[0])
    done = await p.send(SubmitUpdate(**about, update=ref, samples=1), p.hospital(hospital))
    assert done.succeeded, done.problem


async def test_the_ledger_has_every_attempt_and_model_norm_and_noise_are_of_the_one_that_counts(p: Platform) -> None:
    privacy = Privacy(unit="hospital", epsilon="900", delta="1e-5", clip="3", noise="0.1", quantile="0.5")
    going = await Going.start(p, TWO, rounds=1, privacy=privacy, baseline=False)
    first = await going.round(1)
    await counted(p, first, "huashan", 9.0, 0.0)
    second = await voided(p, first)
    assert second.clip == first.clip == "3", "of an attempt that is void nothing is learned"
    await counted(p, first, "renji", 9.0, 0.0)  # and what comes for it afterwards counts no more
    for hospital in TWO:
        await counted(p, second, hospital, 0.5, 1.0)
    committed = await going.committed(1)
    assert committed.attempt == 2
    noise = np.concatenate([(array - 0.5).ravel() for array in (await model_of(p, committed)).values()])
    assert abs(float(noise.mean())) < 0.1, "9.0 is in no model"
    assert np.std(noise) == pytest.approx(0.1 * 3 / 2, rel=0.3), "for the two of the second attempt"
    seen = await view(p, going.federation)
    assert seen.privacy is not None
    assert (seen.privacy.attempts, seen.privacy.epsilon) == (2, pytest.approx(spent(seen.plan, 2), abs=1e-6))
    ledger = await recorded(p, "federation.privacy", "round", "epsilon")
    assert ledger == [(1, f"{spent(seen.plan, n):.6f}") for n in (1, 2)]


async def test_counts_of_a_void_attempt_stop_no_training_choose_no_model_and_are_shown_nowhere(p: Platform) -> None:
    """Patience 1: by what was said in void attempts training would end at once, and the older model be kept."""
    stop = EarlyStopping(patience=1, min_delta="0.01")
    going = await Going.start(p, TWO, rounds=2, evaluate_every=1, stop=stop)
    await going.train(1, 1.0, counts=right(5))
    two = await going.round(2)
    assert (await submit(p, two, "huashan", 9.0, counts=right(1))).succeeded
    assert (await voided(p, two)).attempt == 2
    await going.train(2, 2.0, attempt=2, counts=right(7))

    async def evaluated(one: RoundOpened, hospital: str, **of_ten: int) -> None:
        results = tuple(Confusion(model=model.weights.sha256, counts=right(of_ten[model.name])) for model in one.models)
        about = {"federation": one.federation, "round": one.round, "attempt": one.attempt}
        assert (await p.send(SubmitEvaluation(**about, results=results), p.hospital(hospital))).succeeded

    last = (await opened(p, 3, kind=RoundKind.EVALUATE)).data
    await evaluated(last, "huashan", **{"round-2": 0, "round-1": 10})
    await alive(p, *TWO)
    again = await voided(p, last)
    for hospital, of_ten in (("huashan", 9), ("renji", 8)):
        await evaluated(again, hospital, **{"round-2": of_ten, "round-1": 7})
    done = await going.completed()
    assert done.model == (await going.committed(2)).model
    seen = await view(p, going.federation)
    assert kept_round(seen) == 2
    assert [(point.round, point.value) for point in curve(seen)] == [(0, 0.5), (1, 0.7)]
    shown = {(cell.model, cell.hospital): cell.value for cell in cross_site(seen)}
    assert shown["federated", "huashan"] == 0.9
    assert shown["federated", ""] == 0.85
    assert [(one.hospital, one.name) for one in seen.evaluation].count(("huashan", "federated")) == 1


async def test_after_going_back_each_attempt_until_one_counts_proves_it_and_its_answers_alone_make_the_model(p: Platform) -> None:
    going = await Going.start(p, THREE, rounds=3, baseline=False)

    async def by_two(one: RoundOpened, value: float) -> RoundCommitted:
        for hospital in TWO:
            assert (await submit(p, one, hospital, value)).succeeded
        await over(p, one)
        return await going.committed(one.round)

    first = await by_two(await going.round(1), 1.0)
    second = await by_two(await going.round(2), 2.0)
    await going.round(3)
    await going.back(1, first.model.sha256)
    attempts = [await going.round(3, 2)]
    assert (await submit(p, attempts[0], "tongji", 9.0)).succeeded
    for _ in range(2):
        attempts.append(await voided(p, attempts[-1]))
    roster = p.rosters.book.believed().roster
    for one in attempts:
        assert (one.base, one.undoing is not None) == (first.model, True), one.attempt
        assert proven(one, first.model.sha256, p.trust.governance, roster).id == "back-to-1"
    back = undone_link(second.chain, 1, first.model.sha256, "back-to-1")
    assert [(len(one.links), one.committed) for one in attempts] == [(1, back), (0, back), (0, back)], "the way back is one link, told once"
    opened_one_after_the_other = [(one.previous, one.chain) for one in (await going.round(3), *attempts)]
    assert all(before[1] == after[0] for before, after in pairwise(opened_one_after_the_other))
    third = await by_two(attempts[-1], 3.0)
    assert (third.attempt, await value_of(p, third.model)) == (4, 3.0)
    assert third.chain == link(back, 3, third.kind, third.model.sha256, third.state)
    done = await going.completed()
    assert (done.rounds, done.undone, done.contributors) == (3, (2,), TWO), "what tongji gave was for an attempt that is void"
    voids = await recorded(p, "federation.void", "round")
    assert voids == [(3,), (3,)], "that which was under way when people went back is told with that"


async def test_models_for_single_hospitals_stay_those_of_before_the_void_attempt_also_after_going_back(p: Platform) -> None:
    going = await Going.start(p, THREE, rounds=4, algorithm="fedamp", parameters={"sigma": "1000"}, baseline=False)

    async def told(number: int, attempt: int = 1) -> dict[str, ObjectRef | None]:
        return {hospital: one.personal for hospital, one in (await opened_each(p, number, attempt)).items()}

    async def train(number: int, attempt: int, who: tuple[str, ...], shift: float = 0.0) -> None:
        one = await going.round(number, attempt)
        for place, hospital in enumerate(who):
            assert (await submit(p, one, hospital, shift + number + 0.1 * place)).succeeded

    await train(1, 1, THREE)
    then = await told(2)
    assert None not in then.values()
    await train(2, 1, THREE, shift=5.0)
    assert await told(3) != then
    await going.back(1, (await going.committed(1)).model.sha256)
    assert await told(3, 2) == then
    await train(3, 2, ("tongji",), shift=90.0)
    await voided(p, await going.round(3, 2))
    assert await told(3, 3) == then, "nothing that was given to the void attempt is in anybody's"
    await train(3, 3, TWO)
    await over(p, await going.round(3, 3))
    last = await told(4)
    made = {hospital: float((await read(p, ref))["bias"][0]) for hospital, ref in last.items() if ref}
    # Of what each gave last where it counts: 3 and 3.1 in round 3, and 1.2 in round 1.
    assert made["tongji"] < made["huashan"] < made["renji"] <= 3.1
    assert made["tongji"] >= 1.2
