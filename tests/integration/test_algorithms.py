"""Algorithms through the real coordinator, on real servers with pretended hospitals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.federations import SETTINGS, alive, make_plan, opened, opened_each, start, submit, view
from tests.platform import Platform, platform

from medmesh.contracts.federation import FederationCompleted, RoundCommitted, RoundStored
from medmesh.contracts.message import ObjectRef
from medmesh.embedded.testing import RunningServers
from medmesh.federated.aggregation import ALGORITHMS, Algorithm, Piece, register
from medmesh.federated.chain import link
from medmesh.learning import weights
from medmesh.service.runtime import running
from medmesh_federation.service import SERVICE

HOSPITALS = ("huashan", "renji", "xiehe")


async def read(p: Platform, ref: ObjectRef) -> dict[str, np.ndarray]:
    path = p.folder / ref.sha256
    path.write_bytes(b"".join([piece async for piece in (await p.stores.holding(ref.sha256)).read(ref.sha256)]))
    return weights.load(path)


async def test_an_aggregator_of_a_dozen_lines_runs_through_the_coordinator(p: Platform) -> None:
    @register
    class Midpoint(Algorithm):
        """The middle between the smallest and the largest value of each coordinate."""

        NAME = "midpoint"

        def combine(self, piece: Piece) -> np.ndarray:
            stack = piece.stack()
            middle: np.ndarray = (stack.min(axis=0) + stack.max(axis=0)) / 2
            return middle

    try:
        await start(p, HOSPITALS, algorithm="midpoint", rounds=1)
        round_ = (await opened(p, 1)).data
        for hospital, value in zip(HOSPITALS, (1.0, 2.0, 7.0), strict=True):
            assert (await submit(p, round_, hospital, value)).succeeded
        model = await read(p, (await p.wait(FederationCompleted)).data.model)
        np.testing.assert_array_equal(model["bias"], [4.0, 4.0])
    finally:
        del ALGORITHMS["midpoint"]


def adam(rounds: list[float]) -> float:
    """One number through FedAdam with its defaults."""
    w = m = v = 0.0
    for mean in rounds:
        d = mean - w
        m, v = 0.9 * m + 0.1 * d, 0.99 * v + 0.01 * d * d
        w = float(np.float32(w + 0.1 * m / (np.sqrt(v) + 1e-3)))
    return w


async def test_the_servers_state_survives_its_death_and_is_part_of_the_chain(servers: RunningServers, private: Path) -> None:
    finals = []
    for name, disturbed in (("calm", False), ("killed", True)):
        folder = private / name
        folder.mkdir(mode=0o700)
        async with platform(servers, folder, SERVICE, settings={"federation": {**SETTINGS["federation"], "states_kept": 1}}) as p:
            await start(p, HOSPITALS[:2], algorithm="fedadam")
            for number in (1, 2, 3):
                round_ = (await opened(p, number)).data
                assert round_.state is None, "nothing that only the server needs is shown"
                await submit(p, round_, "huashan", 0.5 * number)
                if disturbed and number == 2:
                    runtime = p.runtimes["federation"]
                    # As a kill would: its tasks end where they stand, its connections break, its memory is gone.
                    await runtime.cancel_background()
                    async with running(SERVICE, runtime.settings):
                        await submit(p, round_, "renji", 1.5 * number)
                        await alive(p, "huashan", "renji")
                        third = (await opened(p, 3)).data
                        for hospital, value in (("huashan", 1.5), ("renji", 4.5)):
                            await submit(p, third, hospital, value)
                        finals.append((await p.wait(FederationCompleted)).data)
                    break
                await submit(p, round_, "renji", 1.5 * number)
            else:
                finals.append((await p.wait(FederationCompleted)).data)
            events = sorted(p.emitted(RoundCommitted), key=lambda e: e.data.round)
            chain = finals[-1].plan_hash
            for event in events:
                assert event.data.state
                chain = link(chain, event.data.round, event.data.kind, event.data.model.sha256, event.data.state)
                assert event.data.chain == chain
            np.testing.assert_allclose((await read(p, finals[-1].model))["bias"], adam([1, 2, 3]), rtol=1e-6)
            # As many states are kept as may be gone back to, one here: the chain holds the hashes of the others.
            sizes = [await p.stores.kept.size(event.data.state or "") for event in events]
            assert sizes[0] is None
            assert sizes[-1] is not None
    assert finals[0].model.sha256 == finals[1].model.sha256


async def test_each_hospital_is_told_its_own_model_and_of_nobody_elses(p: Platform) -> None:
    # Long enough for three answers on a busy machine: what one round's deadline leaves out is then what the test leaves out.
    federation = await start(p, HOSPITALS, algorithm="fedamp", parameters={"sigma": "1000"}, round_deadline_seconds=12)
    first = (await opened(p, 1)).data
    assert (first.personal, first.continues) == (None, {})
    for hospital, value in zip(HOSPITALS, (1.0, 1.1, 9.0), strict=True):
        await submit(p, first, hospital, value)
    told = await opened_each(p, 2)
    assert set(told) == set(HOSPITALS)
    for hospital, event in told.items():
        assert (event.hospitals, event.everybody) == ((hospital,), HOSPITALS)
        assert event.continues == {hospital: "1.1"}
    refs = {hospital: event.personal for hospital, event in told.items()}
    assert len({ref.sha256 for ref in refs.values() if ref}) == 3
    own = {hospital: float((await read(p, ref))["bias"][0]) for hospital, ref in refs.items() if ref}
    assert own["huashan"] < own["renji"] < own["xiehe"], "each is nearest to its own"
    # Too few answer: the round is void, and what was trained in vain is not gone on from.
    await submit(p, told["huashan"], "huashan", 2.0)
    await alive(p, *HOSPITALS)
    second = await opened_each(p, 2, attempt=2)
    again = second["huashan"]
    assert again.continues == {"huashan": "1.1"}
    assert {hospital: event.personal for hospital, event in second.items()} == refs
    for hospital in ("huashan", "renji"):
        await submit(p, again, hospital, 1.0)
    await alive(p, *HOSPITALS)
    events = await opened_each(p, 3)
    assert set(events) == set(HOSPITALS)
    assert {h: e.continues[h] for h, e in events.items()} == {"huashan": "2.2", "renji": "2.2", "xiehe": "1.1"}
    assert events["xiehe"].personal, "who missed a round stays in with its last model"
    assert (await view(p, federation)).state == "running"
    assert await p.wait(RoundStored)


async def test_a_plan_whose_algorithm_does_not_fit_is_refused_with_the_reason(p: Platform) -> None:
    for changed, code in (
        ({"algorithm": "magic"}, "federation.algorithm"),
        ({"algorithm": "fedprox", "parameters": {"mu": "much"}}, "federation.parameter"),
        ({"algorithm": "krum", "min_participants": 3}, "plan.few_answers"),
    ):
        done = await p.send(await make_plan(p, HOSPITALS, **changed), p.person("li", "researcher"))
        assert done.problem
        assert done.problem["code"] == code


async def test_a_robust_rule_sets_a_poisoned_update_aside_and_the_record_names_it(p: Platform) -> None:
    hospitals = ("a", "b", "c", "d", "e")
    await start(p, hospitals, algorithm="krum", min_participants=5, rounds=1)
    round_ = (await opened(p, 1)).data
    for hospital, value in zip(hospitals, (1.0, 1.1, 1e9, 1.2, 1.3), strict=True):
        assert (await submit(p, round_, hospital, value, samples=10**9 if value > 2 else 10)).succeeded
    model = await read(p, (await p.wait(FederationCompleted)).data.model)
    assert 1 <= model["bias"][0] <= 1.3
    flagged = [r["detail"].get("flagged", "") for r in await p.audited("federation") if r["sub"] == "federation.round"]
    assert "c: aside" in flagged[0]
