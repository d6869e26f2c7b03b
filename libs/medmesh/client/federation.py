"""A federation for researchers: created from a training package (packed, first weights made in a sandbox, uploaded), followed, steered."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from medmesh.client.gateway import Gateway
from medmesh.client.results import ENDED, trained, undone
from medmesh.client.transfer import download, upload
from medmesh.contracts.federation import FederationList, FederationPage, FederationSummary, FederationView, RoundView
from medmesh.contracts.governance import Approvals, ApprovalView
from medmesh.contracts.ingestion import SMALL_CELL
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import LEAST_PARTICIPANTS, Plan, SecureAggregation
from medmesh.contracts.refusals import contradiction
from medmesh.contracts.training import RehearsalReport, RehearsalView
from medmesh.errors import Problem
from medmesh.federated.invitation import link_digest, link_of, new_secret
from medmesh.federated.plan import explain
from medmesh.federated.undoing import ACTION, rollback_digest, rollback_target
from medmesh.learning.host import worker
from medmesh.learning.package import Package, pack
from medmesh.store.objects.port import file_digest
from medmesh.tasks import end

REHEARSAL_SECONDS = 660.0
"""How long a rehearsal is waited for: a little longer than the platform lets one take."""


async def initial_weights(package: Package, seed: int, target: Path) -> Path:
    """Write the weights a package begins with."""
    with tempfile.TemporaryDirectory() as folder:
        async with worker(package, Path(folder) / "worker") as running:
            await running.call("initial", seed=seed, out=str(running.folder / "initial"))
            target.write_bytes((running.folder / "initial").read_bytes())
    return target


def _nothing(stage: str) -> None:
    return None


async def rehearse(
    gateway: Gateway, package: Package, archive: ObjectRef, how: dict[str, Any], *, tell: Callable[[str], None] = _nothing
) -> tuple[RehearsalReport, ObjectRef]:
    """Have an uploaded package run on invented data at the platform; `how` are fields of `medmesh.contracts.training.Rehearsing`. Answers
    the report and its object; `tell` hears each stage as it is seen. Raises `Problem` when it could not be rehearsed at all."""
    path, seen = f"/v1/rehearsals/{package.digest}", ""

    async def watch() -> None:
        nonlocal seen
        while True:
            await asyncio.sleep(0.5)
            with suppress(Problem):
                view = await gateway.ask(path, RehearsalView)
                if view.state == "running" and view.stage != seen:
                    tell(seen := view.stage)

    watching = asyncio.create_task(watch())
    try:
        done = await gateway.command("POST", "/v1/rehearsals", {"package": archive.model_dump(), "how": how}, seconds=REHEARSAL_SECONDS)
    finally:
        await end(watching)
    view = await gateway.ask(path, RehearsalView, report=done["report"]["sha256"])
    if view.found is None or view.report is None:
        raise Problem("federation.not_rehearsed", package=package.digest[:16])
    return view.found, view.report


def rehearsing(plan: dict[str, Any]) -> dict[str, Any]:
    """Of a plan's fields those that a rehearsal is about. Raises `Problem` (`plan.*`)."""
    names = ("algorithm", "parameters", "local", "privacy", "codec", "codec_share", "batch_size", "learning_rate")
    secure = plan.get("secure")
    try:
        bits = {} if secure is None else {"secure_bits": SecureAggregation.model_validate(secure).bits}
    except ValidationError as error:
        raise contradiction(error) from None
    return {name: plan[name] for name in names if plan.get(name) is not None} | bits


async def create_federation(
    gateway: Gateway,
    folder: Path,
    *,
    name: str,
    purpose: str,
    initiator: str,
    hospitals: tuple[str, ...],
    accept_seconds: float,
    start_seconds: float = 0,
    small_cell: int = SMALL_CELL,
    min_participants: int = LEAST_PARTICIPANTS,
    rehearsal: bool | None = None,
    reviews: Sequence[str] = (),
    tell: Callable[[str], None] = _nothing,
    **plan: Any,
) -> dict[str, Any]:
    """Answers `{"federation", "plan_hash"}`. Times count from now: it starts when all have answered or
    `accept_seconds` are over, and not before `start_seconds`. `plan` has further fields of the plan. A package with code is rehearsed
    first, unless `rehearsal` says otherwise, and `reviews` are the signed notes of who read it; `tell` hears the rehearsal's stages. Raises
    `Problem`; `plan.*` and others of that catalogue say what contradicts."""
    package = pack(folder)

    def planned(**measured: Any) -> Plan:
        now = datetime.now(UTC).replace(microsecond=0)
        try:
            return Plan(
                name=name,
                purpose=purpose,
                initiator=initiator,
                package=package.digest,
                initial=first,
                framework=package.manifest.package.framework,
                data=package.manifest.data,
                signature=package.manifest.tensors,
                participants=hospitals,
                accept_by=now + timedelta(seconds=accept_seconds),
                start_at=now + timedelta(seconds=start_seconds),
                small_cell=small_cell,
                min_participants=min_participants,
                **measured,
                **plan,
            )
        except ValidationError as error:
            raise contradiction(error) from None

    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "package.zip"
        archive.write_bytes(package.archive)
        initial = await initial_weights(package, plan["seed"], Path(scratch) / "initial.safetensors")
        first = file_digest(initial)[0]
        planned()  # what contradicts is said before anything is sent or rehearsed
        package_ref, initial_ref = await upload(gateway, archive), await upload(gateway, initial)
    measured = None
    if package.manifest.custom if rehearsal is None else rehearsal:
        found, report = await rehearse(gateway, package, package_ref, rehearsing(plan), tell=tell)
        measured = {"report": report.sha256, "memory_mib": found.memory_mib, "step_microseconds": found.step_microseconds}
    made = planned(rehearsal=measured)
    body: dict[str, Any] = {"plan": made.model_dump(mode="json"), "package": package_ref.model_dump(), "initial": initial_ref.model_dump()}
    if reviews:
        body["reviews"] = list(reviews)
    return await gateway.command("POST", "/v1/federations", body)


async def whole(
    view: FederationView, further: Callable[[str], Awaitable[FederationPage]], since: FederationView | None = None
) -> FederationView:
    """`view` with the pages that `further` answers to where the one before it ended, down to what `since` has of older rounds."""
    known = {(one.round, one.attempt): one for one in since.rounds if one.closed is not None} if since is not None else {}
    parts, more = [FederationPage(**{name: getattr(view, name) for name in FederationPage.model_fields})], view.more
    while more and not any((one.round, one.attempt) in known for one in parts[-1].rounds):
        parts.append(await further(more))
        more = parts[-1].more
    return _merged(view, parts, since if more else None)


def _merged(view: FederationView, parts: Sequence[FederationPage], since: FederationView | None) -> FederationView:
    rounds: dict[tuple[int, int], RoundView] = {}
    for one in (one for part in reversed(parts) for one in part.rounds):
        found = rounds.get((one.round, one.attempt))
        both = (*one.answers, *found.answers) if found is not None else one.answers
        rounds[one.round, one.attempt] = one.model_copy(update={"answers": both})
    evaluation = tuple(one for part in parts for one in part.evaluation)
    if since is not None:
        # The oldest that was looked up may have been cut off: of those, and of older ones, what was known before.
        oldest = min(rounds, default=(0, 0))
        older = {(one.round, one.attempt): one for one in since.rounds if one.closed is not None and (one.round, one.attempt) <= oldest}
        rounds = {**older, **{place: one for place, one in rounds.items() if place not in older}}
        evaluation = evaluation or since.evaluation
    values = {"rounds": tuple(rounds[place] for place in sorted(rounds)), "evaluation": evaluation, "more": ""}
    return view.model_copy(update={"participants": tuple(one for part in parts for one in part.participants), **values})


async def federations(gateway: Gateway, **narrowed: str) -> AsyncIterator[FederationSummary]:
    """Those that the signed-in person may see, newest first, in as many requests as it takes; `narrowed` by `state`, `hospital`,
    `mine="true"`. Raises `Problem`."""
    after: dict[str, str] = {}
    while True:
        page = await gateway.ask("/v1/federations", FederationList, **narrowed, **after)
        for one in page.federations:
            yield one
        if not page.more:
            return
        after = {"after": page.more}


class Federation:
    """One federation of a signed-in person. Every method raises `Problem` with the platform's reason when it is refused."""

    def __init__(self, gateway: Gateway, federation: str) -> None:
        self.gateway, self.federation = gateway, federation

    @classmethod
    async def create(cls, gateway: Gateway, folder: Path, **plan: Any) -> Self:
        """Make one of the training package in `folder` and invite its hospitals; `plan` as for `create_federation`."""
        return cls(gateway, (await create_federation(gateway, folder, **plan))["federation"])

    async def request_start(self) -> str:
        """Ask that a second person approves the start of exactly this plan. Answers the approval's id."""
        view = await self._first()
        body = {"action": "federation.start", "target": self.federation, "digest": view.plan_hash}
        return str((await self.gateway.command("POST", "/v1/approvals", body))["approval"])

    async def invitation(self, language: str = "en") -> list[str]:
        """What its hospitals are asked to agree to, in plain words, a sentence a line: what code, what leaves, how many bytes."""
        return explain((await self._first()).plan, language)

    async def view(self, since: FederationView | None = None) -> FederationView:
        """Its plan, participants, rounds and evaluation as they are now, in as many requests as it takes; of rounds that were over in
        `since`, what it says."""
        path = f"/v1/federations/{self.federation}/page"
        return await whole(await self._first(), lambda after: self.gateway.ask(path, FederationPage, after=after), since)

    async def _first(self) -> FederationView:
        return await self.gateway.ask(f"/v1/federations/{self.federation}", FederationView)

    async def watch(self, seconds: float = 1.0) -> AsyncIterator[FederationView]:
        """Every change of what people see, looked for every `seconds`; ends with the federation."""
        before = None
        while True:
            view = await self.view(before)
            if view != before:
                yield view
            if view.state in ENDED:
                return
            before = view
            await asyncio.sleep(seconds)

    async def cancel(self, reason: str) -> Any:
        """End it for good. Answers `{"state"}`."""
        return await self._do("cancel", {"reason": reason})

    async def pause(self, reason: str = "") -> Any:
        """Open no further round. Answers `{"state"}`."""
        return await self._do("pause", {"reason": reason})

    async def resume(self) -> Any:
        """Go on after a pause. Answers `{"state"}`."""
        return await self._do("resume", {})

    async def adjust(self, **changed: str) -> Any:
        """From the next round on: `learning_rate`, `local_steps`, `batch_size` within the plan's ranges, decimal strings. Answers
        `{"changed"}`."""
        return await self._do("adjustment", {"changed": changed})

    async def link(self, hospital: str, seconds: int = 7 * 86_400) -> str:
        """A one-time link for an invited hospital, to be handed to its people: `medmesh edge open LINK` shows them the plan. It takes the
        place of the one before. Raises `Problem`."""
        view, secret = await self._first(), new_secret()
        digest = link_digest(self.federation, hospital, view.plan_hash, secret)
        await self._do("links", {"hospital": hospital, "digest": digest, "seconds": seconds})
        return link_of(self.federation, secret)

    async def revoke_link(self, hospital: str) -> Any:
        """Its link opens nothing any more. Answers `{"hospital"}`."""
        return await self._do(f"links/{hospital}/revocation", {})

    async def quarantine(self, hospital: str, reason: str) -> Any:
        """A hospital takes no part, at once, until its release is approved. Answers `{"state"}`."""
        return await self._do("quarantine", {"hospital": hospital, "reason": reason})

    async def request_release(self, hospital: str) -> str:
        """Ask that others approve the end of this quarantine. Answers the approval's id. Raises `Problem`."""
        return str((await self.gateway.command("POST", "/v1/approvals", await self.release_request(hospital)))["approval"])

    async def release_request(self, hospital: str) -> dict[str, Any]:
        """The approval to be asked for: `action`, `target`, `digest`, and a summary for who decides. Raises `Problem`."""
        view = await self.view()
        theirs = next((one for one in view.participants if one.hospital == hospital), None)
        if theirs is None or theirs.release is None:
            state = "-" if theirs is None else theirs.state
            raise Problem("federation.not_quarantined", federation=self.federation, hospital=hospital, state=state)
        summary = {"federation": view.plan.name, "hospital": hospital, "reason": theirs.reason}
        return {"action": "federation.release", "target": f"{self.federation}/{hospital}", "digest": theirs.release, "summary": summary}

    async def request_rollback(self, number: int) -> str:
        """Ask that others approve to go on from round `number`'s model (0: the first weights). Answers the approval's id. Raises `Problem`
        (`federation.rollback`) where there is nothing to go back to."""
        return str((await self.gateway.command("POST", "/v1/approvals", await self.rollback_request(number)))["approval"])

    async def rollback_request(self, number: int) -> dict[str, Any]:
        """The approval to be asked for: `action`, `target`, `digest`, and a summary for who decides. Raises `Problem`."""
        view = await self.view()
        digest = self._digest(view, number)
        if not (later := [one.round for one in trained(view) if one.round > number]):
            raise Problem("federation.rollback", federation=self.federation, round=number, reason="no committed rounds lie after it")
        summary = {"federation": view.plan.name, "round": str(number), "undone": ", ".join(map(str, later))}
        return {"action": ACTION, "target": rollback_target(self.federation, number), "digest": digest, "summary": summary}

    async def awaited(self) -> list[ApprovalView]:
        """Approvals of its start, of releases from quarantine and of roll-backs that are asked for and not decided."""
        found = (await self.gateway.ask("/v1/approvals", Approvals, state="open")).approvals
        return [one for one in found if one.action.startswith("federation.") and one.target.split("/")[0] == self.federation]

    async def rollback_digest(self, number: int) -> str:
        """What others approve (`federation.rollback`, target `FEDERATION/ROUND`) so that it goes on from round `number`'s model, 0 for
        the first weights. Raises `Problem` (`federation.rollback`)."""
        return self._digest(await self.view(), number)

    def _digest(self, view: FederationView, number: int) -> str:
        made = {one.round: one.model.sha256 for one in trained(view) if one.model is not None} | {0: view.plan.initial}
        if number not in made:
            reason = "it was undone itself" if number in undone(view) else "no such round is committed"
            raise Problem("federation.rollback", federation=self.federation, round=number, reason=reason)
        return rollback_digest(self.federation, view.plan_hash, number, made[number])

    async def extend(self, seconds: int) -> Any:
        """Give the open round more time. Answers `{"deadline"}`."""
        return await self._do("extension", {"seconds": seconds})

    async def model(self, target: Path) -> Path:
        """The final model as safetensors in `target`. Raises `Problem` (`federation.closed`) before it is completed."""
        view = await self._first()
        if view.state != "completed" or view.model is None:
            raise Problem("federation.closed", federation=self.federation, state=view.state)
        return await download(self.gateway, view.model, target)

    async def _do(self, what: str, body: dict[str, Any]) -> Any:
        return await self.gateway.command("POST", f"/v1/federations/{self.federation}/{what}", body)
