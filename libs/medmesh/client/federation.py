"""A federation for researchers: created from a training package (packed, first weights made in a sandbox, uploaded), followed, steered."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from medmesh.client.gateway import Gateway
from medmesh.client.transfer import download, upload
from medmesh.contracts.federation import FederationView
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.learning.host import worker
from medmesh.learning.package import Package, pack


async def initial_weights(package: Package, seed: int, target: Path) -> Path:
    """Write the weights a package begins with."""
    with tempfile.TemporaryDirectory() as folder:
        async with worker(package, Path(folder) / "worker") as running:
            await running.call("initial", seed=seed, out=str(running.folder / "initial"))
            target.write_bytes((running.folder / "initial").read_bytes())
    return target


async def create_federation(
    gateway: Gateway,
    folder: Path,
    *,
    name: str,
    purpose: str,
    initiator: str,
    hospitals: tuple[str, ...],
    accept_seconds: float,
    start_seconds: float | None = None,
    **plan: Any,
) -> dict[str, Any]:
    """Answers `{"federation", "plan_hash"}`. Times count from now. Raises `Problem`; `federation.plan` names what contradicts."""
    package = pack(folder)
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "package.zip"
        archive.write_bytes(package.archive)
        initial = await initial_weights(package, plan["seed"], Path(scratch) / "initial.safetensors")
        package_ref, initial_ref = await upload(gateway, archive), await upload(gateway, initial)
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        made = Plan(
            name=name,
            purpose=purpose,
            initiator=initiator,
            package=package.digest,
            initial=initial_ref.sha256,
            framework=package.manifest.package.framework,
            data=package.manifest.data,
            signature=package.manifest.tensors,
            participants=hospitals,
            accept_by=now + timedelta(seconds=accept_seconds),
            start_at=now + timedelta(seconds=accept_seconds if start_seconds is None else start_seconds),
            **plan,
        )
    except ValidationError as error:
        parts = [".".join(map(str, e["loc"])) + (": " if e["loc"] else "") + e["msg"] for e in error.errors(include_input=False)]
        raise Problem("federation.plan", reason="; ".join(parts[:5])) from None
    body = {"plan": made.model_dump(mode="json"), "package": package_ref.model_dump(), "initial": initial_ref.model_dump()}
    return await gateway.command("POST", "/v1/federations", body)


ENDED = ("completed", "failed", "cancelled")


class Federation:
    """One federation of a signed-in person. Every method raises `Problem` with the platform's reason when it is refused."""

    def __init__(self, gateway: Gateway, federation: str) -> None:
        self.gateway, self.federation = gateway, federation

    async def view(self) -> FederationView:
        """Its plan, participants, rounds and evaluation as they are now."""
        return await self.gateway.ask(f"/v1/federations/{self.federation}", FederationView)

    async def watch(self, seconds: float = 1.0) -> AsyncIterator[FederationView]:
        """Every change of what people see, looked for every `seconds`; ends with the federation."""
        before = None
        while True:
            view = await self.view()
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

    async def extend(self, seconds: int) -> Any:
        """Give the open round more time. Answers `{"deadline"}`."""
        return await self._do("extension", {"seconds": seconds})

    async def model(self, target: Path) -> Path:
        """The final model as safetensors in `target`. Raises `Problem` (`federation.closed`) before it is completed."""
        view = await self.view()
        if view.state != "completed" or view.model is None:
            raise Problem("federation.closed", federation=self.federation, state=view.state)
        return await download(self.gateway, view.model, target)

    async def _do(self, what: str, body: dict[str, Any]) -> Any:
        return await self.gateway.command("POST", f"/v1/federations/{self.federation}/{what}", body)


def last_round(plan: Plan) -> int:
    """The number of the last round: with a baseline, training alone and evaluation are rounds of their own."""
    return plan.rounds + (2 if plan.baseline else 0)


def remaining(view: FederationView) -> float | None:
    """Seconds of work left in training rounds, at the median of those that were committed; None where nothing can be said."""
    took = [(r.closed - r.opened).total_seconds() for r in view.rounds if r.state == "committed" and r.kind == "train" and r.closed]
    if not took or view.state in ENDED:
        return None
    done = max(r.round for r in view.rounds if r.state == "committed")
    return statistics.median(took) * max(0, view.plan.rounds - done)


class Cell(NamedTuple):
    """Balanced accuracy of `model` at `hospital` (all together when empty) with a 95 % interval over `samples`."""

    model: str
    hospital: str
    value: float
    low: float
    high: float
    samples: int


def cross_site(view: FederationView) -> list[Cell]:
    """Every model at every hospital and over all of them: `federated` is the global model, the others were trained alone by the hospital
    of their name. Intervals (`medmesh.learning.metrics.interval`) come from counts and take samples as independent: a bootstrap by
    patient needs the samples, which do not leave the hospital."""
    from medmesh.learning.metrics import add, balanced_accuracy, interval  # numpy

    found = []
    for model in sorted({e.name for e in view.evaluation}, key=lambda name: (name != "federated", name)):
        tables = {e.hospital: e.counts for e in view.evaluation if e.name == model}
        rows = [(hospital, add([counts])) for hospital, counts in sorted(tables.items())]
        for hospital, counts in [*rows, ("", add(tables.values()))]:
            low, high = interval(counts)
            found.append(Cell(model, hospital, balanced_accuracy(counts), low, high, int(counts.sum())))
    return found
