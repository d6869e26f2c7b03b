"""Pretended hospitals for tests of the coordinator: they answer rounds as an edge node would, without training."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from medmesh.contracts.federation import (
    Confusion,
    CreateFederation,
    FederationView,
    GetFederation,
    HospitalAlive,
    RespondInvitation,
    RoundKind,
    RoundOpened,
    SubmitEvaluation,
    SubmitUpdate,
)
from medmesh.contracts.governance import ApprovalGranted
from medmesh.contracts.message import Envelope, ObjectRef, OperationFinished, encode, envelope
from medmesh.contracts.plan import Plan, plan_hash
from medmesh.learning import weights
from medmesh.tasks import end
from tests.packages import tiny
from tests.platform import Platform
from tests.rosters import acceptance

SETTINGS = {"federation": {"tick_seconds": 0.1}}
"""Of a platform that does not wait a second for what is due."""


async def put_weights(p: Platform, folder: Path, values: float, *, scratch: bool = True) -> ObjectRef:
    """Weights of the tiny package, all the same number."""
    path = folder / f"w-{values}"
    weights.save({"weight": np.full((64, 2), values, np.float32), "bias": np.full(2, values, np.float32)}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    store = p.stores.scratch if scratch else p.stores.kept
    return await store.put_file(path, sha256)


async def make_plan(p: Platform, hospitals: tuple[str, ...], **changed: Any) -> CreateFederation:
    """A plan over the tiny package, its objects uploaded."""
    p.rosters.known(*hospitals)
    package = tiny(p.folder)
    ref = await p.stores.kept.put(package.archive)
    initial = await put_weights(p, p.folder, 0.0, scratch=False)
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "name": "tiny-model",
        "purpose": "a test of the coordinator",
        "initiator": "person:li@platform",
        "package": package.digest,
        "initial": initial.sha256,
        "framework": "numpy",
        "data": package.manifest.data,
        "signature": package.manifest.tensors,
        "rounds": 3,
        "local_steps": 5,
        "batch_size": 8,
        "learning_rate": "0.1",
        "seed": 42,
        "participants": hospitals,
        "min_participants": 2,
        "accept_by": now + timedelta(seconds=30),
        "start_at": now + timedelta(seconds=30),
        "round_deadline_seconds": 60,
        "lease_seconds": 30,
        **changed,
    }
    return CreateFederation(plan=Plan(**values), package=ref, initial=initial)


async def alive(p: Platform, *hospitals: str) -> None:
    """Signs of life."""
    for hospital in hospitals:
        signal = HospitalAlive(hospital=hospital)
        await p.bus.signal(signal.address(), encode(envelope(signal, source="gateway")))


@asynccontextmanager
async def living(p: Platform, *hospitals: str, every: float = 0.3) -> AsyncIterator[None]:
    """These are online for as long as this lasts."""

    async def breathe() -> None:
        while True:
            await alive(p, *hospitals)
            await asyncio.sleep(every)

    breathing = asyncio.create_task(breathe())
    try:
        yield
    finally:
        await end(breathing)


async def accept(p: Platform, federation: str, plan: Plan, *hospitals: str) -> None:
    """Sign the plan."""
    for hospital in hospitals:
        token = p.hospital(hospital)
        hash_ = plan_hash(plan)
        signature = acceptance(p.rosters.signer(f"hospital:{hospital}"), federation, hash_)
        done = await p.send(RespondInvitation(federation=federation, plan_hash=hash_, accept=True, signature=signature), token)
        assert done.succeeded, done.problem


async def start(p: Platform, hospitals: tuple[str, ...], **changed: Any) -> str:
    """A federation that everybody accepted and somebody approved."""
    soon = datetime.now(UTC) + timedelta(seconds=2)
    late = soon + timedelta(seconds=60)  # on a busy machine answers take a while
    wanted = await make_plan(p, hospitals, **{"accept_by": late, "start_at": soon, **changed})
    done = await p.send(wanted, p.person("li", "researcher"))
    assert done.succeeded, done.problem
    assert done.result
    federation = str(done.result["federation"])
    await accept(p, federation, wanted.plan, *hospitals)
    hash_ = plan_hash(wanted.plan)
    approval = f"approval-{federation}"
    token = p.approval("federation.start", federation, hash_, approval=approval)
    grant = ApprovalGranted(approval=approval, action="federation.start", target=federation, digest=hash_, token=token)
    await p.publish(grant, source="governance")
    while datetime.now(UTC) < soon:
        await alive(p, *hospitals)
        await asyncio.sleep(0.2)
    await alive(p, *hospitals)
    return federation


async def opened(p: Platform, number: int, attempt: int = 1, kind: RoundKind | None = None) -> Envelope[RoundOpened]:
    """Wait for a round."""

    def wanted(event: Envelope[RoundOpened]) -> bool:
        return event.data.round == number and event.data.attempt == attempt and (kind is None or event.data.kind == kind)

    return await p.wait(RoundOpened, wanted, timeout=30)


async def opened_each(p: Platform, number: int, attempt: int = 1) -> dict[str, RoundOpened]:
    """A round of which each hospital is told by itself, as each is told."""

    def told() -> dict[str, RoundOpened]:
        found = [event.data for event in p.emitted(RoundOpened)]
        return {one.hospitals[0]: one for one in found if (one.round, one.attempt) == (number, attempt)}

    everybody = (await opened(p, number, attempt)).data.everybody
    await p.wait(RoundOpened, lambda _: len(told()) == len(everybody), timeout=30)
    return told()


async def submit(p: Platform, round_: RoundOpened, hospital: str, value: float, samples: int = 10, **beside: Any) -> OperationFinished:
    """A trained model that is all `value`; `beside` are further fields of the answer. What was deleted in between goes again, as a node
    sends it: the same bytes of an attempt that is over may be on their way out."""
    about = {"federation": round_.federation, "round": round_.round, "attempt": round_.attempt}
    for once_more in (True, False):
        command = SubmitUpdate(**about, update=await put_weights(p, p.folder, value), samples=samples, **beside)
        done = await p.send(command, p.hospital(hospital))
        if done.succeeded or not once_more or (done.problem or {}).get("code") != "objects.missing":
            break
    return done


async def evaluate(p: Platform, round_: RoundOpened, hospital: str) -> OperationFinished:
    """Counts for every model."""
    results = tuple(Confusion(model=m.weights.sha256, counts=((5, 1), (2, 7))) for m in round_.models)
    command = SubmitEvaluation(federation=round_.federation, round=round_.round, attempt=round_.attempt, results=results)
    return await p.send(command, p.hospital(hospital))


async def view(p: Platform, federation: str) -> FederationView:
    """What a researcher sees."""
    return await p.ask(GetFederation(federation=federation), FederationView, p.person("li", "researcher"))
