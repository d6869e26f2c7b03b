"""Differential privacy of hospitals at the coordinator, on real servers with pretended hospitals: noise, ledger, and the end of a budget.

The ledger is held against the Renyi divergence of the Gaussian mechanism, worked out here at every order without the accountant.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.federations import SETTINGS, alive, opened, start, submit, view
from tests.platform import Platform, platform

from medmesh.contracts.federation import FederationCompleted, FederationFailed, RoundCommitted, RoundOpened, RoundVoided, SubmitUpdate
from medmesh.contracts.privacy import Privacy
from medmesh.embedded.testing import RunningServers
from medmesh.federated.privacy.clipping import WITHIN, adapted
from medmesh.learning import weights
from medmesh.store.objects.port import file_digest, load
from medmesh_federation.service import SERVICE

HOSPITALS = ("huashan", "renji")


def by_hand(noise: float, rounds: int, delta: float) -> float:
    """Canonne, Kamath and Steinke 2020, proposition 12, over Mironov 2017, proposition 7."""
    orders = [*range(2, 65), 80, 96, 128, 192, 256, 512]
    return min(rounds * a / (2 * noise**2) + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1) for a in orders)


async def model_of(p: Platform, committed: RoundCommitted) -> dict[str, np.ndarray]:
    path = p.folder / f"model-{committed.round}"
    path.write_bytes(await load(await p.stores.holding(committed.model.sha256), committed.model))
    return weights.load(path)


async def committed(p: Platform, number: int) -> RoundCommitted:
    return (await p.wait(RoundCommitted, lambda e: e.data.round == number, timeout=30)).data


async def ledger(p: Platform) -> list[tuple[int, str]]:
    return [(r["detail"]["round"], r["detail"]["epsilon"]) for r in await p.audited("federation") if r["sub"] == "federation.privacy"]


async def test_hospitals_count_alike_noise_is_added_and_the_budget_ends_the_run_with_the_last_model(p: Platform) -> None:
    privacy = Privacy(unit="hospital", epsilon="1.6", delta="1e-5", clip="3", noise="4")
    fits = max(n for n in range(1, 20) if by_hand(4.0, n, 1e-5) <= 1.6)
    assert fits == 2
    federation = await start(p, HOSPITALS, privacy=privacy, rounds=5)
    before: dict[str, np.ndarray] = {"weight": np.zeros((64, 2)), "bias": np.zeros(2)}
    for number in (1, 2):
        round_ = (await opened(p, number)).data
        assert round_.clip == ""
        for hospital, value, samples in (("huashan", number + 0.02, 1), ("renji", number + 0.04, 1000)):
            assert (await submit(p, round_, hospital, value, samples=samples)).succeeded
        await alive(p, *HOSPITALS)
        found = await model_of(p, await committed(p, number))
        # Uploads are all of one value; both hospitals weigh the same, whatever samples they say.
        noise = np.concatenate([(found[name] - number - 0.03).ravel() for name in before])
        assert np.std(noise) == pytest.approx(4 * 3 / 2, rel=0.25), "noise x clip over the number of hospitals"
        before = found
    completed = (await p.wait(FederationCompleted, timeout=30)).data
    assert completed.rounds == 2
    seen = await view(p, federation)
    assert (seen.state, seen.failure) == ("completed", "privacy.budget")
    assert seen.model == completed.model
    assert seen.privacy is not None
    assert (seen.privacy.attempts, seen.privacy.budget) == (2, "1.6")
    assert seen.privacy.epsilon == pytest.approx(by_hand(4.0, 2, 1e-5), abs=1e-6)
    assert [round_ for round_, _ in await ledger(p)] == [1, 2]
    assert float((await ledger(p))[-1][1]) == pytest.approx(by_hand(4.0, 2, 1e-5), abs=1e-6)
    moves = [(r["detail"]["to"], r["why"]) for r in await p.audited("federation") if r["sub"] == "federation.move"]
    assert moves[-1] == ("completed", "privacy.budget")


async def test_attempts_that_came_to_nothing_are_spent_and_a_restart_forgets_none(servers: RunningServers, private: Path) -> None:
    from medmesh.service.runtime import running

    privacy = Privacy(unit="hospital", epsilon="1.6", delta="1e-5", clip="3", noise="4")
    async with platform(servers, private, SERVICE, settings=SETTINGS) as p:
        federation = await start(p, HOSPITALS, privacy=privacy, rounds=5, round_deadline_seconds=2)
        await opened(p, 1)
        await p.wait(RoundVoided, timeout=30)
        runtime = p.runtimes["federation"]
        await runtime.cancel_background()  # as a kill would
        async with running(SERVICE, runtime.settings):
            await alive(p, *HOSPITALS)
            failed = (await p.wait(FederationFailed, timeout=60)).data
        assert failed.code == "privacy.budget", "there was budget for two attempts, and no round came of them"
        assert len(p.emitted(RoundOpened)) == 2
        seen = await view(p, federation)
        assert seen.privacy is not None and seen.privacy.attempts == 2


async def test_the_norm_follows_the_updates_and_is_told_with_each_round(p: Platform) -> None:
    privacy = Privacy(unit="hospital", epsilon="900", delta="1e-5", clip="3", noise="0.1", quantile="0.5")
    await start(p, HOSPITALS, privacy=privacy, rounds=2)
    first = (await opened(p, 1)).data
    assert first.clip == "3"
    for hospital in HOSPITALS:
        assert (await _counted(p, first, hospital, 0.5)).succeeded
    await alive(p, *HOSPITALS)
    second = (await opened(p, 2)).data
    # Both were within: the norm goes down, by at most the step towards the median; what the noise takes from that is a tenth of it.
    assert adapted(3.0, 1.0) <= float(second.clip) < adapted(3.0, 0.6) < 3
    plain = await submit(p, second, "huashan", 0.5)
    assert plain.problem and plain.problem["code"] == "weights.missing", "the count is part of what the plan asks for"


async def _counted(p: Platform, round_: RoundOpened, hospital: str, within: float) -> Any:
    path = p.folder / f"counted-{hospital}"
    arrays = {"weight": np.zeros((64, 2), np.float32), "bias": np.zeros(2, np.float32), WITHIN.name: np.array([within])}
    weights.save(arrays, path)
    ref = await p.stores.scratch.put_file(path, file_digest(path)[0])
    about = {"federation": round_.federation, "round": round_.round, "attempt": round_.attempt}
    return await p.send(SubmitUpdate(**about, update=ref, samples=1), p.hospital(hospital))
