"""What is asked of the registry. Of the releases of a version a hospital sees its own part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, select, tuple_, type_coerce
from sqlalchemy.dialects.postgresql import JSONB

from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.contracts.registry import (
    Artefact,
    GetModel,
    InstallView,
    Lineage,
    ListModels,
    ModelList,
    ReleaseView,
    VersionView,
)
from medmesh.store.unit import UnitOfWork
from medmesh_registry.contributors import withdrawn
from medmesh_registry.domain import card
from medmesh_registry.ports import HANDLERS, Ports
from medmesh_registry.tables import artefacts, installs, releases, versions

PAGE = 100
"""Versions in one answer, newest first: an answer stays well below the bus's 1 MB."""


@HANDLERS.answers(GetModel)
async def get_model(query: Envelope[GetModel], uow: UnitOfWork[Ports]) -> VersionView:
    """One version."""
    wanted = query.data
    rows = await uow.all(select(versions).where(versions.c.model == wanted.model, versions.c.version == wanted.version))
    return (await _views(uow, rows))[0]


@HANDLERS.answers(ListModels)
async def list_models(_query: Envelope[ListModels], uow: UnitOfWork[Ports]) -> ModelList:
    """The newest versions of every model that the asker may see."""
    wanted = select(versions).order_by(versions.c.created_at.desc())
    found = await uow.access.visible(uow, "model", wanted, lambda row: f"{row.model}/{row.version}", PAGE)
    views = await _views(uow, [row for row, _ in found])
    return ModelList(
        models=tuple(view.model_copy(update={"label": thing.label.record}) for view, (_, thing) in zip(views, found, strict=True))
    )


def _published_to(hospital: str) -> Any:
    return releases.c.released_at.is_not(None) & type_coerce(releases.c.hospitals, JSONB).contains([hospital])


async def _views(uow: UnitOfWork[Ports], rows: Sequence[Row[Any]]) -> tuple[VersionView, ...]:
    keys = [(row.model, row.version) for row in rows]
    files = await uow.all(select(artefacts).where(tuple_(artefacts.c.model, artefacts.c.version).in_(keys)))
    wanted = select(releases).where(tuple_(releases.c.model, releases.c.version).in_(keys)).order_by(releases.c.created_at)
    reports = select(installs).order_by(installs.c.hospital)
    if uow.actor.kind == "hospital":
        wanted = wanted.where(_published_to(uow.actor.id))
        reports = reports.where(installs.c.hospital == uow.actor.id)
    made = await uow.all(wanted)
    told = await uow.all(reports.where(installs.c.release.in_([row.release for row in made])))
    left = await withdrawn(uow, rows)
    return tuple(
        _view(
            row,
            [file for file in files if (file.model, file.version) == (row.model, row.version)],
            [_release_view(r, told) for r in made if (r.model, r.version) == (row.model, row.version)],
            left[row.model, row.version],
        )
        for row in rows
    )


def _view(row: Row[Any], files: Sequence[Row[Any]], made: Sequence[ReleaseView], left: tuple[str, ...]) -> VersionView:
    lineage = Lineage.model_validate(row.lineage)
    onnx = next((dict(file._mapping) for file in files if file.format == "onnx"), None)
    found = (
        Artefact(format=f.format, object=ObjectRef.model_validate(f.object), parity_max_abs=f.parity_max_abs)
        for f in sorted(files, key=lambda file: file.created_at)
    )
    return VersionView(
        model=row.model,
        version=row.version,
        state=row.state,
        artefacts=tuple(found),
        package=ObjectRef.model_validate(row.package),
        lineage=lineage,
        releases=tuple(made),
        withdrawn=left,
        card=card(lineage, row.notes, onnx, left),
    )


def _release_view(row: Row[Any], told: Sequence[Row[Any]]) -> ReleaseView:
    views = (InstallView(hospital=r.hospital, installed=r.installed, code=r.code) for r in told if r.release == row.release)
    return ReleaseView(release=row.release, digest=row.digest, state=row.state, approval=row.approval, installs=tuple(views))
