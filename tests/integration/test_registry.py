"""The registry on real servers: the life of a version, and what must never be released."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.platform import Platform, platform

from medmesh.contracts.conversion import ConversionRefused, ModelConverted
from medmesh.contracts.federation import FederationCompleted, ParticipantWithdrew
from medmesh.contracts.governance import ApprovalExpired, ApprovalGranted, ApprovalRefused, ApprovalRevoked
from medmesh.contracts.message import ObjectRef, OperationFinished
from medmesh.contracts.registry import (
    ContributorsWithdrew,
    GetModel,
    Lineage,
    ListModels,
    ModelInstalled,
    ModelList,
    ModelRegistered,
    ModelReleased,
    ModelWithdrawn,
    PrepareRelease,
    RegisterModel,
    ReportInstall,
    VersionView,
    WithdrawModel,
)
from medmesh.contracts.system import DeadLetter, DeadLetters, ListDeadLetters, ReplayDeadLetter, Replayed
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.imaging.preprocess import Preprocess
from medmesh.security import keys
from medmesh.serving.release import verify_release
from medmesh_registry.domain import exact
from medmesh_registry.service import SERVICE

MODEL = "brain-mri"
ALL = ("huashan", "renji", "ruijin")


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    extra = {"release_key": private / "keys" / "release.nk"}
    async with platform(servers, private, SERVICE, settings={"registry": extra}) as made:
        yield made


def _researcher(p: Platform) -> str:
    return p.person("li", "researcher")


async def _completed(p: Platform, federation: str = "fed-1", **changed: Any) -> FederationCompleted:
    weights = await p.stores.kept.put(f"weights of {federation}".encode())
    package = await p.stores.kept.put(b"package")
    return FederationCompleted(
        hospitals=ALL,
        federation=federation,
        name=MODEL,
        plan_hash="a" * 64,
        chain="b" * 64,
        package=package,
        model=weights,
        rounds=3,
        participants=ALL,
        **changed,
    )


async def _registered(p: Platform, federation: str = "fed-1") -> ModelRegistered:
    event = await _completed(p, federation)
    await p.publish(event, source="federation")
    return (await p.wait(ModelRegistered, lambda found: found.data.lineage.federation == federation)).data


async def _conversion(p: Platform, version: ModelRegistered, **changed: Any) -> ModelConverted:
    made = ModelConverted(
        model=version.model,
        version=version.version,
        source=version.weights,
        artefact=await p.stores.kept.put(f"onnx of {version.version}".encode()),
        target="onnx",
        max_abs_diff=2e-6,
        report={"samples": 64, "opset": 17, "tools": {"torch": "2"}},
        preprocess=Preprocess(size=64).to_document(),
        classes=("none", "tumour"),
    )
    return made.model_copy(update=changed)


async def _converted(p: Platform, federation: str = "fed-1") -> ModelRegistered:
    version = await _registered(p, federation)
    await p.publish(await _conversion(p, version), source="conversion")
    await _state(p, version.version, "converted")
    return version


async def _get(p: Platform, version: int, token: str | None = None) -> VersionView:
    return await p.ask(GetModel(model=MODEL, version=version), VersionView, token or _researcher(p))


async def _state(p: Platform, version: int, state: str) -> VersionView:
    async with asyncio.timeout(20):
        while (found := await _get(p, version)).state != state:
            await asyncio.sleep(0.01)
    return found


async def _prepared(p: Platform, version: int = 1, hospitals: tuple[str, ...] = ("ruijin", "renji")) -> dict[str, Any]:
    done = await p.send(PrepareRelease(model=MODEL, version=version, hospitals=hospitals), _researcher(p))
    assert done.succeeded, done.problem
    assert done.result
    return done.result


def _grant(p: Platform, target: str, digest: str, approval: str = "approval-1", /, **signed: Any) -> ApprovalGranted:
    """A grant whose event names `target` and `digest`; `signed` is what its token says instead."""
    token = p.approval(
        "model.release", signed.get("target", target), signed.get("digest", digest), approval=approval, minutes=signed.get("minutes", 60)
    )
    return ApprovalGranted(approval=approval, action="model.release", target=target, digest=digest, token=token)


async def _released(p: Platform, prepared: dict[str, Any], approval: str = "approval-1") -> ModelReleased:
    await p.publish(_grant(p, prepared["release"], prepared["digest"], approval), source="governance")
    return (await p.wait(ModelReleased, lambda found: found.data.release == prepared["release"])).data


async def _dead(p: Platform, event: str) -> DeadLetter:
    """The dead letter this event became."""
    operator = p.person("qian", "system_administrator")
    async with asyncio.timeout(20):
        while not (found := (await p.ask(ListDeadLetters(service="registry", event=event), DeadLetters, operator)).letters):
            await asyncio.sleep(0.01)
    return found[0]


def _code(done: OperationFinished) -> str:
    assert not done.succeeded
    assert done.problem
    return str(done.problem["code"])


async def _audits(p: Platform, verb: str, outcome: int = 0) -> list[dict[str, Any]]:
    return [record for record in await p.audited("registry") if (record["sub"], record["out"]) == (verb, outcome)]


async def test_a_version_lives_from_its_federation_to_its_withdrawal_and_every_step_is_recorded(p: Platform) -> None:
    version = await _registered(p)
    assert (version.model, version.version) == (MODEL, 1)
    expected = Lineage(federation="fed-1", plan_hash="a" * 64, chain="b" * 64, package=version.package.sha256, hospitals=ALL)
    assert version.lineage == expected
    conversion = await _conversion(p, version)
    await p.publish(conversion, source="conversion")
    view = await _state(p, 1, "converted")
    assert [(file.format, file.object.sha256) for file in view.artefacts] == [
        ("safetensors", version.weights.sha256),
        ("onnx", conversion.artefact.sha256),
    ]
    assert view.card["data"] == {"hospitals": list(ALL), "classes": ["none", "tumour"], "image_size": 64}
    assert view.card["parity"] == {"max_abs_diff": 2e-6, "samples": 64, "opset": 17}
    assert "intended_use" not in view.card

    prepared = await _prepared(p)
    assert await _prepared(p, hospitals=("renji", "ruijin", "renji")) == prepared, "the same hospitals are the same release"
    released = await _released(p, prepared)
    assert released.hospitals == ("renji", "ruijin")
    body = base64.b64decode(released.manifest)
    assert hashlib.sha256(body).hexdigest() == prepared["digest"]
    assert json.loads(body) == prepared["manifest"]
    assert keys.verify(p.trust.release_key, body, base64.b64decode(released.signature))
    manifest = verify_release(released, p.trust, p.rosters.present(), hospital="renji")
    assert manifest.onnx == conversion.artefact
    assert Preprocess.from_document(manifest.preprocess) == Preprocess(size=64), "the manifest says how to prepare an image"

    refusal = ReportInstall(release=released.release, installed=False, code="serving.unhealthy")
    assert (await p.send(refusal, p.hospital("renji"))).succeeded
    for _ in range(2):
        assert (await p.send(ReportInstall(release=released.release, installed=True), p.hospital("renji"))).succeeded
    assert [(e.data.hospital, e.data.installed, e.data.code) for e in p.emitted(ModelInstalled)] == [
        ("renji", False, "serving.unhealthy"),
        ("renji", True, ""),
    ]
    (seen,) = (await _state(p, 1, "released")).releases
    assert (seen.state, seen.approval, seen.digest) == ("released", "approval-1", prepared["digest"])
    assert [(i.hospital, i.installed, i.code) for i in seen.installs] == [("renji", True, "")]

    withdraw = WithdrawModel(model=MODEL, version=1, reason="drift")
    for _ in range(2):
        assert (await p.send(withdraw, _researcher(p))).succeeded
    (told,) = p.emitted(ModelWithdrawn)
    assert told.data.hospitals == ("renji", "ruijin")

    (record,) = await _audits(p, "model.release")
    assert (record["approval"]["id"], record["approval"]["digest"]) == ("approval-1", prepared["digest"])
    assert {"type": "model", "id": MODEL, "ver": "1", "digest": ""} in record["entities"]
    assert record["entities"][0]["digest"] == prepared["digest"]
    for verb in ("model.register", "model.artefact", "model.prepare-release", "model.install", "model.withdraw"):
        assert len(await _audits(p, verb)) == 1, verb
    (failed,) = await _audits(p, "model.install", outcome=4)
    assert failed["why"] == "serving.unhealthy"


async def test_a_federation_makes_one_version_and_the_next_one_the_next(p: Platform) -> None:
    event = await _completed(p, undone=(2, 3))
    await asyncio.gather(*(p.publish(event, source="federation") for _ in range(3)))
    second = await _registered(p, "fed-2")
    assert second.version == 2
    listed = await p.ask(ListModels(), ModelList, _researcher(p))
    assert [(v.version, v.lineage.federation) for v in listed.models] == [(2, "fed-2"), (1, "fed-1")]
    assert len(p.emitted(ModelRegistered)) == 2
    first = await _get(p, 1)
    assert (first.lineage.undone, first.card["training"]) == ((2, 3), {"undone_rounds": [2, 3]}), "rounds that were rolled back"
    assert "training" not in (await _get(p, 2)).card


async def test_a_hospital_that_left_its_federation_is_named_at_the_version_it_is_part_of(p: Platform) -> None:
    """Before the model was registered or long after; told twice it is one; who has no part in it is not named."""
    about: dict[str, Any] = {"hospitals": ALL, "rounds": 3}
    early = ParticipantWithdrew(**about, federation="fed-1", hospital=ALL[0])
    for event in (early, early, ParticipantWithdrew(**about, federation="fed-1", hospital="stranger")):
        await p.publish(event, source="federation")
    await _registered(p)
    await _registered(p, "fed-2")
    await p.publish(ParticipantWithdrew(**about, federation="fed-1", hospital=ALL[1]), source="federation")
    await _left(p, *ALL[:2])
    listed = (await p.ask(ListModels(), ModelList, _researcher(p))).models
    assert [one.withdrawn for one in listed] == [(), ALL[:2]]
    assert listed[1].lineage.hospitals == ALL, "what it gave stays in the model, and in its lineage"
    assert listed[1].card["data"]["withdrawn_hospitals"] == list(ALL[:2])
    assert "data" in listed[0].card and "withdrawn_hospitals" not in listed[0].card["data"]


async def test_hospitals_that_have_a_model_hear_who_left_of_those_in_it(p: Platform) -> None:
    """Whoever has it, in its federation or not; who left before it was released is told with the release, and nobody without a release."""
    version = await _converted(p)
    about: dict[str, Any] = {"hospitals": ALL, "federation": "fed-1", "rounds": 3}
    await p.publish(ParticipantWithdrew(**about, hospital=ALL[0]), source="federation")
    await _left(p, *ALL[:1])
    assert p.emitted(ContributorsWithdrew) == []
    await _released(p, await _prepared(p, hospitals=("ruijin", "renji")))
    first = await p.wait(ContributorsWithdrew, lambda found: True)
    assert (first.data.hospitals, first.data.withdrawn) == (("renji", "ruijin"), ALL[:1])
    await _released(p, await _prepared(p, hospitals=("tongji",)), "approval-2")
    await p.wait(ContributorsWithdrew, lambda found: found.data.hospitals == ("tongji",))
    for name in ("stranger", ALL[1], ALL[1]):
        await p.publish(ParticipantWithdrew(**about, hospital=name), source="federation")
    last = await p.wait(ContributorsWithdrew, lambda found: len(found.data.withdrawn) == 2)
    assert (last.data.model, last.data.version) == (version.model, version.version)
    assert (last.data.hospitals, last.data.withdrawn) == (("renji", "ruijin", "tongji"), ALL[:2])
    await p.send(WithdrawModel(model=MODEL, version=1, reason="drift"), _researcher(p))
    await p.publish(ParticipantWithdrew(**about, hospital=ALL[2]), source="federation")
    await _left(p, *ALL)
    assert len(p.emitted(ContributorsWithdrew)) == 3, "of one that was taken back nobody has anything left"


async def _left(p: Platform, *hospitals: str) -> None:
    """Wait until the version names these as withdrawn."""
    async with asyncio.timeout(20):
        while (await _get(p, 1)).withdrawn != hospitals:
            await asyncio.sleep(0.05)


async def test_by_hand_needs_the_objects_and_cannot_claim_a_federation(p: Platform) -> None:
    weights, package = await p.stores.kept.put(b"w"), await p.stores.kept.put(b"p")
    missing = ObjectRef(sha256="0" * 64, bytes=1)
    good = RegisterModel(model=MODEL, weights=weights, package=package, lineage=Lineage(job="job-1"))
    for changed, code in (
        ({"weights": missing}, "objects.missing"),
        ({"package": missing}, "objects.missing"),
        ({"weights": weights.model_copy(update={"bytes": 9})}, "registry.object_size"),
        ({"lineage": Lineage(federation="fed-1")}, "registry.lineage"),
        ({"lineage": Lineage(undone=(3,))}, "registry.lineage"),
        ({"lineage": Lineage(package="0" * 64)}, "registry.lineage_package"),
    ):
        assert _code(await p.send(good.model_copy(update=changed), _researcher(p))) == code
    assert _code(await p.send(good, p.hospital("renji"))) == "access.denied"
    assert not p.emitted(ModelRegistered)
    for _ in range(2):
        assert (await p.send(good, _researcher(p))).result == {"model": MODEL, "version": 1}
    (made,) = p.emitted(ModelRegistered)
    assert made.data.lineage == Lineage(job="job-1", package=package.sha256)


async def test_a_federation_whose_model_is_not_kept_is_a_dead_letter(p: Platform) -> None:
    event = await _completed(p)
    await p.stores.kept.delete(event.model.sha256)
    assert (await _dead(p, await p.publish(event, source="federation"))).code == "objects.missing"
    assert not p.emitted(ModelRegistered)


async def test_a_conversion_of_other_weights_changes_nothing_and_a_refused_one_is_noted(p: Platform) -> None:
    version = await _registered(p)
    foreign = await _conversion(p, version, source=await p.stores.kept.put(b"other weights"))
    await p.publish(foreign, source="conversion")
    refused = ConversionRefused(model=MODEL, version=1, target="onnx", code="conversion.parity", report={})
    await p.publish(refused, source="conversion")
    async with asyncio.timeout(20):
        while "conversion" not in (view := await _get(p, 1)).card or not await _audits(p, "model.artefact", outcome=4):
            await asyncio.sleep(0.01)
    assert (view.state, len(view.artefacts)) == ("registered", 1)
    assert view.card["conversion"]["refused"] == "conversion.parity"
    done = await p.send(PrepareRelease(model=MODEL, version=1, hospitals=("renji",)), _researcher(p))
    assert _code(done) == "registry.not_converted"
    await p.publish(await _conversion(p, version), source="conversion")
    assert "conversion" not in (await _state(p, 1, "converted")).card, "a success takes the note away"


async def test_a_grant_that_does_not_fit_is_a_dead_letter_and_releases_nothing(p: Platform) -> None:
    await _converted(p)
    prepared = await _prepared(p)
    release, digest = prepared["release"], prepared["digest"]
    p.identities["governance"], real = p.identities["federation"], p.identities["governance"]
    forged = _grant(p, release, digest)
    p.identities["governance"] = real
    for wrong, code in (
        (_grant(p, release, digest, digest="0" * 64), "security.approval_other"),
        (_grant(p, release, "0" * 64), "security.approval_other"),
        (_grant(p, release, digest, target="another-release"), "security.approval_other"),
        (_grant(p, "another-release", digest), "request.not_found"),
        (_grant(p, release, digest, minutes=-60), "security.approval_expired"),
        (forged, "security.approval_signature"),
    ):
        assert (await _dead(p, await p.publish(wrong, source="governance"))).code == code
    assert (await _get(p, 1)).state == "converted"
    assert not p.emitted(ModelReleased)
    assert not await _audits(p, "model.release")
    await _released(p, prepared)  # the approval of that name was not used up by the wrong ones
    assert len(p.emitted(ModelReleased)) == 1


async def test_an_approval_counts_once_and_an_approval_of_something_else_is_not_heard(p: Platform) -> None:
    await _converted(p)
    prepared = await _prepared(p)
    grant = _grant(p, prepared["release"], prepared["digest"])
    other = grant.model_copy(update={"action": "federation.start", "target": "fed-1"})
    await p.publish(other, source="governance")
    await _released(p, prepared)
    assert (await _dead(p, await p.publish(grant, source="governance"))).code == "approval.spent"
    again = _grant(p, prepared["release"], prepared["digest"], "approval-2")
    assert (await _dead(p, await p.publish(again, source="governance"))).code == "registry.release_closed"
    assert len(p.emitted(ModelReleased)) == 1
    letters = await p.ask(ListDeadLetters(service="registry"), DeadLetters, p.person("qian", "system_administrator"))
    assert len(letters.letters) == 2
    wanted = ReplayDeadLetter(service="registry", consumer=letters.letters[0].consumer, event=letters.letters[0].event)
    assert not (await p.ask(wanted, Replayed, p.person("qian", "system_administrator"))).replayed, "it is as poisonous as it was"
    (tried,) = [r for r in await p.audited("registry") if r["sub"] == "dead.replay"]
    assert (tried["out"], tried["why"], tried["entities"][0]["id"]) == (4, "bus.poison", wanted.event)
    # Whoever reads a letter reads what somebody sent: that is recorded, and with it which.
    read = {record["entities"][0]["id"] for record in await _audits(p, "dead.read")}
    assert read == {letter.event for letter in letters.letters}


@pytest.mark.parametrize("said", [ApprovalRefused, ApprovalRevoked, ApprovalExpired])
async def test_a_refused_release_is_closed_but_only_by_what_is_said_of_its_own_bytes(
    p: Platform, said: type[ApprovalRefused] | type[ApprovalRevoked] | type[ApprovalExpired]
) -> None:
    await _converted(p)
    prepared = await _prepared(p)
    refusal = said(approval="a-1", action="model.release", target=prepared["release"], digest=prepared["digest"])
    await p.publish(refusal.model_copy(update={"approval": "a-0", "digest": "0" * 64}), source="governance")
    kept = await _prepared(p)
    assert kept["release"] == prepared["release"]
    await p.publish(refusal, source="governance")
    async with asyncio.timeout(20):
        while (await _get(p, 1)).releases[0].state != "refused":
            await asyncio.sleep(0.01)
    late = _grant(p, prepared["release"], prepared["digest"])
    assert (await _dead(p, await p.publish(late, source="governance"))).code == "registry.release_closed"
    (record,) = await _audits(p, "model.release", outcome=4)
    assert record["approval"]["id"] == "a-1"
    assert (await _prepared(p))["release"] != prepared["release"], "it may be prepared anew"


async def test_only_the_hospitals_of_a_published_release_report_its_installation(p: Platform) -> None:
    await _converted(p)
    prepared = await _prepared(p)
    report = ReportInstall(release=prepared["release"], installed=True)
    assert _code(await p.send(report, p.hospital("renji"))) == "request.not_found", "not published yet"
    await _released(p, prepared)
    assert _code(await p.send(report, p.hospital("huashan"))) == "request.not_found"
    assert _code(await p.send(report, _researcher(p))) == "access.denied"
    free_text = report.model_copy(update={"installed": False, "code": "Zhang San, 47, did not load"})
    assert _code(await p.send(free_text, p.hospital("renji"))) == "request.invalid"
    assert not p.emitted(ModelInstalled)


async def test_a_hospital_sees_what_it_helped_to_make_or_was_given_and_no_others_reports(p: Platform) -> None:
    await _converted(p)
    with pytest.raises(Problem) as caught:
        await _get(p, 1, p.hospital("zhongshan"))
    assert caught.value.code == "request.not_found"
    assert not (await p.ask(ListModels(), ModelList, p.hospital("zhongshan"))).models
    released = await _released(p, await _prepared(p, hospitals=("renji", "zhongshan")))
    await p.send(ReportInstall(release=released.release, installed=True), p.hospital("renji"))
    assert (await _get(p, 1, p.hospital("zhongshan"))).releases[0].installs == ()
    assert (await _get(p, 1, p.hospital("renji"))).releases[0].installs[0].hospital == "renji"
    assert (await _get(p, 1, p.hospital("huashan"))).releases == (), "it helped to make it, but was not given it"


async def test_a_withdrawn_version_is_not_released_again(p: Platform) -> None:
    await _converted(p)
    open_one = await _prepared(p)
    assert (await p.send(WithdrawModel(model=MODEL, version=1, reason="wrong data"), _researcher(p))).succeeded
    done = await p.send(PrepareRelease(model=MODEL, version=1, hospitals=("renji",)), _researcher(p))
    assert _code(done) == "registry.withdrawn"
    grant = _grant(p, open_one["release"], open_one["digest"])
    assert (await _dead(p, await p.publish(grant, source="governance"))).code == "registry.withdrawn"
    assert not p.emitted(ModelReleased)
    (told,) = p.emitted(ModelWithdrawn)
    assert told.data.hospitals == (), "nobody was given it"
    view = await _get(p, 1)
    assert (view.state, view.card["withdrawn"]["reason"]) == ("withdrawn", "wrong data")


async def test_what_cannot_be_fetched_or_has_no_receiver_is_not_prepared(p: Platform) -> None:
    version = await _converted(p)
    nobody = await p.send(PrepareRelease(model=MODEL, version=1, hospitals=()), _researcher(p))
    assert _code(nobody) == "registry.no_hospitals"
    await p.stores.kept.delete((await _conversion(p, version)).artefact.sha256)
    gone = await p.send(PrepareRelease(model=MODEL, version=1, hospitals=("renji",)), _researcher(p))
    assert _code(gone) == "objects.missing"
    unknown = await p.send(PrepareRelease(model=MODEL, version=7, hospitals=("renji",)), _researcher(p))
    assert _code(unknown) == "request.not_found"


async def test_a_release_key_that_nobody_believes_stops_the_start(servers: RunningServers, private: Path) -> None:
    keys.Identity.create(private / "own.nk")
    with pytest.raises(Problem) as caught:
        async with platform(servers, private, SERVICE, settings={"registry": {"release_key": private / "own.nk"}}):
            pass
    assert caught.value.code == "registry.release_key"


def test_exact_numbers_have_one_spelling_and_keep_their_value() -> None:
    given = {"range": [0.0, 1.0], "mean": [0.485, 1e-7], "size": 64, "flip": True, "resize": "area", "none": None}
    expected = {"range": [0, 1], "mean": ["0.485", "1e-07"], "size": 64, "flip": True, "resize": "area", "none": None}
    assert exact(given) == expected
    assert [float(text) for text in exact(given)["mean"]] == given["mean"]
    assert all(type(value) is int for value in exact(given)["range"])
    for bad in (float("nan"), float("inf"), 2**53 + 1):
        with pytest.raises(Problem):
            exact({"x": [bad]})
