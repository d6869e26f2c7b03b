"""What a node hears, decides and gives leaves its record at the hospital, and what is not about it leaves none."""

from __future__ import annotations

import asyncio
import html
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock, patch

import pytest
from click.testing import CliRunner
from sqlalchemy import insert, select
from tests.unit.edge.test_privacy import SETTINGS, opened
from tests.unit.federated.test_plan import plan

from medmesh.cli.edge import edge
from medmesh.contracts.federation import (
    FederationFailed,
    FederationInvited,
    FederationPaused,
    FederationResumed,
    FederationRolledBack,
    FederationWaiting,
    InvitationExpired,
    ModelGone,
    ParticipantWithdrew,
    RoundOpened,
    RoundStored,
    UpdateFlagged,
)
from medmesh.contracts.message import Event, ObjectRef, encode, envelope
from medmesh.contracts.plan import plan_hash
from medmesh.contracts.registry import ContributorsWithdrew, ModelReleased, ModelWithdrawn
from medmesh.errors import Problem, catalogue
from medmesh.serving.repository import Repository
from medmesh_edge import api, clients, consent, inbox, models
from medmesh_edge.ports import Site, site
from medmesh_edge.tables import federations, tasks

PLAN = plan()


@pytest.fixture
async def node(private: Path) -> AsyncIterator[Site]:
    SETTINGS.save(private)
    async with site(private) as opened:
        yield opened


async def told(node: Site, *facts: Event, source: str = "federation") -> None:
    start = await inbox.cursor(node)
    for place, fact in enumerate(facts, start + 1):
        await inbox.take(node, place, json.loads(encode(envelope(fact, source=source))))


async def records(node: Site) -> list[dict[str, Any]]:
    return [json.loads(body) for _, _, body in await node.database.unreceipted(1000)]


async def said(node: Site) -> list[tuple[str, int, str]]:
    return [(record["sub"], record["out"], record["why"]) for record in await records(node)]


async def test_an_invitation_is_recorded_and_one_whose_plan_is_another_is_refused(node: Site) -> None:
    package = ObjectRef(sha256=PLAN.package, bytes=1)
    good = FederationInvited(hospitals=("a",), federation="f", plan=PLAN, plan_hash=plan_hash(PLAN), package=package)
    await told(node, good.model_copy(update={"plan_hash": "9" * 64}), good)
    assert await said(node) == [("federation.invitation", 8, "federation.plan_changed"), ("federation.invitation", 0, "")]
    assert (await records(node))[1]["entities"][0] == {"type": "federation", "id": "f", "ver": "", "digest": plan_hash(PLAN)}


async def test_a_round_that_is_not_ours_and_an_update_that_is_found_wrong_are_recorded(node: Site) -> None:
    stranger = cast(RoundOpened, opened(PLAN, 1))
    flagged = UpdateFlagged(hospitals=("a",), federation="f", round=2, attempt=1, hospital="a", flags=("unchanged",), excluded=True)
    await told(node, stranger, flagged, flagged.model_copy(update={"hospital": "b"}))
    assert await said(node) == [("federation.round", 8, "federation.not_assigned"), ("federation.flag", 4, "unchanged")]
    assert (await records(node))[1]["detail"] == {"round": 2, "excluded": True}


async def test_who_withdraws_is_recorded_once_and_who_takes_no_part_cannot(node: Site) -> None:
    with pytest.raises(Problem) as caught:
        await consent.withdraw(node, "f", "")
    assert caught.value.code == "request.not_found"
    values = {"federation": "f", "plan": PLAN.model_dump(mode="json"), "plan_hash": plan_hash(PLAN), "package": {}, "reason": ""}
    async with node.unit() as uow:
        await uow.execute(insert(federations).values(**values, state="running", at=uow.now))
    for _ in range(2):
        await consent.withdraw(node, "f", "a patient's wish")
    assert await said(node) == [("federation.withdraw", 0, "")]
    assert "wish" not in repr(await records(node)), "the reason is the hospital's"


@pytest.mark.parametrize(("language", "words"), [("en", "at most 2 rounds"), ("zh", "至多 2 轮")])
async def test_what_leaving_cannot_undo_is_said_before_it_is_asked_for_and_the_platforms_number_after(
    node: Site, private: Path, monkeypatch: pytest.MonkeyPatch, language: str, words: str
) -> None:
    values = {"federation": "f", "plan": PLAN.model_dump(mode="json"), "plan_hash": plan_hash(PLAN), "package": {}, "reason": ""}
    task: dict[str, Any] = {"federation": "f", "event": {}, "samples": 1, "metrics": {}, "trained": 1, "code": ""}
    async with node.unit() as uow:
        await uow.execute(insert(federations).values(**values, state="completed", at=uow.now))
        for number, kind, state in (
            (1, "train", "released"),
            (2, "train", "releasable"),
            (3, "train", "superseded"),
            (4, "evaluate", "released"),
        ):
            await uow.execute(insert(tasks).values(**task, round=number, attempt=1, kind=kind, state=state, at=uow.now))
    monkeypatch.setenv("MEDMESH_LANG", language)
    typed = ["withdraw", "--folder", str(private), "f"]
    refused = await asyncio.to_thread(CliRunner().invoke, edge, typed, input="n\n")
    assert refused.exit_code == 1
    before, _, _ = refused.output.partition("f for good?" if language == "en" else "确定永久退出")
    assert (words in before, await _state_of(node)) == (True, "completed"), refused.output
    done = await asyncio.to_thread(CliRunner().invoke, edge, [*typed, "--yes"])
    assert (done.exit_code, done.output.count("2"), await _state_of(node)) == (0, 2, "withdrawn"), done.output
    said = [line for line in done.output.splitlines() if any("\u4e00" <= sign <= "\u9fff" for sign in line)]
    assert len(said) == (0 if language == "en" else len(done.output.splitlines())), "one language"
    about: dict[str, Any] = {"hospitals": ("a", "b"), "federation": "f"}
    await told(node, ParticipantWithdrew(**about, hospital="a", rounds=1), ParticipantWithdrew(**about, hospital="b", rounds=7))
    listed = await asyncio.to_thread(CliRunner().invoke, edge, ["federations", "--folder", str(private)])
    assert [one["part"] for one in json.loads(listed.output)] == [1]
    await told(node, FederationFailed(hospitals=("a", "b"), federation="f", code="federation.quorum"))
    assert await _state_of(node) == "withdrawn", "whatever becomes of it"


async def _state_of(node: Site) -> str:
    async with node.unit() as uow:
        return str((await uow.execute(select(federations.c.state))).scalar_one())


async def test_a_client_of_the_images_is_made_and_ended_on_record_and_its_token_is_in_none(node: Site) -> None:
    token = await clients.create(node, "viewer", "brain", "original", ("read",), 30)
    with pytest.raises(Problem):
        await clients.create(node, "viewer", "brain", "clean", ("read",), 30)
    await clients.revoke(node, "viewer")
    with pytest.raises(Problem):
        await clients.revoke(node, "viewer")
    assert await said(node) == [("dicomweb.token_create", 0, ""), ("dicomweb.token_revoke", 0, "")]
    made, ended = await records(node)
    assert made["entities"][0]["id"] == ended["entities"][0]["id"] == "a/brain"
    assert made["detail"] == {"client": "viewer", "realm": "original", "rights": "read", "days": 30}
    assert token not in repr([made, ended])


async def test_a_model_that_was_withdrawn_leaves_the_node_on_record(node: Site) -> None:
    released = ModelReleased(hospitals=("a",), release="r-1", model="mri", version=3, manifest="", signature="", approval="")
    withdrawn = ModelWithdrawn(hospitals=("a",), model="mri", version=3, reason="drift")
    await told(node, released, withdrawn, source="registry")
    repository = Repository(node.layout.models)
    for _ in range(2):
        assert not await models.install_waiting(node, cast(Any, None), repository)
    removed = [record for record in await records(node) if record["sub"] == "model.remove"]
    assert [(record["out"], record["entities"][0]["id"], record["entities"][0]["ver"]) for record in removed] == [(0, "mri", "3")]


@pytest.mark.parametrize(
    ("language", "words"),
    [("en", "model mri, version 3: renji, tongji."), ("zh", "模型 mri 版本 3 所属联邦的医院：renji, tongji")],
)
async def test_who_left_of_those_in_an_installed_model_is_on_the_page(node: Site, language: str, words: str) -> None:
    about: dict[str, Any] = {"hospitals": ("a",), "model": "mri"}
    for version in (2, 3):
        fact = ModelReleased(**about, release=f"r-{version}", version=version, manifest="", signature="", approval="")
        await told(node, fact, source="registry")
    before = await _page(node, language)
    assert "renji" not in before and "mri" in before
    # In whatever order they come, and again.
    for left in (("renji", "tongji"), ("renji",), ("renji",)):
        await told(node, ContributorsWithdrew(**about, version=3, withdrawn=left), source="registry")
    page = await _page(node, language)
    assert words in page and page.count("renji") == 1
    assert [one["withdrawn"] for one in (await _status(node))["models"]] == [[], ["renji", "tongji"]]


@pytest.mark.parametrize("after", ["gone back", "there again"])
async def test_that_a_federation_waits_for_people_is_on_the_page_until_it_does_not(node: Site, after: str) -> None:
    values = {"federation": "f", "plan": PLAN.model_dump(mode="json"), "plan_hash": plan_hash(PLAN), "package": {}, "reviews": []}
    async with node.unit() as uow:
        await uow.execute(insert(federations).values(**values, state="running", reason="", at=uow.now))
    page = _page_of(node)
    assert [await page(tongue) for tongue in ("en", "zh")] == [False, False]
    await told(node, ModelGone(hospitals=("a",), federation="f", round=2, why="noise"))
    assert [await page(tongue) for tongue in ("en", "zh")] == [True, True]
    model = ObjectRef(sha256="0" * 64, bytes=1)
    about = {"hospitals": ("a",), "federation": "f"}
    back = FederationRolledBack(**about, round=1, undone=(2,), model=model)
    await told(node, back if after == "gone back" else RoundStored(**about, round=2, attempt=1, model=model))
    assert [await page(tongue) for tongue in ("en", "zh")] == [False, False]


def _page_of(at: Site) -> Callable[[str], Awaitable[bool]]:
    """Whether the node's page says that it waits."""
    words = catalogue()["federation.waits"]

    async def says(tongue: str) -> bool:
        async with at.unit() as uow:
            (row,) = await uow.all(select(federations))
        found = {"hospital": "a", "connected": True, "datasets": {}, "pipelines": [], "rounds": [], "models": [], "log": None}
        found |= {"environments": [], "work": []}
        shown = api._page(found | {"federations": [{"federation": "f", "state": row.state, "reason": row.reason}]}, tongue)
        return html.escape(words.zh if tongue == "zh" else words.en) in shown

    return says


async def _page(at: Site, tongue: str) -> str:
    return api._page(await _status(at), tongue)


async def _status(at: Site) -> dict[str, Any]:
    running = SimpleNamespace(
        site=at, connected=True, last_problem=None, programs=SimpleNamespace(state=None), rounds=SimpleNamespace(doing={})
    )
    with patch.object(api.continuity, "present", AsyncMock(return_value=None)):
        return await api.status(cast(Any, running))


async def test_what_a_federation_waits_for_and_why_it_was_stopped_is_shown_at_the_hospital(node: Site) -> None:
    values = {"plan": PLAN.model_dump(mode="json"), "plan_hash": plan_hash(PLAN), "package": {}, "reason": ""}
    async with node.unit() as uow:
        for name, state in (("f", "running"), ("g", "invited"), ("h", "accepted"), ("i", "declined")):
            await uow.execute(insert(federations).values(**values, federation=name, state=state, at=uow.now))

    async def shown() -> dict[str, tuple[str, str, str]]:
        async with node.unit() as uow:
            return {row.federation: (row.state, row.reason, row.said) for row in await uow.all(select(federations))}

    about: dict[str, Any] = {"hospitals": ("a",), "federation": "f"}
    await told(node, FederationWaiting(**about, since=datetime.now(UTC), missing=("b",)))
    assert (await shown())["f"] == ("running", inbox.QUORUM, "")
    for language in ("en", "zh"):
        page = await _page(node, language)
        assert html.escape(getattr(catalogue()[inbox.QUORUM], language)) in page
    await told(node, cast(RoundOpened, opened(PLAN, 1)).model_copy(update=about))
    assert (await shown())["f"] == ("running", "", ""), "it goes on"
    await told(node, FederationPaused(**about, reason="the scanner is serviced"))
    await told(node, FederationWaiting(**about, since=datetime.now(UTC), missing=("b",)))
    assert (await shown())["f"] == ("paused", "", "the scanner is serviced"), "paused, it waits for people"
    assert "the scanner is serviced" in await _page(node, "zh")
    await told(node, FederationResumed(**about))
    assert (await shown())["f"] == ("running", "", "")
    await told(node, FederationFailed(**about, code="federation.cancelled", reason="no money"))
    assert (await shown())["f"] == ("failed", "federation.cancelled", "no money")
    await told(node, *(InvitationExpired(hospitals=("a",), federation=name) for name in "ghi"))
    await told(node, *(FederationFailed(hospitals=("a",), federation=name, code="federation.quorum") for name in "ghi"))
    assert [(await shown())[name][0] for name in "ghi"] == ["expired", "expired", "declined"]
    with pytest.raises(Problem) as caught:
        await consent.withdraw(node, "g", "")
    assert caught.value.code == "federation.not_taking_part"
