"""What is made gets at least the label of what it came from, across services: projects, models, releases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select
from tests.platform import Platform, platform

from medmesh.canonical import canonical
from medmesh.contracts.annotation import CreateProject, GetProject, ProjectView
from medmesh.contracts.federation import FederationCompleted
from medmesh.contracts.labels import ChangeLabel, DescribeObject, LabelAnswer, LabelChanged, ObjectView, SecurityLabel
from medmesh.contracts.message import OperationFinished
from medmesh.contracts.registry import GetModel, Lineage, ListModels, ModelList, ModelRegistered, PrepareRelease, RegisterModel, VersionView
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security.labels import EVERY, Label, Level
from medmesh.service import derivation, labels
from medmesh.service.derivation import HEARD
from medmesh_annotation.service import SERVICE as ANNOTATION
from medmesh_registry.service import SERVICE as REGISTRY

RENJI = SecurityLabel(level="sensitive", compartments=("renji",))
CLEARED = Label(Level.CORE, frozenset({"renji", "xiehe"}))


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    settings = {"registry": {"release_key": private / "keys" / "release.nk"}}
    async with platform(servers, private, ANNOTATION, REGISTRY, settings=settings) as made:
        yield made


def known(kind: str, id_: str, label: SecurityLabel, organisations: tuple[str, ...] = ("platform",)) -> dict[tuple[str, str], ObjectView]:
    view = ObjectView(known=True, kind=kind, id=id_, label=label, owner=organisations[0], organisations=organisations)
    return {(kind, id_): view}


def code(done: OperationFinished) -> str:
    return str((done.problem or {}).get("code", ""))


async def project_of(p: Platform, name: str, **changed: Any) -> CreateProject:
    item = {"item": "i-1", "object": {"sha256": "1" * 64, "bytes": 1, "media_type": "image/png"}, "label": None}
    content = await p.stores.kept.put(canonical({"items": [item]}), "application/json")
    values = {"project": name, "dataset": "chest", "version": 1, "content": content, "purpose": "triage", "classes": ("a", "b")}
    return CreateProject.model_validate(values | changed)


async def test_a_project_has_the_join_of_its_data_set_and_content_and_is_hidden_like_them(p: Platform) -> None:
    wanted = await project_of(p, "reading")
    p.objects |= known("dataset", "chest", SecurityLabel(level="sensitive"))
    p.objects |= known("content", wanted.content.sha256, SecurityLabel(level="internal", compartments=("renji",)))
    cleared, other = p.person("wang", "researcher", clearance=CLEARED), p.person("li", "researcher")
    assert code(await p.send(wanted, other)) == "request.not_found"
    assert (await p.send(wanted, cleared)).succeeded
    view = await p.ask(GetProject(project="reading"), ProjectView, cleared)
    assert view.label == SecurityLabel(level="sensitive", compartments=("renji",))
    with pytest.raises(Problem) as caught:
        await p.ask(GetProject(project="reading"), ProjectView, other)
    assert caught.value.code == "request.not_found"
    refused, made, read = await p.audited("annotation")
    for record in (refused, read):
        assert (record["sub"], record["policy"]["rules"], record["policy"]["decision"]) == ("access.denied", ["label"], "deny")
    assert (made["sub"], made["policy"]["rules"]) == ("annotation.create", ["label:sensitive", "role:researcher", "object.permit"])


async def test_content_that_is_no_data_sets_and_no_exports_is_not_taken(p: Platform) -> None:
    """A data set that somebody may read is no cover for other bytes."""
    wanted = await project_of(p, "smuggled")
    p.objects[("content", wanted.content.sha256)] = ObjectView(known=False, kind="content", id=wanted.content.sha256)
    assert code(await p.send(wanted, p.person("li", "researcher"))) == "request.not_found"


async def register(p: Platform, token: str, **values: Any) -> OperationFinished:
    weights, package = await p.stores.kept.put(b"weights"), await p.stores.kept.put(b"package")
    return await p.send(RegisterModel(model="nodules", weights=weights, package=package, **values), token)


async def label_of(p: Platform, version: int = 1) -> SecurityLabel | None:
    token = p.person("boss", "researcher", clearance=Label(Level.CORE, frozenset({EVERY})))
    return (await p.ask(GetModel(model="nodules", version=version), VersionView, token)).label


@pytest.mark.parametrize(
    ("clearance", "lineage", "wanted", "becomes"),
    [
        (None, Lineage(), None, SecurityLabel()),
        (CLEARED, Lineage(), None, SecurityLabel(level="core", compartments=("renji", "xiehe"))),
        (Label(Level.SENSITIVE, frozenset({"renji"})), Lineage(job="j-1"), None, RENJI),
        (Label(Level.INTERNAL, frozenset()), Lineage(datasets=("plain",)), None, SecurityLabel()),
        (Label(Level.SENSITIVE), Lineage(), SecurityLabel(level="public"), SecurityLabel(level="sensitive")),
    ],
)
async def test_a_model_by_hand_is_as_high_as_its_lineage_and_its_maker(
    p: Platform, clearance: Label | None, lineage: Lineage, wanted: SecurityLabel | None, becomes: SecurityLabel
) -> None:
    """Also where the maker says nothing of where it is from, or asks for less."""
    p.objects |= known("job", "j-1", RENJI)
    token = p.person("wang", "researcher", clearance=clearance)
    done = await register(p, token, lineage=lineage, label=wanted)
    assert done.succeeded, done.problem
    assert await label_of(p) == becomes


async def test_nobody_makes_what_they_could_not_read(p: Platform) -> None:
    p.objects |= known("job", "j-1", RENJI)
    assert code(await register(p, p.person("wang", "researcher"), lineage=Lineage(job="j-1"))) == "request.not_found"
    assert code(await register(p, p.person("wang", "researcher"), label=SecurityLabel(level="core"))) == "labels.above_you"
    assert p.emitted(ModelRegistered) == []


async def test_a_federations_model_has_its_label_and_goes_to_nobody_who_is_not_cleared(p: Platform) -> None:
    from tests.integration.test_registry import _completed, _conversion

    done = (await _completed(p)).model_copy(update={"name": "nodules", "organisation": "renji", "label": RENJI, "participants": ("renji",)})
    assert isinstance(done, FederationCompleted)
    await p.publish(done, source="federation")
    version = (await p.wait(ModelRegistered)).data
    await p.publish(await _conversion(p, version), source="conversion")
    assert await label_of(p) == RENJI
    cleared = p.person("wang", "researcher", clearance=CLEARED)
    for hospital, told in (("xiehe", "labels.hospital"), ("renji", "registry.not_converted")):
        found = code(await p.send(PrepareRelease(model="nodules", version=1, hospitals=(hospital,)), cleared))
        assert found == told or (hospital == "renji" and found == "")
    assert (await p.ask(ListModels(), ModelList, cleared)).models[0].label == RENJI
    assert (await p.ask(ListModels(), ModelList, p.person("li", "researcher"))).models == ()
    assert (await p.ask(ListModels(), ModelList, p.hospital("renji"))).models[0].model == "nodules"
    assert (await p.ask(ListModels(), ModelList, p.hospital("xiehe"))).models == ()


async def test_only_an_approval_of_exactly_this_lowers_a_label(p: Platform) -> None:
    cleared = p.person("wang", "researcher", clearance=Label(Level.CORE))
    assert (await register(p, cleared)).succeeded
    admin = p.person("maker", "security_administrator")
    wanted = ChangeLabel(kind="model", id="nodules/1", label=SecurityLabel(level="internal"))
    answer = await p.ask(wanted, LabelAnswer, admin)
    assert answer.state == "pending"
    from medmesh.contracts.governance import ApprovalGranted

    async def grant(approval: str, target: str, digest: str) -> None:
        token = p.approval("label.change", target, digest, approval=approval)
        await p.publish(
            ApprovalGranted(approval=approval, action="label.change", target=target, digest=digest, token=token), source="governance"
        )

    await grant("a-1", "model/other/1", answer.digest)
    await grant("a-2", answer.target, "0" * 64)
    assert await label_of(p) == SecurityLabel(level="core")
    await grant("a-3", answer.target, answer.digest)
    changed = await p.wait(LabelChanged)
    assert (changed.data.id, changed.data.label) == ("nodules/1", SecurityLabel(level="internal"))
    assert await label_of(p) == SecurityLabel(level="internal")
    (record,) = [r for r in await p.audited("registry") if r["sub"] == "label.change"]
    assert record["approval"]["id"] == "a-3"
    # Raised again, the old approval lowers nothing a second time.
    assert (await p.ask(wanted.model_copy(update={"label": SecurityLabel(level="core")}), LabelAnswer, admin)).state == "changed"
    await grant("a-3", answer.target, answer.digest)
    assert await label_of(p) == SecurityLabel(level="core")


CORE = SecurityLabel(level="core")


def raised(id_: str, label: SecurityLabel, before: SecurityLabel, *, revision: int = 1, kind: str = "dataset") -> LabelChanged:
    service = {"dataset": "ingestion", "federation": "federation", "job": "training"}[kind]
    return LabelChanged(service=service, kind=kind, id=id_, label=label, before=before, revision=revision)


async def described(p: Platform, service: str, kind: str, id_: str) -> SecurityLabel | None:
    return (await p.ask(DescribeObject(service=service, kind=kind, id=id_), ObjectView, p.service("gateway"))).label


async def test_what_was_made_before_a_label_was_raised_is_raised_with_it_and_never_lowered(p: Platform) -> None:
    """From a data set to a project, and from a job to a model to its release, each once, whatever the order of the facts."""
    from tests.integration.test_registry import _completed, _conversion

    wang = p.person("wang", "researcher")
    assert (await p.send(await project_of(p, "reading"), wang)).succeeded
    p.objects |= known("job", "j-1", SecurityLabel())
    assert (await register(p, wang, lineage=Lineage(job="j-1", datasets=("plain",)))).succeeded
    await p.publish(await _conversion(p, (await p.wait(ModelRegistered)).data), source="conversion")
    await until_converted(p, wang)
    release = (await p.send(PrepareRelease(model="nodules", version=1, hospitals=("renji",)), wang)).result or {}
    done = (await _completed(p)).model_copy(update={"name": "federated", "federation": "f-9"})
    await p.publish(done, source="federation")
    await p.wait(ModelRegistered, lambda found: found.data.model == "federated")

    event = await p.publish(raised("chest", RENJI, SecurityLabel()), source="ingestion")
    project = await p.wait(LabelChanged, lambda found: found.data.kind == "project")
    assert (project.data.label, project.data.before, project.data.source) == (RENJI, SecurityLabel(), "dataset/chest")
    assert project.causationid == event
    with pytest.raises(Problem) as caught:
        await p.ask(GetProject(project="reading"), ProjectView, wang)
    assert caught.value.code == "request.not_found", "who could read it yesterday does not today"

    await p.publish(raised("j-1", RENJI, SecurityLabel(), kind="job"), source="training")
    told = await p.wait(LabelChanged, lambda found: found.data.kind == "release")
    assert (told.data.id, told.data.label, told.data.source) == (release["release"], RENJI, "model/nodules/1")
    assert await label_of(p) == RENJI
    await p.publish(raised("f-9", CORE, SecurityLabel(), kind="federation"), source="federation")
    of_federation = await p.wait(LabelChanged, lambda found: found.data.id == "federated/1")
    assert of_federation.data.label == CORE

    # Lower again at its source: what was made from it stays, and so does what another source raised.
    await p.publish(raised("plain", SecurityLabel(level="sensitive", compartments=("xiehe",)), SecurityLabel()), source="ingestion")
    await p.wait(LabelChanged, lambda found: found.data.kind == "release" and found.data.revision == 2)
    await p.publish(raised("j-1", SecurityLabel(level="public"), RENJI, revision=2, kind="job"), source="training")
    await p.publish(raised("chest", SecurityLabel(level="public"), RENJI, revision=2), source="ingestion")
    await p.publish(raised("chest", RENJI, SecurityLabel(), revision=1), source="ingestion", id=event)
    both = SecurityLabel(level="sensitive", compartments=("renji", "xiehe"))
    await p.publish(raised("j-1", CORE, SecurityLabel(), revision=3, kind="job"), source="training")
    await p.wait(LabelChanged, lambda found: found.data.kind == "release" and found.data.revision == 3)
    assert await label_of(p) == SecurityLabel(level="core", compartments=both.compartments)
    assert await described(p, "annotation", "project", "reading") == RENJI
    model, of_model = ("nodules", "j-1"), (release["release"], "nodules")
    assert await changes(p, "registry") == [model, of_model, ("federated", "f-9"), ("nodules", "plain"), of_model, model, of_model]
    (record,) = [r for r in await p.audited("annotation") if r["sub"] == "label.change"]
    assert [(e["type"], e["id"]) for e in record["entities"]] == [("project", "reading"), ("dataset", "chest")]
    assert (record["detail"]["before"], record["detail"]["after"]) == ("internal", "sensitive{renji}")


async def changes(p: Platform, service: str) -> list[tuple[str, str]]:
    """What was labelled anew, and from which source it was raised."""
    told = [[one["id"] for one in record["entities"]] for record in await p.audited(service) if record["sub"] == "label.change"]
    return [(what, source) for what, source, *_ in ([*ids, ""] for ids in told)]


async def until_converted(p: Platform, token: str) -> None:
    async with asyncio.timeout(20):
        while (await p.ask(GetModel(model="nodules", version=1), VersionView, token)).state != "converted":
            await asyncio.sleep(0.02)


async def test_a_change_that_was_heard_before_something_is_made_counts_for_it(p: Platform) -> None:
    """Its maker's service may have asked the owner just before the owner changed it: the later fact counts, an older one does not."""
    await p.publish(raised("chest", CORE, SecurityLabel(), revision=5), source="ingestion")
    await p.publish(raised("chest", SecurityLabel(level="public"), CORE, revision=4), source="ingestion")
    await p.publish(raised("other", CORE, SecurityLabel(), revision=1), source="ingestion")
    await p.publish(raised("other", SecurityLabel(), CORE, revision=2), source="ingestion")
    wanted = {("chest", 5), ("other", 2)}
    async with asyncio.timeout(20):
        while not wanted <= await heard(p):
            await asyncio.sleep(0.02)
    assert (await p.send(await project_of(p, "late"), p.person("wang", "researcher"))).succeeded
    assert await described(p, "annotation", "project", "late") == CORE
    assert (await p.send(await project_of(p, "lowered", dataset="other"), p.person("wang", "researcher"))).succeeded
    assert await described(p, "annotation", "project", "lowered") == SecurityLabel()


async def test_whoever_makes_something_and_whoever_raises_its_source_wait_for_each_other(p: Platform) -> None:
    runtime, boss = p.runtimes["annotation"], p.person("boss", "security_administrator", clearance=Label(Level.CORE, frozenset({EVERY})))
    assert (await p.send(await project_of(p, "reading"), p.person("wang", "researcher"))).succeeded
    await p.publish(raised("far", SecurityLabel(), SecurityLabel()), source="ingestion")
    async with asyncio.timeout(20):
        while ("far", 1) not in await heard(p):
            await asyncio.sleep(0.02)

    async def raise_far() -> None:
        async with runtime.unit() as uow:
            await derivation.heard(uow, raised("far", CORE, SecurityLabel(), revision=2), labels._raise)

    async def raise_reading() -> None:
        await p.ask(ChangeLabel(kind="project", id="reading", label=CORE), LabelAnswer, boss)

    # Another service's object, and one of its own: raised while something is being made from it.
    for source, raises in ((("dataset", "far"), raise_far), (("project", "reading"), raise_reading)):
        async with runtime.unit() as uow:
            assert not (await derivation.hold(uow, frozenset({"project"}), [source])).dominates(Label(Level.SENSITIVE, frozenset()))
            raising = asyncio.create_task(raises())
            await asyncio.sleep(0.5)
            assert not raising.done()
            await derivation.note(uow, "project", source[1] + "-made", [source])
            row = {"kind": "project", "id": source[1] + "-made", "level": "internal", "compartments": [], "owner": "platform"}
            more = {"organisations": ["platform"], "maker": "person:wang@platform", "changed_at": uow.now}
            await uow.execute(insert(labels.LABELS).values(**row, **more))
        await raising
        assert await described(p, "annotation", "project", source[1] + "-made") == CORE
    assert await changes(p, "annotation") == [("far-made", "far"), ("reading", ""), ("reading-made", "reading")]
    # Two sources of one object, raised at once: none is lost.
    await p.publish(raised("near", SecurityLabel(), SecurityLabel()), source="ingestion")
    async with runtime.unit() as uow:
        await derivation.note(uow, "project", "reading", [("dataset", "near"), ("dataset", "next")])
    async with runtime.unit() as uow:
        await derivation.heard(uow, raised("near", RENJI, SecurityLabel(), revision=2), labels._raise)

        async def raise_next() -> None:
            async with runtime.unit() as other:
                xiehe = SecurityLabel(level="sensitive", compartments=("xiehe",))
                await derivation.heard(other, raised("next", xiehe, SecurityLabel()), labels._raise)

        raising = asyncio.create_task(raise_next())
        await asyncio.sleep(0.5)
        assert not raising.done()
    await raising
    assert await described(p, "annotation", "project", "reading") == SecurityLabel(level="core", compartments=("renji", "xiehe"))
    assert (await changes(p, "annotation"))[3:] == [
        ("reading", "near"),
        ("reading-made", "reading"),
        ("reading", "next"),
        ("reading-made", "reading"),
    ]
    # What it is as high as already changes nothing: no record, no fact.
    before = [record["id"] for record in await p.audited("annotation")]
    async with runtime.unit() as uow:
        both = await derivation.hold(uow, frozenset({"project"}), [("dataset", "near"), ("dataset", "next")])
        assert both == Label(Level.SENSITIVE, frozenset({"renji", "xiehe"}))
        await derivation.heard(uow, raised("near", RENJI, SecurityLabel(), revision=3), labels._raise)
    assert [record["id"] for record in await p.audited("annotation")] == before


async def heard(p: Platform) -> set[tuple[str, int]]:
    async with p.runtimes["annotation"].unit() as uow:
        return {(row.id, row.revision) for row in await uow.all(select(HEARD))}


async def test_a_fact_of_somebody_who_does_not_own_the_object_changes_nothing(p: Platform) -> None:
    assert (await p.send(await project_of(p, "reading"), p.person("wang", "researcher"))).succeeded
    forged = raised("chest", CORE, SecurityLabel()).model_copy(update={"service": "registry"})
    await p.publish(forged, source="registry")
    await p.publish(raised("chest", SecurityLabel(level="sensitive"), SecurityLabel()), source="ingestion")
    await p.wait(LabelChanged, lambda found: found.data.kind == "project")
    assert await described(p, "annotation", "project", "reading") == SecurityLabel(level="sensitive")


async def test_a_lower_label_that_was_asked_for_before_it_was_raised_takes_asking_again(p: Platform) -> None:
    from medmesh.contracts.governance import ApprovalGranted

    cleared, admin = p.person("wang", "researcher", clearance=Label(Level.SENSITIVE)), p.person("maker", "security_administrator")
    p.objects |= known("job", "j-1", SecurityLabel(level="sensitive"))
    assert (await register(p, cleared, lineage=Lineage(job="j-1"))).succeeded
    lower = ChangeLabel(kind="model", id="nodules/1", label=SecurityLabel())
    answer = await p.ask(lower, LabelAnswer, admin)
    await p.publish(raised("j-1", CORE, SecurityLabel(level="sensitive"), kind="job"), source="training")
    await p.wait(LabelChanged, lambda found: found.data.label == CORE and found.data.kind == "model")

    async def grant(approval: str, answer: LabelAnswer) -> None:
        token = p.approval("label.change", answer.target, answer.digest, approval=approval)
        values = {"action": "label.change", "target": answer.target, "digest": answer.digest, "token": token}
        await p.publish(ApprovalGranted(approval=approval, **values), source="governance")

    again = await p.ask(lower, LabelAnswer, admin)
    assert (again.state, again.target) == ("pending", answer.target)
    assert again.digest != answer.digest
    await grant("a-1", answer)
    await grant("a-2", again)
    changed = await p.wait(LabelChanged, lambda found: found.data.approval != "")
    assert (changed.data.approval, changed.data.label) == ("a-2", SecurityLabel())


async def test_weights_that_are_part_of_something_labelled_make_a_model_as_high(p: Platform) -> None:
    """Who knows the name of a file they may not read cannot register it as a model of their own; who may read it makes no lower copy."""
    weights = await p.stores.kept.put(b"weights")
    (view,) = known("job", "j-1", RENJI, ("renji",)).values()
    p.files.append(("training", weights.sha256, view))
    assert code(await register(p, p.person("wang", "researcher"))) == "objects.missing"
    refused = (await p.audited("registry"))[-1]
    assert (refused["sub"], refused["policy"]["rules"]) == ("access.denied", ["label"])
    cleared = p.person("wang", "researcher", organisation="renji", clearance=Label(Level.SENSITIVE, frozenset({"renji"})))
    assert (await register(p, cleared, label=RENJI)).succeeded
    await p.publish(raised("j-1", CORE, RENJI, kind="job"), source="training")
    told = await p.wait(LabelChanged, lambda found: found.data.kind == "model")
    assert told.data.label == SecurityLabel(level="core", compartments=("renji",))
