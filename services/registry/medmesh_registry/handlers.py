"""Versions: registered by the federation that made them or by hand, and what conversion adds to them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.conversion import ConversionRefused, ModelConverted
from medmesh.contracts.data import pipeline_of
from medmesh.contracts.federation import FederationCompleted
from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.contracts.registry import Lineage, ModelRegistered, RegisterModel
from medmesh.errors import Problem
from medmesh.security.labels import read
from medmesh.service import files, labels
from medmesh.store.objects.port import load
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log
from medmesh_registry.domain import VersionState, content, document, exact
from medmesh_registry.ports import HANDLERS, Ports
from medmesh_registry.tables import artefacts, models, versions


@HANDLERS.on(FederationCompleted)
async def federation_completed(event: Envelope[FederationCompleted], uow: UnitOfWork[Ports]) -> None:
    """The final model of a federation is the next version of the model of its name; one federation makes one version."""
    done = event.data
    if await uow.first(select(versions.c.version).where(versions.c.federation == done.federation)) is not None:
        return
    lineage = Lineage(
        federation=done.federation,
        plan_hash=done.plan_hash,
        chain=done.chain,
        package=done.package.sha256,
        hospitals=done.contributors or done.participants,
        undone=done.undone,
        pipeline=done.pipeline,
    )
    version = await _register(uow, done.name, done.model, done.package, lineage, federation=done.federation)
    label = labels.DEFAULT if done.label is None else read(done.label)
    name = f"{done.name}/{version}"
    of = [("federation", done.federation)]
    await labels.give(uow, "model", name, label, owner=done.organisation, organisations=done.participants, sources=of)


@HANDLERS.on(RegisterModel)
async def register_model(command: Envelope[RegisterModel], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Register by hand; the same registration again answers the version there is. Result: `{"model", "version"}`."""
    wanted, lineage = command.data, command.data.lineage
    if lineage.federation is not None or lineage.chain is not None or lineage.undone or lineage.pipeline is not None:
        raise Problem("registry.lineage")  # it gets signed: only the federation itself says what a federation made
    if lineage.package not in (None, wanted.package.sha256):
        raise Problem("registry.lineage_package")
    if lineage.job is not None:
        await present(uow, wanted.package)
        lineage = lineage.model_copy(update={"pipeline": await _pipeline(uow, wanted.package)})
    version = await _register(uow, wanted.model, wanted.weights, wanted.package, lineage, federation=None)
    if not uow.same:
        name = f"{wanted.model}/{version}"
        await labels.made(uow, "model", name, wanted=wanted.label, outside=True, organisations=lineage.hospitals)
    return {"model": wanted.model, "version": version}


async def _register(
    uow: UnitOfWork[Ports], model: str, weights: ObjectRef, package: ObjectRef, lineage: Lineage, *, federation: str | None
) -> int:
    for needed in (weights, package):
        await present(uow, needed)
    lineage = lineage.model_copy(update={"package": package.sha256})
    # The lock on the model's row: numbers follow each other, and two equal registrations see each other.
    await uow.execute(upsert(models).values(model=model, latest=0).on_conflict_do_nothing())
    latest = (await uow.execute(select(models.c.latest).where(models.c.model == model).with_for_update())).scalar_one()
    said = content(weights, package, lineage)
    if (known := await uow.first(select(versions.c.version).where(versions.c.model == model, versions.c.content == said))) is not None:
        uow.unchanged()
        return int(known.version)
    version = int(latest) + 1
    await uow.execute(update(models).where(models.c.model == model).values(latest=version))
    key = {"model": model, "version": version}
    values = {
        **key,
        "state": VersionState.REGISTERED.value,
        "weights": document(weights),
        "package": document(package),
        "lineage": document(lineage),
        "content": said,
        "federation": federation,
        "notes": {},
        "created_at": uow.now,
    }
    await uow.execute(insert(versions).values(values))
    empty: dict[str, Any] = {"parity_max_abs": None, "report": {}, "preprocess": {}, "classes": []}
    file = {**key, "format": "safetensors", "object": document(weights), "created_at": uow.now, **empty}
    await uow.execute(insert(artefacts).values(file))
    await files.keep(uow, "model", f"{model}/{version}", [weights.sha256])
    uow.emit(ModelRegistered(model=model, version=version, weights=weights, package=package, lineage=lineage))
    entities = [Entity("model", model, str(version), weights.sha256), Entity("package", package.sha256, digest=package.sha256)]
    if federation is not None:
        entities.append(Entity("federation", federation, digest=lineage.plan_hash or ""))
    if lineage.job is not None:
        entities.append(Entity("job", lineage.job))
    entities += [Entity("dataset", name) for name in lineage.datasets]
    if lineage.pipeline is not None:
        entities.append(Entity("pipeline", lineage.pipeline[:16], digest=lineage.pipeline))
    uow.audit(AuditEntry("model.register", "C", entities=entities, hospitals=lineage.hospitals))
    return version


async def _pipeline(uow: UnitOfWork[Ports], package: ObjectRef) -> str | None:
    """The hash of the pipeline that a job's data went through: it is the package's, without which the job would not have begun."""
    from medmesh.learning import package as packages  # numpy: not before the first that has one

    try:
        read = packages.read(await load(uow.ports.stores.kept, package))
    except Problem as problem:
        if not problem.code.startswith("package."):
            raise
        return None  # no job has trained it
    stated = pipeline_of(read.manifest.data)
    return None if stated is None else stated.hash


async def present(uow: UnitOfWork[Ports], ref: ObjectRef) -> None:
    """Raise `Problem` (`objects.missing`, `registry.object_size`) unless the kept store has exactly this object."""
    found = await uow.ports.stores.kept.size(ref.sha256)
    if found is None:
        raise Problem("objects.missing", sha256=ref.sha256)
    if found != ref.bytes:
        raise Problem("registry.object_size", sha256=ref.sha256, given=ref.bytes, found=found)


async def locked(uow: UnitOfWork[Ports], model: str, version: int) -> Row[Any] | None:
    """The version's row, held until the transaction ends; None when there is none."""
    return await uow.first(select(versions).where(versions.c.model == model, versions.c.version == version).with_for_update())


async def change(uow: UnitOfWork[Ports], model: str, version: int, **values: Any) -> None:
    """Change a version that is `locked`."""
    await uow.execute(update(versions).where(versions.c.model == model, versions.c.version == version).values(values))


@HANDLERS.on(ModelConverted)
async def model_converted(event: Envelope[ModelConverted], uow: UnitOfWork[Ports]) -> None:
    """The ONNX file of a version. A conversion of other weights than the version's is recorded and changes nothing."""
    made = event.data
    entity = Entity("model", made.model, str(made.version), made.artefact.sha256)
    row = await locked(uow, made.model, made.version)
    if row is None or row.weights["sha256"] != made.source.sha256:
        log("conversion.ignored", model=made.model, version=made.version, code="registry.other_source")
        uow.audit(AuditEntry("model.artefact", "C", outcome=4, why="registry.other_source", entities=(entity,)))
        return
    values = {
        "object": document(made.artefact),
        "parity_max_abs": made.max_abs_diff,
        "report": made.report,
        "preprocess": exact(made.preprocess),
        "classes": list(made.classes),
        "created_at": uow.now,
    }
    key = {"model": made.model, "version": made.version, "format": made.target}
    await uow.execute(upsert(artefacts).values(**key, **values).on_conflict_do_update(index_elements=list(key), set_=values))
    await files.keep(uow, "model", f"{made.model}/{made.version}", [made.artefact.sha256])
    state = VersionState.CONVERTED.value if row.state == VersionState.REGISTERED else row.state
    await change(uow, made.model, made.version, state=state, notes={k: v for k, v in row.notes.items() if k != "conversion"})
    uow.audit(AuditEntry("model.artefact", "C", entities=(entity,), detail={"format": made.target}))


@HANDLERS.on(ConversionRefused)
async def conversion_refused(event: Envelope[ConversionRefused], uow: UnitOfWork[Ports]) -> None:
    """Why there is no ONNX file: a note in the version's card."""
    said = event.data
    row = await locked(uow, said.model, said.version)
    if row is None:
        log("conversion.ignored", model=said.model, version=said.version, code="request.not_found")
        return
    note = {"refused": said.code, "target": said.target, "at": event.time.isoformat()}
    await change(uow, said.model, said.version, notes={**row.notes, "conversion": note})
