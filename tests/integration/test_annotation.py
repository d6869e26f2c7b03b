"""Annotation on real servers: projects, claims, labels, reviews, exports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from tests.platform import Platform, platform

from medmesh.canonical import canonical
from medmesh.contracts.annotation import (
    CreateProject,
    ExportLabels,
    GetLabelExport,
    GetProject,
    Item,
    LabelExport,
    LabelsExported,
    NextItem,
    ProjectCreated,
    ProjectView,
    ReviewLabel,
    SubmitLabel,
)
from medmesh.contracts.governance import ApprovalGranted, ApprovalRevoked
from medmesh.contracts.message import Command, ObjectRef, OperationFinished, new_id
from medmesh.contracts.system import DeadLetters, ListDeadLetters
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.store.objects.port import load
from medmesh_annotation.service import SERVICE
from medmesh_annotation.tables import exports, items, readings

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLASSES = ("normal", "pneumonia")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(servers: RunningServers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with platform(servers, tmp_path_factory.mktemp("annotation"), SERVICE) as made:
        yield made


@dataclass
class Work:
    """One project and the people on it; what an action answers is the state the item is in, or the code of the refusal."""

    p: Platform
    project: str

    async def wanted(self, count: int, **changed: Any) -> CreateProject:
        listed = [
            {"item": f"i-{n:03}", "object": {"sha256": f"{n:064x}", "bytes": n, "media_type": "image/png"}, "label": None}
            for n in range(count)
        ]
        content = await self.p.stores.kept.put(canonical({"items": listed}), "application/json")
        values = {"project": self.project, "dataset": "cxr", "version": 1, "content": content, "purpose": "triage", "classes": CLASSES}
        return CreateProject.model_validate(values | changed)

    async def send(self, command: Command, who: str, *roles: str, id: str | None = None) -> OperationFinished:
        return await self.p.send(command, self.p.person(who, *roles), id=id)

    async def do(self, command: Command, who: str, *roles: str) -> str:
        done = await self.send(command, who, *roles)
        return str((done.result or {})["state"] if done.succeeded else (done.problem or {})["code"])

    async def create(self, count: int) -> None:
        done = await self.send(await self.wanted(count), "zhao", "researcher")
        assert done.result == {"project": self.project, "items": count}

    async def next(self, who: str) -> str | None:
        return (await self.p.ask(NextItem(project=self.project), Item, self.p.person(who, "annotator"))).item

    async def submit(self, who: str, item: str | None, label: str = "normal", role: str = "annotator") -> str:
        return await self.do(SubmitLabel(project=self.project, item=str(item), label=label), who, role)

    async def label(self, who: str, label: str = "normal") -> str:
        item = await self.next(who)
        assert await self.submit(who, item, label) == "labelled"
        return str(item)

    async def review(self, who: str, item: str, accept: bool = True, comment: str = "", roles: tuple[str, ...] = ("reviewer",)) -> str:
        return await self.do(ReviewLabel(project=self.project, item=item, accept=accept, comment=comment), who, *roles)

    async def export(self) -> dict[str, Any]:
        done = await self.send(ExportLabels(project=self.project), "maker", "researcher")
        return done.result or {}

    async def approve(self, export: dict[str, Any], id: str, **changed: Any) -> None:
        """A grant as governance sends it."""
        values = {"action": "annotation.export", "target": export["target"], "digest": export["digest"], **changed}
        token = self.p.approval(values["action"], values["target"], values["digest"], approval=id)
        await self.p.publish(ApprovalGranted(approval=id, token=token, **values))

    async def standing(self, version: int, who: str = "maker") -> LabelExport:
        return await self.p.ask(GetLabelExport(project=self.project, version=version), LabelExport, self.p.person(who, "researcher"))

    async def exported_as(self, version: int) -> LabelExport:
        async with asyncio.timeout(20):
            while (found := await self.standing(version)).state == "waiting":
                await asyncio.sleep(0.02)
        return found

    async def states(self) -> dict[str, int]:
        view = await self.p.ask(GetProject(project=self.project), ProjectView, self.p.person("wang", "annotator"))
        return {state: count for state, count in view.states.items() if count}

    async def expire(self) -> None:
        async with self.p.runtimes["annotation"].unit() as uow:
            mine = (items.c.project == self.project) & items.c.claimed_by.is_not(None)
            await uow.execute(update(items).where(mine).values(claim_expires=uow.now - timedelta(seconds=1)))

    async def readings(self) -> list[tuple[Any, ...]]:
        async with self.p.runtimes["annotation"].unit() as uow:
            wanted = select(readings.c.label, readings.c.accepted, readings.c.comment).where(readings.c.project == self.project)
            return [tuple(row) for row in await uow.all(wanted.order_by(readings.c.number))]

    async def audited(self, verb: str) -> list[dict[str, Any]]:
        records = [r for r in await self.p.audited("annotation") if r["sub"] == verb]
        return [r for r in records if any(entity["id"] == self.project for entity in r["entities"])]

    def created(self) -> list[ProjectCreated]:
        return [e.data for e in self.p.emitted(ProjectCreated) if e.data.project == self.project]

    def exported(self) -> list[LabelsExported]:
        return [e.data for e in self.p.emitted(LabelsExported) if e.data.project == self.project]


@pytest.fixture
def w(shared: Platform, unique: str) -> Work:
    return Work(shared, f"chest-{unique}")


async def test_a_project_holds_every_item_and_making_it_again_changes_nothing(w: Work) -> None:
    wanted = await w.wanted(3)
    answers = await asyncio.gather(*(w.send(wanted, "zhao", "researcher") for _ in range(4)))
    assert [done.result for done in answers] == [{"project": w.project, "items": 3}] * 4
    view = await w.p.ask(GetProject(project=w.project), ProjectView, w.p.person("zhao", "researcher"))
    assert (view.dataset, view.version, view.classes) == ("cxr", 1, CLASSES)
    assert view.states == {"unlabelled": 3, "labelled": 0, "returned": 0, "accepted": 0}
    (record,) = await w.audited("annotation.create")
    assert record["agents"][0]["who"] == "person:zhao"
    assert wanted.content.sha256 in [entity["digest"] for entity in record["entities"]]
    assert await w.do(wanted.model_copy(update={"classes": ("normal", "other")}), "zhao", "researcher") == "annotation.taken"
    assert [event.items for event in w.created()] == [3]


async def test_what_no_project_can_stand_on_is_refused_and_leaves_nothing(w: Work) -> None:
    malformed = await w.p.stores.kept.put(b'{"items":[{"item":"i-1"}]}')
    for changed, code in (
        ({"content": malformed}, "annotation.content_malformed"),
        ({"content": ObjectRef(sha256="0" * 64, bytes=10)}, "objects.missing"),
        ({"classes": ("normal",)}, "annotation.schema"),
        ({"purpose": " "}, "request.invalid"),
        ({"version": 0}, "request.invalid"),
    ):
        assert await w.do(await w.wanted(1, **changed), "zhao", "researcher") == code
    assert await w.do(await w.wanted(1), "wang", "annotator", "reviewer") == "access.denied"
    with pytest.raises(Problem) as caught:
        await w.states()
    assert caught.value.code == "request.not_found"
    assert w.created() == []


async def test_an_item_stays_with_who_asked_until_it_is_labelled(w: Work) -> None:
    await w.create(2)
    first = await w.next("wang")
    assert {await w.next("wang") for _ in range(3)} == {first}
    assert {first, await w.next("li")} == {"i-000", "i-001"}
    assert await w.next("chen") is None
    assert await w.label("wang") == first
    assert await w.next("wang") is None, "what they labelled does not come back"


async def test_two_windows_of_one_person_show_one_item(w: Work) -> None:
    await w.create(10)
    assert len(set(await asyncio.gather(*(w.next("wang") for _ in range(8))))) == 1


async def test_eight_people_who_ask_at_once_never_get_the_same_item(w: Work) -> None:
    await w.create(50)
    handed: list[str] = []

    async def work(who: str) -> None:
        while (item := await w.next(who)) is not None:
            handed.append(item)
            assert await w.submit(who, item) == "labelled"

    people = [f"reader-{n}" for n in range(8)]
    at_once = await asyncio.gather(*(w.next(who) for who in people))
    assert len(set(at_once) - {None}) == 8
    await asyncio.gather(*(work(who) for who in people))
    assert len(handed) == len(set(handed)) == 50
    assert await w.states() == {"labelled": 50}


async def test_an_expired_claim_goes_to_the_next_who_asks_or_back_to_who_comes_late(w: Work) -> None:
    await w.create(1)
    item = await w.next("wang")
    assert await w.next("li") is None
    await w.expire()
    assert await w.submit("wang", item) == "annotation.not_yours"
    assert await w.next("wang") == item, "nobody took it: it is claimed anew"
    await w.expire()
    assert await w.next("li") == item
    assert await w.submit("wang", item) == "annotation.not_yours"
    assert await w.submit("li", item) == "labelled"


async def test_a_label_needs_a_claim_a_class_a_role_and_an_item(w: Work) -> None:
    await w.create(2)
    item = await w.next("wang")
    assert item == "i-000"
    assert await w.submit("li", item) == "annotation.not_yours"
    assert await w.submit("wang", "i-001") == "annotation.not_yours"
    assert await w.submit("wang", item, "fracture") == "annotation.class_unknown"
    assert await w.submit("wang", item, role="clinician") == "access.denied"
    for unknown in (Work(w.p, "nowhere"), w):
        for name in ("i-9", "i\x00"):
            assert await unknown.submit("wang", name) == "request.not_found"
            assert await unknown.review("li", name) == "request.not_found"
    assert await w.do(ExportLabels(project="nowhere"), "zhao", "researcher") == "request.not_found"
    with pytest.raises(Problem) as caught:
        await Work(w.p, "nowhere").next("wang")
    assert caught.value.code == "request.not_found"
    assert await w.states() == {"unlabelled": 2}


async def test_a_label_sent_twice_is_one_reading(w: Work) -> None:
    await w.create(1)
    label, once = SubmitLabel(project=w.project, item=str(await w.next("wang")), label="normal"), new_id()
    for id in (once, once, new_id()):
        assert (await w.send(label, "wang", "annotator", id=id)).succeeded
    assert await w.readings() == [("normal", None, "")]
    assert len(await w.audited("annotation.label")) == 1


async def test_the_reader_never_reviews_their_own_label(w: Work) -> None:
    await w.create(1)
    item = await w.label("wang")
    assert await w.review("wang", item, roles=("annotator", "reviewer")) == "annotation.own_label"
    refused = (await w.p.audited("annotation"))[-1]
    assert (refused["sub"], refused["out"], refused["why"]) == ("access.denied", 8, "annotation.own_label")
    assert refused["policy"]["rules"][-1] == "object.reviewer-is-not-reader"
    assert await w.review("li", item, roles=("annotator",)) == "access.denied"
    assert await w.review("li", item) == "accepted"
    assert await w.review("li", item) == "accepted", "the same again is harmless"
    assert await w.review("chen", item) == "annotation.not_labelled"
    assert len(await w.audited("annotation.review")) == 1


async def test_the_database_too_refuses_a_reader_as_reviewer(w: Work) -> None:
    await w.create(1)
    await w.label("wang")
    reading = update(readings).where(readings.c.project == w.project)
    with pytest.raises(IntegrityError, match="reviewer_is_not_reader"):
        async with w.p.runtimes["annotation"].unit() as uow:
            await uow.execute(reading.values(reviewer=readings.c.reader, accepted=True))
    async with w.p.runtimes["annotation"].unit() as uow:
        changed = await uow.execute(reading.values(reviewer="person:li@platform", accepted=True))
    assert changed.rowcount == 1, "another person's name goes in"


async def test_what_is_sent_back_returns_to_its_reader_alone_and_the_first_reading_is_kept(w: Work) -> None:
    await w.create(2)
    item = await w.label("wang", "normal")
    assert await w.review("li", item, accept=False, comment="左下肺叶") == "returned"
    assert await w.next("chen") == "i-001"
    assert await w.next("li") is None, "not to the reviewer either"
    mine = await w.p.ask(NextItem(project=w.project), Item, w.p.person("wang", "annotator"))
    assert mine.comment == "左下肺叶"
    assert mine.object is not None
    assert (mine.item, mine.state) == (item, "returned")
    assert await w.label("wang", "pneumonia") == item
    assert await w.review("li", item) == "accepted"
    assert await w.readings() == [("normal", False, "左下肺叶"), ("pneumonia", True, "")]
    assert "左下肺叶" not in json.dumps(await w.p.audited("annotation"), ensure_ascii=False), "free text stays out of the log"


async def accepted(w: Work, count: int = 2) -> list[str]:
    """A project with one more item than were read and accepted."""
    await w.create(count + 1)
    read = [await w.label("wang", label) for label in ("normal", "pneumonia", "normal")[:count]]
    for item in read:
        assert await w.review("li", item) == "accepted"
    return read


async def test_an_export_freezes_what_is_accepted_and_leaves_only_after_somebody_else_agreed(w: Work) -> None:
    await w.create(3)
    read = [await w.label("wang", label) for label in ("normal", "pneumonia", "normal")]
    assert await w.do(ExportLabels(project=w.project), "maker", "researcher") == "annotation.nothing_accepted"
    for item in read[:2]:
        assert await w.review("li", item) == "accepted"
    first, *others = await asyncio.gather(*(w.export() for _ in range(4)))
    assert others == [first] * 3, "nothing new: the same version"
    assert (first["version"], first["accepted"], first["state"]) == (1, 2, "waiting")
    waiting = await w.standing(1)
    assert (waiting.state, waiting.labels) == ("waiting", None), "nobody is told where it is"
    assert w.exported() == []
    await w.approve(first, f"{w.project}-1")
    ref = (await w.exported_as(1)).labels
    assert ref is not None
    data = await load(w.p.stores.kept, ref)
    document = json.loads(data)
    assert data == canonical(document)
    assert {k: document[k] for k in ("dataset", "version", "classes")} == {"dataset": "cxr", "version": 1, "classes": list(CLASSES)}
    assert [(i["item"], i["label"], i["object"]["bytes"]) for i in document["items"]] == [("i-000", "normal", 0), ("i-001", "pneumonia", 1)]
    assert b"wang" not in data
    with pytest.raises(Problem) as caught:
        await w.standing(1, who="zhao")
    assert caught.value.code == "request.not_found"

    assert await w.review("li", read[2]) == "accepted"
    second = await w.export()
    assert (second["version"], second["accepted"]) == (2, 3)
    await w.approve(second, f"{w.project}-2")
    again = (await w.exported_as(2)).labels
    assert again is not None
    assert await load(w.p.stores.kept, ref) == data, "the first stays what it was"
    assert [(e.version, e.accepted, e.labels) for e in w.exported()] == [(1, 2, ref), (2, 3, again)]
    records = await w.audited("annotation.export")
    assert [(r["act"], r["approval"].get("id", "")) for r in records] == [
        ("C", ""),
        ("E", f"{w.project}-1"),
        ("C", ""),
        ("E", f"{w.project}-2"),
    ]
    assert {r["entities"][1]["digest"] for r in records} == {ref.sha256, again.sha256}


async def dead(w: Work, approval: str) -> str:
    """The code under which a grant was given up."""
    async with asyncio.timeout(20):
        while True:
            letters = await w.p.ask(ListDeadLetters(service="annotation"), DeadLetters, w.p.service("operator"))
            for letter in letters.letters:
                if letter.event == approval:
                    return letter.code
            await asyncio.sleep(0.05)


async def test_a_grant_of_other_bytes_of_another_maker_expired_or_used_lets_nothing_out(w: Work) -> None:
    await accepted(w)
    export = await w.export()
    p, target, digest = w.p, export["target"], export["digest"]

    async def given(approval: str, token: str, **changed: Any) -> str:
        values = {"action": "annotation.export", "target": target, "digest": digest, **changed}
        return await dead(w, await p.publish(ApprovalGranted(approval=approval, token=token, **values)))

    def token(approval: str, **changed: Any) -> str:
        values = {"action": "annotation.export", "target": target, "digest": digest, "minutes": 60, **changed}
        return p.approval(approval=approval, **values)

    a = w.project
    assert await given(f"{a}-1", token(f"{a}-1", digest="f" * 64)) == "security.approval_other"
    assert await given(f"{a}-2", token(f"{a}-2", target=f"{a}/7")) == "security.approval_other"
    assert await given(f"{a}-3", token(f"{a}-3", action="model.release")) == "security.approval_other"
    assert await given(f"{a}-4", token(f"{a}-4", minutes=-10)) == "security.approval_expired"
    assert await given(f"{a}-5", token(f"{a}-5"), target=f"{a}/7") == "request.not_found"
    theirs = (await w.send(ExportLabels(project=w.project), "zhao", "researcher")).result or {}
    other = token(f"{a}-6", target=theirs["target"], digest=theirs["digest"])
    assert await given(f"{a}-6", other, target=theirs["target"], digest=theirs["digest"]) == "security.approval_other", (
        "maker's, not zhao's"
    )
    assert (await w.standing(1)).state == "waiting"
    good = token(f"{a}-7")
    await p.publish(ApprovalGranted(approval=f"{a}-7", action="annotation.export", target=target, digest=digest, token=good))
    assert (await w.exported_as(1)).state == "exported"
    assert await given(f"{a}-7", good) == "approval.spent"
    assert len(w.exported()) == 1


async def test_what_was_taken_back_or_refused_never_leaves_and_a_new_request_is_a_new_version(w: Work) -> None:
    await accepted(w)
    export = await w.export()
    about = {"action": "annotation.export", "target": export["target"], "digest": export["digest"]}
    await w.p.publish(ApprovalRevoked(approval=f"{w.project}-other", **{**about, "digest": "f" * 64}))
    await w.p.publish(ApprovalRevoked(approval=f"{w.project}-1", **about))
    assert (await w.exported_as(1)).state == "closed"
    closed = [
        r for r in await w.p.audited("annotation") if r["why"] == "annotation.export_closed" and r["approval"]["digest"] == export["digest"]
    ]
    assert [(r["sub"], r["out"], r["approval"]["id"]) for r in closed] == [("annotation.export", 4, f"{w.project}-1")]
    token = w.p.approval("annotation.export", export["target"], export["digest"], approval=f"{w.project}-1")
    late = await w.p.publish(ApprovalGranted(approval=f"{w.project}-1", token=token, **about))
    assert await dead(w, late) == "approval.spent", "its grant was on the way"
    again = await w.export()
    assert (again["version"], again["state"]) == (2, "waiting")
    assert again["digest"] != export["digest"], "an approval of the one is none of the other"
    assert w.exported() == []
    with pytest.raises(IntegrityError, match="exported_with_approval"):
        async with w.p.runtimes["annotation"].unit() as uow:
            await uow.execute(update(exports).where(exports.c.project == w.project).values(state="exported"))
