"""Whatever is killed while a federation is screened, a hospital is put into quarantine and let out of it, and rounds are rolled back:
it ends as the undisturbed one, and nothing of it happens twice.

Hospitals are played here, so that both runs come to the same decisions in the same rounds; all else is the platform as it is started.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.faults.harness import SOAK, Stage, doubled, until
from tests.packages import TINY
from tests.rosters import acceptance

from medmesh.client.federation import Federation, create_federation
from medmesh.client.gateway import Gateway
from medmesh.client.transfer import download, upload
from medmesh.contracts.federation import FederationView, RoundView
from medmesh.errors import Problem
from medmesh.learning import isolation, weights
from medmesh.tasks import end
from medmesh_edge.outgoing import is_transient
from medmesh_edge.ports import Site, site

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
FOUR = ("steer-a", "steer-b", "steer-c", "steer-d")
THREE, BAD = FOUR[:3], FOUR[3]
VICTIMS = ("federation", "gateway", "nats", "postgres")
MOMENTS = ("screening", "release", "quarantine", "rollback", "afterwards")
PATIENCE = 120.0


async def insist(what: Callable[[], Awaitable[Any]]) -> Any:
    """Until it is answered; that something is away is no answer."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await what()
            except Problem as problem:
                if not is_transient(problem):
                    raise
                await asyncio.sleep(0.2)


@dataclass
class Played:
    """Hospitals that answer as nodes do, each with what it trained in a folder."""

    stage: Stage
    folder: Path
    sites: dict[str, Site]
    doors: dict[str, Gateway]

    async def online(self, name: str) -> None:
        """Hear, and be known to be there by that."""
        while True:
            with suppress(Problem):
                await self.doors[name].poll(1 << 40, 1.0)
            await asyncio.sleep(0.2)

    async def answer(self, journey: Journey, one: RoundView, name: str, *, times: float = 1.0) -> None:
        """Somewhere on the way that all share, a good deal beside it; `times` as far as the others go."""
        base = await insist(lambda: download(self.doors[name], one.base, self.folder / f"{one.base.sha256}-{name}"))
        way, own = np.random.default_rng(one.round), np.random.default_rng([one.round, FOUR.index(name)])
        model = {
            tensor: (a + np.float32(times) * np.float32(0.1) * (way.normal(size=a.shape) + own.normal(size=a.shape))).astype(np.float32)
            for tensor, a in sorted(weights.load(base).items())
        }
        path = self.folder / f"{journey.federation}-{one.round}-{one.attempt}-{name}"
        weights.save(model, path)
        ref = await insist(lambda: upload(self.doors[name], path))
        body = {"round": one.round, "attempt": one.attempt, "update": ref.model_dump(), "samples": 10}
        await insist(lambda: self.doors[name].command("POST", f"/v1/federations/{journey.federation}/updates", body, key=path.name))


@asynccontextmanager
async def played(stage: Stage, folder: Path) -> AsyncIterator[Played]:
    """All of them, online as long as this lasts."""
    async with AsyncExitStack() as stack:
        made = Played(stage, folder, {}, {})
        for name in FOUR:
            place = folder / name
            if not place.exists():
                await stage.enrol(place, name)
            made.sites[name] = await stack.enter_async_context(site(place))
            made.doors[name] = await stack.enter_async_context(made.sites[name].gateway())
            stack.push_async_callback(end, asyncio.create_task(made.online(name)))
        yield made


@dataclass
class Journey:
    """One federation from its invitation to its end. `strike` is told each moment at which something may be killed, and answers what is
    waited for before anything depends on who is online."""

    field: Played
    strike: Callable[[str], Awaitable[Any]]
    federation: str = ""
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def run(self) -> FederationView:
        """To its end: round 1 is flagged, 3 loses a hospital, 5 goes back to 2."""
        stage = self.field.stage
        async with stage.door("li") as li, stage.door("wu") as wu:
            await self._begin(li, wu)
            steered = Federation(li, self.federation)
            one = await self._round(li, 1)
            for name in FOUR[:-1]:
                await self.field.answer(self, one, name)
            async with self._struck("screening", li):
                await self.field.answer(self, one, BAD, times=25.0)
                await self._state(li, BAD, "quarantined")

            two = await self._round(li, 2)
            for name in THREE[:-1]:
                await self.field.answer(self, two, name)
            async with self._struck("release", li):
                approval = await insist(lambda: steered.request_release(BAD))
                await self._decide(wu, approval)
                await self._state(li, BAD, "dropped")
            await self.field.answer(self, two, THREE[-1])

            three = await self._round(li, 3)
            for name in (BAD, *THREE[:-1]):
                await self.field.answer(self, three, name)
            async with self._struck("quarantine", li):
                body, key = {"hospital": BAD, "reason": "its scanner is miscalibrated"}, f"{self.federation}-quarantine"
                await insist(lambda: li.command("POST", f"/v1/federations/{self.federation}/quarantine", body, key=key))
            await self.field.answer(self, three, THREE[-1])
            await self._everybody(await self._round(li, 4))

            await self.field.answer(self, await self._round(li, 5), THREE[0])
            async with self._struck("rollback", li):
                digest = await insist(lambda: steered.rollback_digest(2))
                wanted = {"action": "federation.rollback", "target": f"{self.federation}/2", "digest": digest}
                asked = await insist(lambda: li.command("POST", "/v1/approvals", wanted, key=f"{self.federation}-back"))
                await self._decide(wu, asked["approval"])
                five = await self._round(li, 5, 2)
            for name in THREE[:-1]:
                await self.field.answer(self, five, name)
            async with self._struck("afterwards", li):
                await self.field.answer(self, five, THREE[-1])
                six = await self._round(li, 6)
            await self._everybody(six)

            async def ended() -> Any:
                view = await steered.view()
                assert view.state not in ("failed", "cancelled"), view.failure
                return view if view.state == "completed" else None

            found: FederationView = await until(ended, PATIENCE)
            return found

    async def _begin(self, li: Gateway, wu: Gateway) -> None:
        plan = {"rounds": 6, "local_steps": 1, "batch_size": 1, "learning_rate": "0.1", "seed": 7, "min_participants": 3}
        plan |= {"round_deadline_seconds": 600, "lease_seconds": 300, "screening": {"action": "quarantine"}, "rehearsal": False}
        about = {"name": "steered", "purpose": "a test", "initiator": "person:li@platform", "hospitals": FOUR}
        made = await create_federation(li, TINY, **about, accept_seconds=120, **plan)
        self.federation = made["federation"]
        for name in FOUR:
            signed = acceptance(self.field.sites[name].organisation(), self.federation, made["plan_hash"])
            body = {"plan_hash": made["plan_hash"], "accept": True, "signature": signed}
            await insist(
                lambda name=name, body=body: self.field.doors[name].command("POST", f"/v1/federations/{self.federation}/answer", body)
            )
        await self._decide(wu, await Federation(li, self.federation).request_start())

    async def _decide(self, wu: Gateway, approval: str) -> None:
        """Whoever is not answered looks whether it was done all the same."""

        async def decided() -> bool:
            await self.field.stage.decide(wu, approval)
            return True

        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await decided()
                    return
                except Problem as problem:
                    if problem.code.startswith("governance.") or problem.code == "request.not_found":
                        return
                    await asyncio.sleep(0.2)

    async def _view(self, li: Gateway) -> FederationView:
        return await Federation(li, self.federation).view()

    async def _round(self, li: Gateway, number: int, attempt: int = 1) -> RoundView:
        async def there() -> Any:
            found = [one for one in (await self._view(li)).rounds if (one.round, one.attempt, one.state) == (number, attempt, "open")]
            return found[0] if found else None

        found: RoundView = await until(there, PATIENCE, 0.05)
        return found

    async def _state(self, li: Gateway, name: str, state: str) -> None:
        async def there() -> bool:
            return {one.hospital: one.state for one in (await self._view(li)).participants}[name] == state

        await until(there, PATIENCE, 0.05)

    async def _everybody(self, one: RoundView) -> None:
        for name in THREE:
            await self.field.answer(self, one, name)

    @asynccontextmanager
    async def _struck(self, moment: str, li: Gateway) -> AsyncIterator[None]:
        """What is killed is killed while this is done; then everybody is waited for."""
        killing = asyncio.create_task(self.strike(moment))
        try:
            yield
            await killing
        finally:
            killing.cancel()

        async def back() -> bool:
            return all(one.online for one in (await self._view(li)).participants)

        await until(back, PATIENCE)


async def calm(moment: str) -> None:
    """Nothing is killed."""


@dataclass
class Killer:
    """`kill -9` of two of the victims, one soon after the other, at every moment: all pairs of victim and moment in as many journeys."""

    stage: Stage
    number: int
    killed: list[tuple[str, str]] = field(default_factory=list)

    async def strike(self, moment: str) -> None:
        """At random lines of what is under way."""
        dice = random.Random(f"{self.number}:{moment}")
        first = self.number * 2 + MOMENTS.index(moment)
        for victim in (VICTIMS[first % 4], VICTIMS[(first + 1) % 4]):
            await asyncio.sleep(dice.uniform(0, 0.6))
            old = await until(lambda victim=victim: self._alive(victim), PATIENCE, 0.01)
            os.kill(old.pid, signal.SIGKILL)
            self.killed.append((moment, victim))

            async def again(victim: str = victim, pid: int = old.pid) -> bool:
                found = await self._alive(victim)
                return found is not None and found.pid != pid

            await until(again, PATIENCE, 0.05)

    async def _alive(self, victim: str) -> Any:
        process = self.stage.run.processes.get(victim)
        return process if process is not None and process.alive else None


def story(view: FederationView) -> list[Any]:
    """What became of every round, without what differs from federation to federation."""
    return [
        (r.round, r.attempt, r.state, r.undone, r.model and r.model.sha256, [(a.hospital, a.flags, a.excluded, a.late) for a in r.answers])
        for r in view.rounds
    ]


async def traces(stage: Stage, journey: Journey, folder: Path) -> tuple[Counter[Any], Counter[str]]:
    """How often each thing was recorded of a federation in the log, and how often each fact of it was told."""
    await stage.settled()
    records = [r for r in await stage.log(folder) if any(e["id"].split("/")[0] == journey.federation for e in r["entities"])]
    told = [m for m in await stage.stream(journey.began) if m["data"].get("federation") == journey.federation]
    assert doubled(Counter(m["id"] for m in told)) == {}
    acts = Counter(
        (r["sub"], r["out"], r["why"], str(r["detail"].get("round", ""))) for r in records if r["src"]["service"] == "federation"
    )
    return acts, Counter(m["type"] for m in told)


async def test_steering_under_fire_is_as_without(stage: Stage, tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    async with played(stage, tmp_path) as hospitals:
        undisturbed = Journey(hospitals, calm)
        expected = await undisturbed.run()
        acts, facts = await traces(stage, undisturbed, tmp_path / "log-calm")
        for verb, times in (("flag", 1), ("quarantine", 2), ("release", 1), ("rollback", 1), ("rejoin", 1)):
            assert sum(n for (sub, *_), n in acts.items() if sub == f"federation.{verb}") == times, verb
        for number in range(4 if SOAK else 1):
            killer = Killer(stage, number)
            journey = Journey(hospitals, killer.strike)
            found = await journey.run()
            print(f"killed {killer.killed}")
            assert len(killer.killed) == 2 * len(MOMENTS)
            assert story(found) == story(expected)
            assert found.model == expected.model
            states = [{one.hospital: (one.state, one.reason, one.drops) for one in view.participants} for view in (found, expected)]
            assert states[0] == states[1]
            again = await traces(stage, journey, tmp_path / f"log-{number}")
            assert again == (acts, facts)
