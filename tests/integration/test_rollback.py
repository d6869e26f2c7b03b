"""A federation goes back to the model of an earlier round, by approval of exactly that, and says so for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import federations as plain
from tests.federations import opened, submit, view
from tests.platform import Platform, platform

from medmesh.contracts.federation import FederationCompleted, FederationRolledBack, RoundCommitted, RoundOpened, RoundStored
from medmesh.contracts.governance import ApprovalGranted
from medmesh.contracts.message import ObjectRef
from medmesh.embedded.testing import RunningServers
from medmesh.federated.chain import link, undone_link
from medmesh.federated.undoing import proven, rollback_digest
from medmesh.learning import weights
from medmesh.store.objects.port import load
from medmesh_federation.service import SERVICE

TWO = ("huashan", "renji")


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    async with platform(servers, private, SERVICE, settings={"federation": {"tick_seconds": 0.1, "states_kept": 3}}) as made:
        yield made


async def trained(p: Platform, number: int, value: float, attempt: int = 1) -> RoundCommitted:
    one = (await opened(p, number, attempt)).data
    for hospital in TWO:
        assert (await submit(p, one, hospital, value)).succeeded
    return (await p.wait(RoundCommitted, lambda event: event.data.round == number, timeout=30)).data


async def value_of(p: Platform, ref: ObjectRef) -> float:
    path = p.folder / f"read-{ref.sha256}"
    path.write_bytes(await load(await p.stores.holding(ref.sha256), ref))
    (found,) = {round(float(one), 4) for array in weights.load(path).values() for one in np.unique(array)}
    return found


async def approve(p: Platform, one: RoundOpened, number: int, model: str, approval: str) -> None:
    digest = rollback_digest(one.federation, one.plan_hash, number, model)
    target = f"{one.federation}/{number}"
    token = p.approval("federation.rollback", target, digest, approval=approval)
    grant = ApprovalGranted(approval=approval, action="federation.rollback", target=target, digest=digest, token=token)
    await p.publish(grant, source="governance")


async def test_the_next_round_begins_with_the_earlier_model_and_with_what_the_server_remembered_then(p: Platform) -> None:
    """FedAvgM, m = 0.9 m + D and w += m, by hand: 1 with m = 1 after round 1; rounds 2 and 3 are undone."""
    wanted: dict[str, Any] = {"rounds": 5, "algorithm": "fedavgm", "parameters": {"beta": "0.9"}}
    federation = await plain.start(p, TWO, accept_by=datetime.now(UTC) + timedelta(seconds=60), **wanted)
    first = await trained(p, 1, 1.0)
    assert await value_of(p, first.model) == 1.0
    assert await value_of(p, (await trained(p, 2, 3.0)).model) == 3.9
    third = await trained(p, 3, 3.5)
    await p.wait(RoundStored, lambda event: event.data.round == 3)
    four = (await opened(p, 4)).data
    await submit(p, four, "huashan", 9.0)  # what was given to the open round comes to nothing

    await approve(p, four, 1, third.model.sha256, "another-model")
    await approve(p, four, 3, third.model.sha256, "nothing-after-it")
    await approve(p, four, 1, first.model.sha256, "good")
    await approve(p, four, 1, first.model.sha256, "good")
    told = (await p.wait(FederationRolledBack)).data
    assert (told.round, told.undone, told.model) == (1, (2, 3), first.model)
    again = (await opened(p, 4, 2)).data
    assert again.base == first.model
    assert again.undoing is not None
    assert proven(again, again.base.sha256, p.trust.governance, p.rosters.book.believed().roster).id == "good"
    fourth = await trained(p, 4, 2.0, attempt=2)
    assert await value_of(p, fourth.model) == 2.9, "m = 0.9 x 1 + 1, and not what rounds 2 and 3 left"
    assert fourth.chain == link(undone_link(third.chain, 1, first.model.sha256, "good"), 4, fourth.kind, fourth.model.sha256, fourth.state)

    seen = await view(p, federation)
    assert [(r.round, r.attempt, r.state, r.undone) for r in seen.rounds][:5] == [
        (1, 1, "committed", False),
        (2, 1, "committed", True),
        (3, 1, "committed", True),
        (4, 1, "void", False),
        (4, 2, "committed", False),
    ]
    five = (await opened(p, 5)).data
    assert five.undoing is None
    assert len(p.emitted(FederationRolledBack)) == 1, "once, and by no other approval"
    await p.wait(RoundStored, lambda event: event.data.round == 4)
    await approve(p, five, 1, first.model.sha256, "too-late")  # of two rounds' memory round 1 is none any more
    await approve(p, five, 0, five_initial(p), "first-weights")
    back = (await p.wait(FederationRolledBack, lambda event: event.data.round == 0)).data
    assert back.undone == (1, 4)
    last = await trained(p, 5, 4.0, attempt=2)
    assert await value_of(p, last.model) == 4.0
    done = (await p.wait(FederationCompleted, timeout=30)).data
    assert (done.rounds, done.undone, done.contributors) == (5, (1, 2, 3, 4), TWO)
    assert [e.data.round for e in p.emitted(FederationRolledBack)] == [1, 0]
    kept = [r for r in await p.audited("federation") if r["sub"] == "federation.rollback"]
    assert [r["approval"]["id"] for r in kept if r["out"]] == ["nothing-after-it", "too-late"]
    records = [r for r in kept if not r["out"]]
    found = [(r["detail"]["round"], r["detail"]["undone"], r["approval"]["id"]) for r in records]
    assert found == [(1, "2 3", "good"), (0, "1 4", "first-weights")]


def five_initial(p: Platform) -> str:
    return next(event.data.base.sha256 for event in p.emitted(RoundOpened) if event.data.round == 1)
