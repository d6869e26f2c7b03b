"""Going back together with whatever else a plan may have: each works as it says, or is refused with its reason before anything happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import secure_parties as secure
from tests.federations import accept, alive, living, make_plan, opened, opened_each, submit, view
from tests.integration import test_evaluation as evaluating
from tests.integration import test_pace as pace
from tests.integration.test_rollback import approve, value_of
from tests.platform import Platform, platform

from medmesh.client.results import kept_round, trained
from medmesh.contracts.federation import (
    ApprovalFailed,
    FederationCompleted,
    FederationRolledBack,
    ParticipantQuarantined,
    ParticipantReleased,
    QuarantineHospital,
    RoundCommitted,
    RoundOpened,
    RoundVoided,
    SecureAdvanced,
    SecurePhase,
    SubmitUpdate,
    WithdrawFromFederation,
)
from medmesh.contracts.governance import ApprovalGranted
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import EarlyStopping, plan_hash
from medmesh.contracts.privacy import Privacy
from medmesh.embedded.testing import RunningServers
from medmesh.federated.undoing import proven
from medmesh.learning import weights
from medmesh.store.objects.port import file_digest
from medmesh_federation.ports import HANDLERS
from medmesh_federation.service import SERVICE

THREE = ("huashan", "renji", "tongji")
TWO = THREE[:2]


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    async with platform(servers, private, SERVICE, settings={"federation": {"tick_seconds": 0.1, "states_kept": 4}}) as made:
        yield made


@dataclass
class Going:
    """A federation that everybody accepted, approved, and begun at once."""

    p: Platform
    federation: str
    hospitals: tuple[str, ...]

    @classmethod
    async def start(cls, p: Platform, hospitals: tuple[str, ...] = THREE, **changed: Any) -> Going:
        now = datetime.now(UTC)
        values = {"accept_by": now + timedelta(seconds=60), "start_at": now, "lease_seconds": 120, **changed}
        wanted = await make_plan(p, hospitals, **values)
        done = await p.send(wanted, p.person("li", "researcher"))
        assert done.succeeded and done.result, done.problem
        federation, hash_ = str(done.result["federation"]), plan_hash(wanted.plan)
        await accept(p, federation, wanted.plan, *hospitals)
        await alive(p, *hospitals)
        about = {"approval": "start", "action": "federation.start", "target": federation, "digest": hash_}
        await p.publish(ApprovalGranted(**about, token=p.approval(**about)), source="governance")
        return cls(p, federation, hospitals)

    async def round(self, number: int, attempt: int = 1) -> RoundOpened:
        return (await opened(self.p, number, attempt)).data

    async def train(self, number: int, value: float, attempt: int = 1, who: tuple[str, ...] = (), **beside: Any) -> RoundCommitted:
        one = await self.round(number, attempt)
        for hospital in who or self.hospitals:
            done = await submit(self.p, one, hospital, value, **beside)
            assert done.succeeded, done.problem
        return await self.committed(number)

    async def committed(self, number: int) -> RoundCommitted:
        return (await self.p.wait(RoundCommitted, lambda event: event.data.round == number, timeout=30)).data

    async def back(self, number: int, model: str) -> FederationRolledBack:
        await approve(self.p, await self.round(1), number, model, f"back-to-{number}")
        return (await self.p.wait(FederationRolledBack, lambda event: event.data.round == number, timeout=30)).data

    async def refused(self, number: int, model: str) -> str:
        """Why an approved roll-back is not done."""
        known = len(self.p.emitted(FederationRolledBack))
        await approve(self.p, await self.round(1), number, model, f"refused-{number}")
        told = (await self.p.wait(ApprovalFailed, lambda event: event.data.target.endswith(f"/{number}"), timeout=30)).data
        assert len(self.p.emitted(FederationRolledBack)) == known
        kept = [r for r in await self.p.audited("federation") if r["sub"] == "federation.rollback" and r.get("why") == told.code]
        assert kept[-1]["approval"]["target"] == told.target
        return str(kept[-1]["detail"]["reason"])

    async def completed(self) -> FederationCompleted:
        return (await self.p.wait(FederationCompleted, timeout=30)).data


async def test_scores_of_undone_rounds_stop_no_training_and_choose_no_model(p: Platform) -> None:
    """Patience 1. Round 2 said that round 1's model is good, and is undone; so are 4 and 5, after which training had ended early."""
    stop = EarlyStopping(patience=1, min_delta="0.01")
    going = await Going.start(p, TWO, rounds=8, evaluate_every=1, stop=stop)

    async def train(number: int, right: int, attempt: int = 1) -> RoundCommitted:
        return await going.train(number, float(number), attempt, counts=evaluating.right(right))

    first = await train(1, 5)
    await train(2, 9)
    await going.round(3)
    assert (await going.back(1, first.model.sha256)).undone == (2,)
    third = await train(3, 7, attempt=2)  # the model of round 1 again: what counted was said in a round that is undone
    await train(4, 8)
    await train(5, 6)
    last = (await opened(p, 9)).data
    assert {one.name for one in last.models} == {"round-5", "round-3"}, "training had ended: the model of 4 is worse than that of 3"
    assert (await going.back(3, third.model.sha256)).undone == (4, 5)
    again = await evaluating.evaluated(p, 9, attempt=2, **{"round-3": 8, "round-1": 7})
    assert next(one.weights for one in again.models if one.name == "round-3") == third.model
    assert proven(again, third.model.sha256, p.trust.governance, p.rosters.book.believed().roster).id == "back-to-3"
    done = await going.completed()
    assert (done.rounds, done.undone, done.model) == (3, (2, 4, 5), third.model)
    assert kept_round(await view(p, going.federation)) == 3


async def test_a_sum_that_is_being_opened_costs_its_number_and_one_that_is_not_is_made_again(p: Platform) -> None:
    names = secure.HOSPITALS
    going = await Going.start(p, names, rounds=4, min_participants=3, secure=secure.SecureAggregation(threshold=3))
    nothing: dict[str, list[int]] = {name: [] for name in names}
    for number in (1, 2):
        await secure.summed(p, await going.round(number), nothing)
    first, second = [await going.committed(number) for number in (1, 2)]
    three = await going.round(3)
    parties = secure.Parties(p, three)
    await parties.vectors()
    await p.wait(SecureAdvanced, lambda e: (e.data.round, e.data.phase) == (3, SecurePhase.SURVIVORS), timeout=30)
    await going.back(1, first.model.sha256)
    assert [(e.data.round, e.data.skipped) for e in p.emitted(RoundVoided)] == [(3, True)], "hospitals may open but one sum of a round"
    four = await going.round(4)
    assert (four.base, four.undoing is not None) == (first.model, True)
    assert second.model != first.model
    await going.back(0, initial(p))
    four = await going.round(4, 2)
    assert four.base.sha256 == initial(p), "its keys were not yet there: the same number again"
    await secure.summed(p, four, nothing)
    done = await going.completed()
    assert (done.rounds, done.undone, done.contributors) == (4, (1, 2), names)
    mean = sum(secure.SAMPLES[n] * (secure.VALUES[n] + 3) for n in names) / sum(secure.SAMPLES.values())
    assert await value_of(p, done.model) == pytest.approx(mean, abs=1e-4)
    assert (await view(p, going.federation)).failure == "secure.unopened"


def initial(p: Platform) -> str:
    return next(event.data.base.sha256 for event in p.emitted(RoundOpened) if event.data.round == 1)


async def test_late_updates_of_rounds_that_are_undone_count_nowhere_and_make_nobody_a_contributor(p: Platform) -> None:
    going = await Going.start(p, rounds=3, pace=pace.PACE)
    first = await going.train(1, 10.0, who=TWO)
    one, two = await going.round(1), await going.round(2)
    assert two.hospitals == TWO
    assert (await submit(p, one, "tongji", 4.0)).result == {"late": True}
    assert (await submit(p, two, "huashan", 12.0)).succeeded
    assert (await going.committed(2)).participants == ("huashan", "tongji"), "the late one counts in round 2"
    await going.round(3)
    assert (await going.back(1, first.model.sha256)).undone == (2,)
    three = await going.round(3, 2)
    assert three.hospitals == THREE, "nobody is waited for because of a round that is undone"
    assert (await submit(p, two, "renji", 99.0)).result == {"late": True}
    for hospital in TWO:
        assert (await submit(p, three, hospital, 20.0)).succeeded
    assert (await going.committed(3)).participants == TWO
    done = await going.completed()
    assert await value_of(p, done.model) == 20.0
    assert done.contributors == TWO, "what tongji sent is in no round that counts"


async def test_without_going_back_who_only_ever_came_late_is_a_contributor(p: Platform) -> None:
    going = await Going.start(p, rounds=2, pace=pace.PACE)
    await going.train(1, 10.0, who=TWO)
    await submit(p, await going.round(1), "tongji", 4.0)
    await submit(p, await going.round(2), "huashan", 12.0)
    assert (await going.completed()).contributors == THREE


async def test_models_for_single_hospitals_go_back_too_and_who_left_is_told_of_none(p: Platform) -> None:
    going = await Going.start(p, rounds=4, algorithm="fedamp", min_participants=2)

    async def told(number: int, attempt: int = 1) -> dict[str, ObjectRef | None]:
        """The model made for each hospital, as each was told."""
        return {hospital: one.personal for hospital, one in (await opened_each(p, number, attempt)).items()}

    async def train(number: int, attempt: int = 1, who: tuple[str, ...] = THREE) -> RoundCommitted:
        one = await going.round(number, attempt)
        for place, hospital in enumerate(who):
            assert (await submit(p, one, hospital, 10.0 * number + place)).succeeded
        return await going.committed(number)

    first = await train(1)
    then = await told(2)
    await train(2)
    three = await told(3)
    assert then != three and None not in then.values()
    assert (await p.send(WithdrawFromFederation(federation=going.federation), p.hospital("tongji"))).succeeded
    await train(3, who=TWO)
    await going.round(4)
    await going.back(1, first.model.sha256)
    again = await told(4, 2)
    assert again == {hospital: then[hospital] for hospital in TWO}
    await train(4, 2, TWO)
    assert (await going.completed()).hospitals == TWO


async def test_what_server_and_hospitals_remember_together_begins_anew_on_both_sides(p: Platform) -> None:
    """SCAFFOLD: c is the mean of all c_k. Nodes keep c_k of the last round only; a c of an earlier one would be wrong by it for good."""
    going = await Going.start(p, TWO, rounds=4, algorithm="scaffold")

    async def train(number: int, attempt: int = 1) -> RoundOpened:
        one = await going.round(number, attempt)
        for hospital in TWO:
            model = {"weight": np.full((64, 2), number, np.float32), "bias": np.full(2, number, np.float32)}
            path = p.folder / f"{hospital}-{number}-{attempt}"
            weights.save(model | {f"scaffold.dc/{name}": array for name, array in model.items()}, path)
            ref = await p.stores.scratch.put_file(path, file_digest(path)[0])
            about = {"federation": one.federation, "round": number, "attempt": attempt}
            assert (await p.send(SubmitUpdate(**about, update=ref, samples=10), p.hospital(hospital))).succeeded
        await going.committed(number)
        return one

    await train(1)
    two = await train(2)
    assert (two.state is not None, two.continues) == (True, dict.fromkeys(TWO, "1.1"))
    await going.round(3)
    await going.back(1, (await going.committed(1)).model.sha256)
    three = await train(3, 2)
    assert (three.state, three.continues) == (None, {}), "neither side has the other's half"
    four = await going.round(4)
    assert (four.state is not None, four.continues) == (True, dict.fromkeys(TWO, "3.2"))


async def test_privacy_of_undone_rounds_stays_spent_and_a_way_back_to_nothing_is_refused(p: Platform) -> None:
    privacy = Privacy(unit="hospital", epsilon="1.6", delta="1e-5", clip="3", noise="4")  # two attempts
    going = await Going.start(p, TWO, rounds=5, privacy=privacy.model_copy(update={"epsilon": "2.1"}))
    first = await going.train(1, 1.0)
    await going.train(2, 2.0)
    three = await going.round(3)
    seen = await view(p, going.federation)
    assert seen.privacy is not None and seen.privacy.attempts == 3
    assert "no round is left that would train" in await going.refused(0, initial(p)), "it would end with the first weights"
    assert (await view(p, going.federation)).rounds[-1].state == "open", "and nothing was changed"
    assert three.attempt == 1
    assert (await going.back(1, first.model.sha256)).undone == (2,)
    done = await going.completed()
    assert (done.rounds, done.undone, done.model) == (1, (2,), first.model)
    seen = await view(p, going.federation)
    assert seen.privacy is not None
    assert (seen.failure, seen.privacy.attempts) == ("privacy.budget", 3), "what was shown was shown"
    assert [one.round for one in trained(seen)] == [1]


async def test_back_again_from_where_it_went_back_to_but_not_forward_to_what_was_undone(p: Platform) -> None:
    """And a hospital that was away all the while takes part again: what it is told of begins with a model it never saw."""
    async with living(p, *TWO):
        going = await Going.start(p, rounds=6, lease_seconds=2)
        models = {1: (await going.train(1, 1.0)).model.sha256}
        for number in (2, 3):
            models[number] = (await going.train(number, float(number), who=TWO)).model.sha256
        await going.round(4)
        await going.back(2, models[2])
        assert "it was undone itself" in await going.refused(3, models[3])
        await going.round(4, 2)
        assert (await going.back(1, models[1])).undone == (2,)
        fourth = await going.train(4, 7.0, attempt=3, who=TWO)
        async with living(p, "tongji"):
            five = await going.round(5)
            assert (five.base, five.undoing) == (fourth.model, None)
            if "tongji" not in five.hospitals:
                await going.train(5, 8.0, who=TWO)
                five = await going.round(6)
            assert (five.hospitals, five.undoing) == (THREE, None)


@pytest.fixture
def failed() -> Iterator[list[str]]:
    """The handlers that steer, each of which dies once, after all it does and before that is committed."""
    dead, real = list[str](), {consumer.durable: consumer.handler for consumer in HANDLERS.consumers}
    for consumer in HANDLERS.consumers:
        if consumer.durable.endswith(("rollback-granted", "release-granted")) or QuarantineHospital in consumer.messages:

            async def dies(message: Any, uow: Any, durable: str = consumer.durable, real: Any = consumer.handler) -> Any:
                done = await real(message, uow)
                if uow.accounted and durable not in dead:
                    dead.append(durable)
                    raise ConnectionError("as if it died here")
                return done

            object.__setattr__(consumer, "handler", dies)
    yield dead
    for consumer in HANDLERS.consumers:
        object.__setattr__(consumer, "handler", real[consumer.durable])


async def test_what_dies_just_before_it_commits_comes_again_and_is_done_once(failed: list[str], p: Platform) -> None:
    going = await Going.start(p, rounds=4)
    first = await going.train(1, 1.0)
    await going.round(2)
    command = QuarantineHospital(federation=going.federation, hospital="tongji", reason="its scanner is miscalibrated")
    assert (await p.send(command, p.person("li", "researcher"), timeout=60)).result == {"state": "quarantined"}
    await going.train(2, 2.0, who=TWO)
    await going.round(3)
    await going.back(1, first.model.sha256)
    digest = next(one.release for one in (await view(p, going.federation)).participants if one.hospital == "tongji")
    assert digest is not None
    about = {"approval": "released", "action": "federation.release", "target": f"{going.federation}/tongji", "digest": digest}
    await p.publish(ApprovalGranted(**about, token=p.approval(**about)), source="governance")
    await p.wait(ParticipantReleased, timeout=60)
    third = await going.train(3, 5.0, attempt=2, who=TWO)
    four = await going.round(4)
    assert (four.base, four.hospitals) == (third.model, THREE)
    assert len(failed) == 3
    verbs = Counter(r["sub"] for r in await p.audited("federation"))
    assert [verbs[f"federation.{verb}"] for verb in ("quarantine", "release", "rollback")] == [1, 1, 1]
    assert [len(p.emitted(event)) for event in (ParticipantQuarantined, ParticipantReleased, FederationRolledBack)] == [1, 1, 1]
