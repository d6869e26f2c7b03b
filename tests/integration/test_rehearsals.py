"""Code is run on invented data before hospitals are asked: on real servers, by the training service, held by the federation service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.federations import make_plan
from tests.packages import tiny
from tests.platform import Platform, platform

from medmesh.auditing.signatures import Signatures
from medmesh.canonical import canonical, parse
from medmesh.contracts.federation import FederationInvited
from medmesh.contracts.plan import Measured
from medmesh.contracts.training import GetRehearsal, RehearsalReport, RehearsalView, RehearsePackage, Rehearsing
from medmesh.embedded.testing import RunningServers
from medmesh.federated.plan import explain
from medmesh.learning import isolation
from medmesh.ledger.report import Report
from medmesh.security.statements import CodeReview, sign
from medmesh.store.objects.port import load
from medmesh_federation.service import SERVICE as FEDERATION
from medmesh_training.service import SERVICE as TRAINING

pytestmark = pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")
HOW = Rehearsing(batch_size=8, learning_rate="0.1")
TWO = ("huashan", "renji")


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    settings = {"federation": {"tick_seconds": 0.1, "require_rehearsal": True, "code_reviewers": 2}}
    async with platform(servers, private, TRAINING, FEDERATION, settings=settings) as made:
        yield made


async def rehearsed(p: Platform, code: str = "") -> tuple[dict[str, Any], RehearsalView]:
    package = tiny(p.folder, code)
    ref = await p.stores.kept.put(package.archive)
    done = await p.send(RehearsePackage(package=ref, how=HOW), p.person("li", "researcher"), timeout=60)
    assert done.succeeded, done.problem
    asked = GetRehearsal(package=package.digest, report=done.result["report"]["sha256"])  # type: ignore[index]
    return done.result or {}, await p.ask(asked, RehearsalView, p.person("wu", "approver"))


async def refused(p: Platform, **changed: Any) -> str:
    done = await p.send(await make_plan(p, TWO, **changed), p.person("li", "researcher"))
    assert done.problem
    return str(done.problem["code"])


async def test_hospitals_are_asked_only_what_was_rehearsed_and_are_told_what_it_took(p: Platform) -> None:
    assert await refused(p) == "federation.not_rehearsed"
    done, view = await rehearsed(p)
    assert done["passed"]
    assert view.state == "passed"
    assert view.report is not None
    assert RehearsalReport.model_validate(parse(await load(p.stores.kept, view.report))) == view.found
    measured = Measured(report=view.report.sha256, memory_mib=done["memory_mib"], step_microseconds=done["step_microseconds"])
    better = measured.model_copy(update={"memory_mib": 1})
    assert await refused(p, rehearsal=better) == "federation.rehearsed_otherwise", "what hospitals are told is what was found"
    for otherwise in ({"batch_size": 9}, {"codec": "int8"}):
        assert await refused(p, rehearsal=measured, **otherwise) == "federation.rehearsed_otherwise"
    assert await refused(p, rehearsal=measured.model_copy(update={"report": "0" * 64})) == "federation.not_rehearsed"
    assert await refused(p, rehearsal=measured) == "review.too_few"
    assert not p.emitted(FederationInvited)
    wanted = await make_plan(p, TWO, rehearsal=measured)
    signers = [p.rosters.signer(f"person:{name}@platform") for name in ("wu", "han")]
    signed = tuple(sign(CodeReview(made=datetime.now(UTC), package=wanted.plan.package), one) for one in signers)
    done_ = await p.send(wanted.model_copy(update={"reviews": signed}), p.person("li", "researcher"))
    assert done_.succeeded, done_.problem
    invited = (await p.wait(FederationInvited)).data
    assert invited.reviews == signed
    (record,) = [r for r in await p.audited("federation") if r["sub"] == "federation.create" and r["out"] == 0]
    assert record["detail"]["reviewers"] == "person:han@platform, person:wu@platform"
    held = Report()
    Signatures(p.rosters.present(), whole=False).inspect(held, 0, canonical(record))
    assert (held.signatures, held.faults) == (2, [])
    record["detail"]["reviewers"] = "person:han@platform, person:zhao@platform"
    Signatures(p.rosters.present(), whole=False).inspect(held, 0, canonical(record))
    assert held.faults, "an auditor finds a reviewer who did not sign"
    assert any(f"{measured.memory_mib} MiB" in line and "rehearsed" in line for line in explain(invited.plan))
    assert any("演练" in line for line in explain(invited.plan, "zh"))


async def test_a_package_that_fails_asks_nobody_and_its_record_says_why(p: Platform) -> None:
    done, view = await rehearsed(p, "\ndef train(model, samples, schedule, on_step):\n    return float('nan')\n")
    assert not done["passed"]
    assert view.state == "failed"
    assert view.found is not None
    assert view.found.stages[-1].name == "train"
    measured = {"report": done["report"]["sha256"], "memory_mib": done["memory_mib"], "step_microseconds": done["step_microseconds"]}
    package = view.found.package
    failing = await make_plan(p, TWO)
    ref = await p.stores.kept.put(tiny(p.folder, "\ndef train(model, samples, schedule, on_step):\n    return float('nan')\n").archive)
    plan = failing.plan.model_copy(update={"package": package, "rehearsal": Measured(**measured)})
    answer = await p.send(failing.model_copy(update={"plan": plan, "package": ref}), p.person("li", "researcher"))
    assert answer.problem
    assert answer.problem["code"] == "federation.rehearsal_failed"
    (record,) = [r for r in await p.audited("training") if r["sub"] == "training.rehearse"]
    assert (record["out"], record["why"]) == (8, "training.answer")
    assert record["entities"][1]["digest"] == measured["report"]


async def test_who_may_not_rehearse_is_refused(p: Platform) -> None:
    ref = await p.stores.kept.put(tiny(p.folder).archive)
    done = await p.send(RehearsePackage(package=ref, how=HOW), p.person("wu", "approver"))
    assert done.problem
    assert done.problem["code"] == "access.denied"
    assert await p.refused(GetRehearsal(package=ref.sha256), p.person("mei", "annotator")) == "access.denied"
