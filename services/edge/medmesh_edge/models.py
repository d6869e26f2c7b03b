"""Released models at the hospital: installed only when signature and approval verify, used on the hospital's own images."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.client import download
from medmesh.client.gateway import Gateway
from medmesh.contracts.data import DataSchema
from medmesh.contracts.registry import Manifest, ModelReleased
from medmesh.errors import Problem
from medmesh.serving.release import verify_release
from medmesh.store.unit import AuditEntry, Entity
from medmesh.telemetry import log
from medmesh_edge import continuity, pipelines
from medmesh_edge import roster as rosters
from medmesh_edge.outgoing import is_transient, queue
from medmesh_edge.patients import about_patients, known
from medmesh_edge.ports import Site
from medmesh_edge.samples import image, sample
from medmesh_edge.tables import items, patients, releases, results

if TYPE_CHECKING:
    from medmesh.serving.repository import Repository

BATCH = 32
BATCH_BYTES = 64 << 20
"""Of samples that are answered at once: volumes are large."""


async def install_waiting(site: Site, gateway: Gateway, repository: Repository) -> bool:
    """Install one release that waits; True when there may be more."""
    async with site.unit() as uow:
        row = await uow.first(select(releases).where(releases.c.state == "received").order_by(releases.c.at).limit(1))
        gone = await uow.all(select(releases).where(releases.c.state == "withdrawn"))
    for withdrawn in gone:
        await asyncio.to_thread(repository.remove, withdrawn.model, withdrawn.version)
        await _settle(site, withdrawn.release, "removed", "", ModelReleased.model_validate(withdrawn.event), report=False)
    if row is None or not site.policy().install:
        return False
    event = ModelReleased.model_validate(row.event)
    await continuity.trusted(site)
    site.roster()  # without one it waits: whether it is to be believed cannot be known
    try:
        manifest = await _verified(site, gateway, event)
        applied(manifest)  # with other versions of its steps this node would show the model something else than it was trained on
        path = await download(gateway, manifest.onnx, site.layout.cached("objects") / manifest.onnx.sha256)
        await asyncio.to_thread(repository.install, manifest, path, event.release)
    except Problem as problem:
        if is_transient(problem):
            raise
        log("edge.release.refused", level=40, model=event.model, version=event.version, error=problem)
        await _settle(site, event.release, "refused", problem.code, event)
        return True
    log("edge.release.installed", model=event.model, version=event.version)
    await _settle(site, event.release, "installed", "", event)
    return True


async def _verified(site: Site, gateway: Gateway, event: ModelReleased) -> Manifest:
    """Against the roster as it is here; when that does not know a signer, against the newest there is. Raises `Problem`."""
    try:
        return verify_release(event, site.trust(), site.roster(), hospital=site.settings.hospital)
    except Problem as problem:
        if not problem.code.startswith("roster.") or not await rosters.refresh(site, gateway):
            raise
    return verify_release(event, site.trust(), site.roster(), hospital=site.settings.hospital)


async def _settle(site: Site, release: str, state: str, code: str, event: ModelReleased, *, report: bool = True) -> None:
    async with site.unit() as uow:
        await uow.execute(update(releases).where(releases.c.release == release).values(state=state, code=code))
        if report:
            await queue(uow, f"/v1/releases/{release}/installs", {"installed": state == "installed", "code": code})
        about = (Entity("model", event.model, version=str(event.version)),)
        uow.audit(AuditEntry(f"model.{'install' if report else 'remove'}", "E", outcome=8 if code else 0, why=code, entities=about))
    site.changed.set("models", "requests")


async def classify(site: Site, repository: Repository, model: str, *, held_out: bool | None = None) -> list[dict[str, Any]]:
    """Classify the hospital's items with the active version of a model; results stay here."""
    served = repository.active(model)
    manifest = served.manifest
    schema = applied(manifest)
    async with site.unit() as uow:
        wanted = select(items, patients.c.key).join(patients, items.c.patient == patients.c.patient).order_by(items.c.item)
        wanted = wanted.where(items.c.modality.not_like("%:%") if schema is None else items.c.modality == schema.modality)
        rows = await uow.all(wanted if held_out is None else wanted.where(items.c.held_out == held_out))
    made: list[dict[str, Any]] = []
    batch = BATCH if schema is None else max(1, min(BATCH, BATCH_BYTES // (4 * math.prod(schema.shape))))
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        logits = await served.infer(await _inputs(site, manifest, schema, part))
        made += _labelled(part, logits, manifest.classes)
    async with site.unit() as uow:
        for entry in made:
            values = {
                "item": entry["item"],
                "model": model,
                "version": manifest.version,
                "label": entry["label"],
                "probabilities": entry["probabilities"],
                "at": uow.now,
            }
            row = upsert(results).values(values)
            changed = {name: values[name] for name in ("label", "probabilities", "at")}
            await uow.execute(row.on_conflict_do_update(index_elements=["item", "model", "version"], set_=changed))
        about = (Entity("model", model, version=str(manifest.version), digest=manifest.onnx.sha256),)
        uow.audit(AuditEntry("inference.infer", "E", entities=about, detail={"inputs": len(made)}))
        keys = await known(uow, site, {row.patient for row in rows})
        for record in about_patients(site, "patient.infer", "E", keys, about):
            uow.audit(record)
    return made


def applied(manifest: Manifest) -> DataSchema | None:
    """What the model was trained on; None where that are images that are only scaled. Raises `Problem`
    (`serving.manifest`; `pipelines.*` where the pipeline cannot be done here)."""
    if (said := manifest.preprocess.get("data")) is None:
        return None
    try:
        schema: DataSchema = TypeAdapter(DataSchema).validate_json(json.dumps(said))
    except ValidationError:
        raise Problem("serving.manifest", release=manifest.model, reason="its data schema is none") from None
    pipelines.check(schema)
    return schema


async def _inputs(site: Site, manifest: Manifest, schema: DataSchema | None, part: Sequence[Any]) -> np.ndarray:
    """float32 [items, ...] as the model was trained on, what a pipeline made before as well."""
    if schema is None:
        size, channels = int(manifest.preprocess["size"]), int(manifest.preprocess.get("channels", 1))
        x = await asyncio.to_thread(lambda: np.stack([image(site, row, size, channels) for row in part]))
        return x.astype(np.float32) / np.float32(255)

    def read(made: Mapping[str, str]) -> np.ndarray:
        return np.stack([pipelines.read(site, row, made[row.object]) if made else sample(site, row, schema) for row in part])

    return await pipelines.through(site, schema, part, read)


def _labelled(part: Sequence[Any], logits: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    return [
        {
            "item": row.item,
            "truth": row.label,
            "label": classes[int(p.argmax())],
            "probabilities": {name: round(float(value), 6) for name, value in zip(classes, p, strict=True)},
        }
        for row, p in zip(part, probabilities, strict=True)
    ]
