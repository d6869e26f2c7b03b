"""Pretended hospitals that speak the protocol of secure sums with a real coordinator."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from medmesh.contracts.federation import (
    ReportFailure,
    RoundKind,
    RoundOpened,
    SecureAdvanced,
    SecurePhase,
    SubmitSecure,
    SubmitUpdate,
)
from medmesh.contracts.governance import ApprovalGranted
from medmesh.contracts.message import ObjectRef, OperationFinished
from medmesh.contracts.plan import SecureAggregation, plan_hash
from medmesh.federated.secure import vectors
from medmesh.federated.secure.contributor import Contributor, keys_of
from medmesh.federated.secure.session import Session
from medmesh.learning import weights
from medmesh.store.objects.port import file_digest
from tests.federations import accept, alive, make_plan
from tests.platform import Platform

HOSPITALS = ("huashan", "renji", "ruijin", "xiehe")
VALUES = {"huashan": 1.5, "renji": -2.25, "ruijin": 7.0, "xiehe": 0.125}
SAMPLES = {"huashan": 10, "renji": 20, "ruijin": 35, "xiehe": 5}


async def start(p: Platform, **changed: Any) -> str:
    soon = datetime.now(UTC) + timedelta(seconds=4)
    values: dict[str, Any] = {
        "rounds": 1,
        "min_participants": 3,
        "secure": SecureAggregation(threshold=3),
        "accept_by": soon + timedelta(seconds=60),
        "start_at": soon,
    }
    wanted = await make_plan(p, HOSPITALS, **{**values, **changed})
    done = await p.send(wanted, p.person("li", "researcher"))
    assert done.succeeded and done.result, done.problem
    federation = str(done.result["federation"])
    await accept(p, federation, wanted.plan, *HOSPITALS)
    token = p.approval("federation.start", federation, plan_hash(wanted.plan))
    grant = ApprovalGranted(approval="approval-1", action="federation.start", target=federation, digest=plan_hash(wanted.plan), token=token)
    await p.publish(grant, source="governance")
    await alive(p, *HOSPITALS)
    return federation


async def say(p: Platform, round_: RoundOpened, hospital: str, phase: SecurePhase, messages: dict[str, str]) -> OperationFinished:
    about = {"federation": round_.federation, "round": round_.round, "attempt": round_.attempt}
    return await p.send(SubmitSecure(**about, phase=phase, messages=messages), p.hospital(hospital))


async def told(p: Platform, phase: SecurePhase, hospital: str, number: int = 1) -> dict[str, str]:
    def wanted(e: Any) -> bool:
        return e.data.phase is phase and e.data.round == number and hospital in e.data.hospitals

    event = await p.wait(SecureAdvanced, wanted, timeout=30)
    return event.data.messages


async def fail(p: Platform, round_: RoundOpened, hospital: str) -> None:
    about = {"federation": round_.federation, "round": round_.round, "attempt": round_.attempt}
    assert (await p.send(ReportFailure(**about, code="training.answer"), p.hospital(hospital))).succeeded


class Parties:
    """All hospitals of a round."""

    def __init__(self, p: Platform, round_: RoundOpened) -> None:
        self.p, self.round = p, round_
        session = Session(round_.federation, round_.plan_hash, round_.round, round_.attempt, HOSPITALS, 3)
        self.all = {name: Contributor(session, name) for name in HOSPITALS}
        self.roster = p.rosters.present()
        self.sealed: dict[str, dict[str, str]] = {}

    def signer(self, name: str) -> Any:
        return self.p.rosters.signer(f"hospital:{name}")

    async def keys(self) -> None:
        for name, one in self.all.items():
            done = await say(self.p, self.round, name, SecurePhase.KEYS, {name: one.advertise(self.signer(name), datetime.now(UTC))})
            assert done.succeeded and done.result == {"late": False}, (done.problem, done.result)

    async def shares(self, wrong: Collection[tuple[str, str]] = ()) -> None:
        """`wrong` are those of whom one seals nothing that the other can open."""
        for name, one in self.all.items():
            keys = await told(self.p, SecurePhase.SHARES, name, self.round.round)
            messages = one.share(keys_of(one.session, self.roster, keys, datetime.now(UTC)))
            messages |= {other: "nonsense" for sender, other in wrong if sender == name}
            assert (await say(self.p, self.round, name, SecurePhase.SHARES, messages)).succeeded

    async def vector(self, name: str, *beside: int, ahead: Parties | None = None) -> OperationFinished:
        """With a list of everybody and keys for the round `ahead`, where that is given."""
        p, now = self.p, datetime.now(UTC)
        model, out = p.folder / f"model-{name}", p.folder / f"vector-{name}"
        value = VALUES[name] + self.round.round - 1
        weights.save({"weight": np.full((64, 2), value, np.float32), "bias": np.full(2, value, np.float32)}, model)
        masks = self.all[name].masks(self.sealed.get(name) or await told(p, SecurePhase.VECTORS, name, self.round.round))
        beside = {"masks": masks, "beside": beside}
        trains = self.round.kind is RoundKind.TRAIN
        vectors.encode(model if trains else None, SAMPLES[name] if trains else 1, out, bits=24, parties=len(HOSPITALS), **beside)
        ref: ObjectRef = await p.stores.scratch.put_file(out, file_digest(out)[0])
        about = {"federation": self.round.federation, "round": self.round.round, "attempt": self.round.attempt}
        said = {"whole": self.all[name].whole(self.signer(name), now, following=ahead.all[name].public())} if ahead else {}
        return await p.send(SubmitUpdate(**about, update=ref, samples=1, **said), p.hospital(name))

    async def vectors(self, ahead: Parties | None = None) -> None:
        """All that comes before the sum is opened, of everybody."""
        await self.keys()
        await self.shares()
        for name in HOSPITALS:
            done = await self.vector(name, ahead=ahead)
            assert done.succeeded, done.problem

    async def open(self, ahead: Parties, sealing: Sequence[str] = HOSPITALS) -> None:
        """Reveal what everybody's lists ask for, and seal for the round `ahead`."""
        for name in HOSPITALS:
            event = (await self.p.wait(SecureAdvanced, lambda e: e.data.round == self.round.round and e.data.phase == "reveal")).data
            now = datetime.now(UTC)
            found = self.all[name].reveal(self.roster, None, event.messages, now, lambda *a: a[-1])
            about = {"federation": self.round.federation, "round": self.round.round, "attempt": self.round.attempt}
            sealed = ahead.all[name].share(found.following) if name in sealing else {}
            command = SubmitSecure(**about, phase=SecurePhase.REVEAL, messages=found.shares, ahead=sealed)
            done = await self.p.send(command, self.p.hospital(name))
            assert done.succeeded and done.result == {"late": False}, (done.problem, done.result)

    async def reveal_and_seal(self, survivors: Sequence[str], ahead: Parties) -> None:
        """What a list of some asks for, and shares for a round whose keys nobody was told."""
        keys = {name: party.public() for name, party in ahead.all.items()}
        about = {"federation": self.round.federation, "round": self.round.round, "attempt": self.round.attempt}
        for name in survivors:
            signed = await told(self.p, SecurePhase.REVEAL, name, self.round.round)
            found = self.all[name].reveal(self.roster, survivors, signed, datetime.now(UTC), lambda *a: a[-1])
            command = SubmitSecure(**about, phase=SecurePhase.REVEAL, messages=found.shares, ahead=ahead.all[name].share(keys))
            assert (await self.p.send(command, self.p.hospital(name))).succeeded

    async def survive(self, names: Sequence[str]) -> list[str]:
        survivors = sorted(await told(self.p, SecurePhase.SURVIVORS, names[0], self.round.round))
        for name in names:
            signed = self.all[name].survive(survivors, self.signer(name), datetime.now(UTC), lambda *a: a[-1])
            assert (await say(self.p, self.round, name, SecurePhase.SURVIVORS, {name: signed})).succeeded
        return survivors

    async def reveal(self, names: Sequence[str], survivors: Sequence[str]) -> None:
        for name in names:
            signed = await told(self.p, SecurePhase.REVEAL, name, self.round.round)
            assert (
                await say(
                    self.p,
                    self.round,
                    name,
                    SecurePhase.REVEAL,
                    self.all[name].reveal(self.roster, survivors, signed, datetime.now(UTC), lambda *a: a[-1]).shares,
                )
            ).succeeded


async def advanced(p: Platform, number: int) -> list[SecureAdvanced]:
    """How far hospitals were told that a round's sum is."""
    return [e.data for e in p.emitted(SecureAdvanced) if e.data.round == number]


async def summed(p: Platform, round_: RoundOpened, told: dict[str, list[int]], lost: Sequence[str] = ()) -> None:
    """A round in which everybody tells this beside what it trained; those in `lost` fail after their masks were agreed upon."""
    parties = Parties(p, round_)
    await parties.keys()
    await parties.shares()
    for name in HOSPITALS:
        await alive(p, *HOSPITALS)
        if name in lost:
            await fail(p, round_, name)
        else:
            done = await parties.vector(name, *told[name])
            assert done.succeeded, done.problem
    left = [name for name in HOSPITALS if name not in lost]
    await parties.reveal(left, await parties.survive(left))
