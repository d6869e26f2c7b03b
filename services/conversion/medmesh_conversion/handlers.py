"""One command: convert a registered version, or say why its file may not stand for the model."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from medmesh.contracts.conversion import ConversionRefused, ConvertModel, ModelConverted
from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.contracts.registry import GetModel, VersionView
from medmesh.errors import Problem
from medmesh.learning import package as packages
from medmesh.learning.package import Manifest
from medmesh.service.dispatch import Work
from medmesh.store.objects.port import fetch, load
from medmesh.store.unit import AuditEntry, Entity
from medmesh_conversion import domain
from medmesh_conversion.ports import HANDLERS, Ports
from medmesh_conversion.tables import conversions, refusals


@dataclass(frozen=True, slots=True)
class Attempt:
    """A conversion that ran to its end; `problem` is the gate's verdict."""

    manifest: Manifest
    onnx: Path
    report: dict[str, Any]
    problem: Problem | None


@HANDLERS.slow(ConvertModel)
async def convert(command: Envelope[ConvertModel], work: Work[Ports]) -> dict[str, Any]:
    """The parity report. The same weights of the same version are converted once; a refused conversion may be asked for again."""
    ports, wanted = work.ports, command.data
    view = await ports.ask(GetModel(model=wanted.model, version=wanted.version), VersionView)
    source = domain.weights_of(view)
    if (known := await _known(command, work, source)) is not None:
        work.unchanged()
        return known
    with tempfile.TemporaryDirectory(dir=ports.work) as temporary:
        folder = Path(temporary)
        archive = await load(ports.kept, view.package, limit=packages.MAX_BYTES)
        given = await fetch(ports.kept, source, folder / "source.safetensors")
        try:
            made = await attempt(archive, given, source, folder, ports)
        except Problem as error:
            problem = domain.told(error)
            # 5xx is this machine's fault and says nothing about the model.
            if problem.status < 500:
                await _refuse(command, work, source, view.package, problem, problem.document()["params"])
            raise problem from None
        if made.problem is not None:
            await _refuse(command, work, source, view.package, made.problem, made.report)
            raise made.problem
        artefact = await ports.kept.put_file(made.onnx, made.report["artefact"])
    return await _finish(command, work, source, view.package, artefact, made)


async def attempt(archive: bytes, given: Path, source: ObjectRef, folder: Path, ports: Ports) -> Attempt:
    """Export, check, run and compare. Raises `Problem` where it does not come to a comparison."""
    from medmesh.learning import weights  # numpy: not before the first conversion
    from medmesh_conversion.adapters import export, measure

    settings = ports.settings
    package = packages.read(archive)
    data = package.manifest.items()
    await asyncio.to_thread(weights.check, given, package.manifest.tensors)
    if all(tensor.dtype != "BF16" for tensor in package.manifest.tensors):  # numpy has no BF16: there the gate sees what NaN does
        await asyncio.to_thread(weights.check_finite, given)
    seed = domain.seed_of(source.sha256)
    exported = await export(package, given, folder, settings, seed)
    x = domain.inputs(seed, settings.examples, data)
    measured = await measure(exported, x, folder, settings)
    parity = domain.compare(exported.reference, measured.batched, measured.single)
    thresholds = domain.Thresholds(settings.max_abs, settings.agreement)
    report = domain.report(parity, thresholds, measured, seed=seed, artefact=exported.sha256, tools=exported.tools)
    return Attempt(package.manifest, exported.onnx, report, domain.verdict(parity, thresholds))


async def _known(command: Envelope[ConvertModel], work: Work[Ports], source: ObjectRef) -> dict[str, Any] | None:
    """The report of an earlier conversion. Raises the `Problem` this very command was refused with when it was delivered before."""
    wanted = command.data
    async with work.unit() as uow:
        refusal = await uow.first(select(refusals.c.problem).where(refusals.c.operation == command.id))
        same = (conversions.c.model == wanted.model) & (conversions.c.version == wanted.version)
        same &= (conversions.c.target == wanted.target) & (conversions.c.source == source.sha256)
        known = await uow.first(select(conversions.c.report).where(same))
    if refusal is not None:
        raise Problem.from_document(refusal.problem)
    return None if known is None else known.report


async def _finish(
    command: Envelope[ConvertModel], work: Work[Ports], source: ObjectRef, package: ObjectRef, artefact: ObjectRef, made: Attempt
) -> dict[str, Any]:
    wanted, data = command.data, made.manifest.data
    row = {"model": wanted.model, "version": wanted.version, "target": wanted.target, "source": source.sha256}
    work.result = made.report
    async with work.finish() as uow:
        row |= {"package": package.sha256, "artefact": artefact.sha256, "report": made.report, "created_at": uow.now}
        stored = insert(conversions).values(row).on_conflict_do_nothing().returning(conversions.c.source)
        if (await uow.execute(stored)).first() is not None:
            uow.emit(
                ModelConverted(
                    model=wanted.model,
                    version=wanted.version,
                    source=source,
                    artefact=artefact,
                    target=wanted.target,
                    max_abs_diff=made.report["max_abs_diff"],
                    report=made.report,
                    preprocess=domain.preprocess(made.manifest.items()),
                    classes=data.classes,
                )
            )
            entities = _entities(wanted, source, package, artefact.sha256)
            detail = {"target": wanted.target, "opset": made.report["opset"], "parity": f"{made.report['max_abs_diff']:.3e}"}
            uow.audit(AuditEntry("model.convert", "C", entities=entities, detail=detail))
        else:
            uow.unchanged()
    return made.report


async def _refuse(
    command: Envelope[ConvertModel], work: Work[Ports], source: ObjectRef, package: ObjectRef, problem: Problem, report: dict[str, Any]
) -> None:
    """Tell of the refusal, once a command: the answer to the command itself comes in a transaction of its own."""
    wanted = command.data
    row = {"operation": command.id, "model": wanted.model, "version": wanted.version, "source": source.sha256}
    async with work.unit() as uow:
        row |= {"problem": problem.document(), "at": uow.now}
        stored = insert(refusals).values(row).on_conflict_do_nothing().returning(refusals.c.operation)
        if (await uow.execute(stored)).first() is None:
            return
        uow.emit(ConversionRefused(model=wanted.model, version=wanted.version, target=wanted.target, code=problem.code, report=report))
        entities = _entities(wanted, source, package, report.get("artefact", ""))
        uow.audit(AuditEntry("model.convert", "C", outcome=8, why=problem.code, entities=entities, detail={"target": wanted.target}))


def _entities(wanted: ConvertModel, source: ObjectRef, package: ObjectRef, artefact: str) -> tuple[Entity, ...]:
    found = (Entity("model", wanted.model, str(wanted.version), source.sha256), Entity("package", package.sha256, digest=package.sha256))
    return (*found, Entity("artefact", artefact, digest=artefact)) if artefact else found
