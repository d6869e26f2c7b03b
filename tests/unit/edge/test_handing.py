"""Handing in: what the platform loses goes again as it was, whenever it says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, null, select, update
from tests.unit.edge.test_privacy import SETTINGS, opened
from tests.unit.federated.test_plan import plan

from medmesh.contracts.federation import RoundStored, SecureAdvanced, SecurePhase, UpdateLost
from medmesh.contracts.message import HospitalEvent, ObjectRef, encode, envelope
from medmesh.errors import Problem
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh_edge import chain, handing, inbox
from medmesh_edge.ports import Site, site
from medmesh_edge.rounds import Rounds
from medmesh_edge.tables import tasks

PLAN, EVENT = plan(), opened(plan(), 1)
LOST = UpdateLost(hospitals=("a",), federation="f", round=1, attempt=1)


class Platform:
    """A gateway that answers to the hand-in what it is told to."""

    def __init__(self, node: Site, *answers: str) -> None:
        self.node, self.answers, self.uploads = node, list(answers), 0

    async def command(self, method: str, path: str, document: Any, enclosed: Sequence[bytes]) -> dict[str, Any]:
        assert b"".join(enclosed) == b"weights"
        assert document["base"] == EVENT.base.sha256, "with which model it began, in what the node signs"
        self.uploads += 1
        answer = self.answers.pop(0)
        if answer == "missing":
            raise Problem("objects.missing", sha256="0" * 64)
        if answer == "lost meanwhile":
            await lose(self.node)
        return {"late": False}


async def lose(node: Site) -> None:
    """The platform says so."""
    await told(node, LOST)


async def told(node: Site, fact: HospitalEvent) -> None:
    await inbox.take(node, 1 + await inbox.cursor(node), json.loads(encode(envelope(fact, source="federation"))))


async def state(node: Site) -> str:
    async with node.unit() as uow:
        return str((await uow.all(select(tasks.c.state)))[0].state)


async def hand_in(node: Site, platform: Any) -> None:
    """What was trained, as the loop does."""
    async with node.unit() as uow:
        (row,) = await uow.all(select(tasks))
    await handing.send(node, platform, PLAN, EVENT, handing.Trained.read(row), lambda done, total: None)


@pytest.fixture
async def trained(private: Path) -> Any:
    SETTINGS.save(private)
    async with site(private) as node:
        ref = await node.objects.put(b"weights")
        values = {"kind": "train", "event": json.loads(chain.written(EVENT)), "samples": 3, "metrics": {}, "trained": 1, "code": ""}
        async with node.unit() as uow:
            about = {"federation": "f", "round": 1, "attempt": 1, "state": "trained", "update": ref.model_dump(), "at": uow.now}
            await uow.execute(insert(tasks).values(**values, **about))
        yield node


async def test_one_that_is_lost_after_it_was_sent_is_sent_again_and_once(trained: Site) -> None:
    platform = Platform(trained, "taken", "taken")
    await hand_in(trained, platform)
    assert await state(trained) == "sent"
    await lose(trained)
    assert await state(trained) == "trained"
    await hand_in(trained, platform)
    assert (await state(trained), platform.uploads) == ("sent", 2)


async def test_one_that_is_lost_before_its_answer_is_here_is_not_taken_for_sent(trained: Site) -> None:
    platform = Platform(trained, "lost meanwhile", "taken")
    await hand_in(trained, platform)
    assert await state(trained) == "trained"
    await hand_in(trained, platform)
    assert await state(trained) == "sent"


async def test_one_that_is_gone_before_it_was_looked_at_is_uploaded_once_more(trained: Site) -> None:
    platform = Platform(trained, "missing", "taken")
    await hand_in(trained, platform)
    assert (await state(trained), platform.uploads) == ("sent", 2)
    with pytest.raises(Problem):
        await hand_in(trained, Platform(trained, "missing", "missing"))


async def test_what_left_nothing_here_is_not_sent_again_whoever_asks(trained: Site) -> None:
    """An evaluation in the clear has no update: a platform that asks for one would stop the node's rounds."""
    async with trained.unit() as uow:
        await uow.execute(update(tasks).values(kind="evaluate", state="sent", update=null()))
    await lose(trained)
    assert await state(trained) == "sent"


async def test_it_is_deleted_only_once_the_disk_knows_that_its_round_is_stored(trained: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    known, remove, engine = list[bool](), EncryptedStore.remove, trained.database.engine

    def removed(self: EncryptedStore, sha256: str) -> None:
        known.append(engine.settled)  # type: ignore[attr-defined]
        remove(self, sha256)

    monkeypatch.setattr(EncryptedStore, "remove", removed)
    await told(trained, RoundStored(hospitals=("a",), federation="f", round=1, attempt=1, model=ObjectRef(sha256="0" * 64, bytes=1)))
    assert (await state(trained), engine.settled) == ("releasable", False)  # type: ignore[attr-defined]
    assert not await Rounds(trained, None).step()  # type: ignore[arg-type]
    assert (await state(trained), known) == ("released", [True])


async def test_it_waits_for_a_round_that_comes_soon_and_else_is_deleted_all_the_same(trained: Site) -> None:
    await told(trained, RoundStored(hospitals=("a",), federation="f", round=1, attempt=1, model=ObjectRef(sha256="0" * 64, bytes=1)))
    rounds, bell = Rounds(trained, None, linger=0.3), trained.changed.of("rounds")  # type: ignore[arg-type]
    bell.clear()
    assert not await rounds.step()
    assert await state(trained) == "releasable"
    async with asyncio.timeout(30):
        await bell.wait()  # which it rings itself: nobody else has to come
    assert not await rounds.step()
    assert await state(trained) == "released"


async def test_a_commit_that_waited_for_the_disk_meanwhile_is_not_waited_for_again(trained: Site) -> None:
    await told(trained, RoundStored(hospitals=("a",), federation="f", round=1, attempt=1, model=ObjectRef(sha256="0" * 64, bytes=1)))
    database = trained.database
    before = database.mark
    assert not database.engine.settled  # type: ignore[attr-defined]
    await database.settle(before)
    assert database.engine.settled  # type: ignore[attr-defined]
    async with trained.unit(durable=False) as uow:
        await uow.execute(update(tasks).values(code="later"))
    await database.settle(before)
    assert not database.engine.settled, "what was there before is on the disk"  # type: ignore[attr-defined]
    await database.settle(database.mark)
    assert database.engine.settled  # type: ignore[attr-defined]


async def test_one_that_another_round_may_have_to_send_again_is_kept(trained: Site) -> None:
    """Equal bytes are one object: a model that did not change is the same update twice."""
    async with trained.unit() as uow:
        (row,) = await uow.all(select(tasks))
        again = {"kind": "train", "event": row.event, "samples": 3, "metrics": {}, "trained": 1, "code": ""}
        again |= {"federation": "f", "round": 2, "attempt": 1, "state": "sent", "update": row.update, "at": uow.now}
        await uow.execute(insert(tasks).values(**again))
    await told(trained, RoundStored(hospitals=("a",), federation="f", round=1, attempt=1, model=ObjectRef(sha256="0" * 64, bytes=1)))
    assert not await Rounds(trained, None).step()  # type: ignore[arg-type]
    assert await state(trained) == "released"
    assert await trained.objects.size(row.update["sha256"]) == len(b"weights")


async def test_a_phase_of_a_secure_sum_wakes_who_answers_it_and_nothing_else_does(trained: Site) -> None:
    bell = trained.changed.of("secure")
    bell.clear()
    await told(trained, RoundStored(hospitals=("a",), federation="f", round=1, attempt=1, model=ObjectRef(sha256="0" * 64, bytes=1)))
    assert not bell.is_set()
    place = {"federation": "f", "round": 1, "attempt": 1, "plan_hash": EVENT.plan_hash}
    await told(trained, SecureAdvanced(hospitals=("a",), **place, phase=SecurePhase.SHARES, messages={}))
    assert bell.is_set()
