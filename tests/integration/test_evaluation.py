"""Evaluation while training, early stopping, and what people see of it, on real servers with pretended hospitals."""

from __future__ import annotations

from typing import Any

import pytest
from tests.federations import alive, opened, start, submit, view
from tests.platform import Platform

from medmesh.client.results import cross_site, curve, kept_round
from medmesh.contracts.federation import (
    Confusion,
    FederationCompleted,
    FederationView,
    GetFederation,
    RoundCommitted,
    RoundKind,
    RoundOpened,
    SubmitEvaluation,
)
from medmesh.contracts.plan import EarlyStopping

TWO = ("huashan", "renji")


def right(of_ten: int) -> tuple[tuple[int, ...], ...]:
    """A model that gets so many of ten right in either class."""
    return ((of_ten, 10 - of_ten), (10 - of_ten, of_ten))


async def train(p: Platform, number: int, value: float, *, base: int | None) -> RoundOpened:
    """Everybody trains to `value`, and says how the model did that the round began with."""
    round_ = (await opened(p, number)).data
    for hospital in TWO:
        beside: dict[str, Any] = {} if base is None else {"counts": right(base)}
        done = await submit(p, round_, hospital, value, milliseconds={"train": 1500, "send": 20}, **beside)
        assert done.succeeded, done.problem
    await alive(p, *TWO)
    return round_


async def evaluated(p: Platform, number: int, attempt: int = 1, **of_ten: int) -> RoundOpened:
    round_ = (await opened(p, number, attempt, kind=RoundKind.EVALUATE)).data
    assert {model.name for model in round_.models} == set(of_ten)
    results = tuple(Confusion(model=model.weights.sha256, counts=right(of_ten[model.name])) for model in round_.models)
    for hospital in TWO:
        about = {"federation": round_.federation, "round": round_.round, "attempt": round_.attempt}
        assert (await p.send(SubmitEvaluation(**about, results=results), p.hospital(hospital))).succeeded
    return round_


async def test_training_ends_early_and_the_best_model_is_the_federations(p: Platform) -> None:
    stop = EarlyStopping(patience=2, min_delta="0.01")
    federation = await start(p, TWO, rounds=9, evaluate_every=1, stop=stop)
    for number, base in enumerate((5, 7, 9, 8, 8), start=1):  # how the models of rounds 0 to 4 do
        await train(p, number, float(number), base=base)
    last = await evaluated(p, 10, **{"round-5": 8, "round-2": 9})
    completed = (await p.wait(FederationCompleted)).data
    made = {event.data.round: event.data for event in p.emitted(RoundCommitted)}
    assert sorted(made) == [1, 2, 3, 4, 5, 10], "five of nine, and the evaluation"
    assert last.models[0].weights == made[5].model
    assert completed.model == made[2].model == made[10].model
    seen = await view(p, federation)
    assert [(point.round, point.value) for point in curve(seen)] == [(0, 0.5), (1, 0.7), (2, 0.9), (3, 0.8), (4, 0.8)]
    assert kept_round(seen) == 2
    assert {(c.model, c.hospital): c.value for c in cross_site(seen)}["federated", ""] == 0.9
    assert all(r.aggregate_milliseconds is not None for r in seen.rounds)
    assert seen.rounds[0].answers[0].milliseconds == {"train": 1500, "send": 20}
    theirs = await p.ask(GetFederation(federation=federation), FederationView, p.hospital("renji"))
    shown = {answer.hospital: answer for answer in theirs.rounds[0].answers}
    assert shown["renji"].counts == right(5)
    assert (shown["huashan"].counts, shown["huashan"].milliseconds) == (None, {}), "nothing of the others"


@pytest.mark.parametrize(("of_last", "kept"), [(9, 3), (8, 2)])
async def test_the_last_model_is_kept_only_where_it_is_better(p: Platform, of_last: int, kept: int) -> None:
    federation = await start(p, TWO, rounds=3, evaluate_every=1, stop=EarlyStopping(patience=3, min_delta="0.05"))
    for number, base in enumerate((5, 7, 8), start=1):
        await train(p, number, float(number), base=base)
    await evaluated(p, 4, **{"round-3": of_last, "round-2": 8})
    await p.wait(FederationCompleted)
    assert kept_round(await view(p, federation)) == kept


async def test_without_early_stopping_every_second_model_and_the_last_are_told(p: Platform) -> None:
    federation = await start(p, TWO, rounds=3, evaluate_every=2)
    await train(p, 1, 1.0, base=4)
    round_ = (await opened(p, 2)).data
    unasked = await submit(p, round_, "renji", 2.0, counts=right(5))
    assert (unasked.problem or {})["code"] == "federation.evaluation"
    await train(p, 2, 2.0, base=None)
    wrong = await submit(p, (await opened(p, 3)).data, "renji", 3.0, counts=((1, 2, 3),))
    assert (wrong.problem or {})["code"] == "federation.evaluation"
    await train(p, 3, 3.0, base=8)
    last = await evaluated(p, 4, federated=9)
    assert last.models[0].weights == (await p.wait(RoundCommitted, lambda event: event.data.round == 3)).data.model
    await p.wait(FederationCompleted)
    seen = await view(p, federation)
    assert [point.round for point in curve(seen)] == [0, 2]
    assert kept_round(seen) == 3
