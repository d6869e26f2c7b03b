"""From stored objects to the arrays a plan asks for, cached until the data change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import JSON, bindparam, func, select, tuple_

from medmesh.canonical import parse
from medmesh.contracts.data import DataSchema, TableSchema, dtype_of, sample_bytes
from medmesh.learning import weights
from medmesh.learning.table import encode
from medmesh.security.residue import wipe
from medmesh.store.prepared import Prepared
from medmesh_edge import pipelines
from medmesh_edge.patients import images, opened
from medmesh_edge.policy import Cohort
from medmesh_edge.ports import Site
from medmesh_edge.tables import consents, ethics_approvals, items, patients

_VALID = (
    (ethics_approvals.c.ended == "") & (ethics_approvals.c.since <= bindparam("today")) & (ethics_approvals.c.until >= bindparam("today"))
)
_WAIVED = select(ethics_approvals.c.number).where(_VALID, ~ethics_approvals.c.individual)
_AGREED = select(consents.c.number, consents.c.patient).join(ethics_approvals, ethics_approvals.c.number == consents.c.number).where(_VALID)
_USABLE = (
    items.c.ethics.in_(_WAIVED)
    | tuple_(items.c.ethics, items.c.patient).in_(_AGREED)
    | (~bindparam("asked", type_=items.c.held_out.type) & (items.c.ethics == ""))
)
"""Which items may be used for research `today`: under an approval that is valid, of patients who agreed where that is `asked`."""
_CLASSES = func.json_each(bindparam("classes", type_=JSON)).table_valued("value")
_OF_SCHEMA = _USABLE & (items.c.modality == bindparam("modality")) & items.c.label.in_(select(_CLASSES.c.value))
_WANTED = _OF_SCHEMA & (items.c.held_out == bindparam("held_out", type_=items.c.held_out.type))
_ALL = Prepared(select(func.count().label("samples")).select_from(items).where(_OF_SCHEMA))
_COHORT = Prepared(
    select(func.count().label("samples"), func.count(func.distinct(items.c.patient)).label("patients")).select_from(items).where(_WANTED)
)
_ROWS = Prepared(
    select(items.c.item, items.c.dataset, items.c.object, items.c.label, items.c.patient, patients.c.key)
    .join(patients, items.c.patient == patients.c.patient)
    .where(_WANTED)
    .order_by(items.c.item)
)
_OF = Prepared(select(items.c.label, items.c.patient, items.c.modality).where(items.c.dataset == bindparam("dataset"), _USABLE))


def _wanted(site: Site, schema: DataSchema, held_out: bool) -> dict[str, Any]:
    return {"modality": schema.modality, "classes": list(schema.classes), "held_out": held_out, **_now(site)}


def _now(site: Site) -> dict[str, Any]:
    return {"today": date.today().isoformat(), "asked": site.policy().ethics}


async def cohort(site: Site, schema: DataSchema) -> Cohort:
    """What this hospital can train on under a schema."""
    (found,) = await site.database.look(_COHORT, **_wanted(site, schema, False))
    return Cohort(samples=found.samples, patients=found.patients)


async def size(site: Site, schema: DataSchema) -> int:
    """Bytes of all arrays that a worker may be given under a schema, to train on and to test with, whose they are included."""
    (found,) = await site.database.look(_ALL, modality=schema.modality, classes=list(schema.classes), **_now(site))
    return int(found.samples) * (sample_bytes(schema) + 16)


def sources(site: Site, found: Sequence[Any]) -> list[str]:
    """The data sets that these samples come from, as audit names them."""
    return [f"{site.settings.hospital}/{dataset}" for dataset in sorted({row.dataset for row in found})]


async def held(site: Site, dataset: str) -> Sequence[Any]:
    """Label, patient and modality of what is in a data set and may be used today."""
    return await site.database.look(_OF, dataset=dataset, **_now(site))


async def rows(site: Site, schema: DataSchema, *, held_out: bool) -> Sequence[Any]:
    """The matching items in a fixed order."""
    return await site.database.look(_ROWS, **_wanted(site, schema, held_out))


def stored(site: Site, row: Any) -> bytes:
    """The bytes of one stored item. Raises `Problem` (`objects.*`, `keyring.*`)."""
    return b"".join(images(site, opened(site, row.patient, row.key)).open(row.object))


def image(site: Site, row: Any, size: int, channels: int) -> np.ndarray:
    """uint8 [channels, size, size] of one stored object: what is trained on and what is inferred on are made here alike."""
    from medmesh.imaging import plain

    return plain.image(stored(site, row), size, channels)


def sample(site: Site, row: Any, schema: DataSchema) -> np.ndarray:
    """[*schema.shape] of one stored item, as a worker is given it. Raises `Problem` (`data.row`, `imaging.*`, `pipelines.unfit`)."""
    if isinstance(schema, TableSchema):
        return encode(parse(stored(site, row))["values"], schema)
    from medmesh.pipelines.samples import sample

    return sample(stored(site, row), schema)


async def prepare(site: Site, schema: DataSchema, *, held_out: bool) -> tuple[Path, int]:
    """A safetensors file with `x` ([samples, *shape], uint8 of images that went through no pipeline, else float32), `y` int64 [samples] and
    `patients` int64 [samples] (equal for samples of one patient, and nothing else), and how many samples; written a sample at a time.
    Raises `Problem` (`data.row`, `pipelines.*`) for a sample that does not fit the plan's schema."""
    found = await rows(site, schema, held_out=held_out)
    return await arrays(site, schema, found), len(found)


async def arrays(site: Site, schema: DataSchema, found: Sequence[Any]) -> Path:
    """The same of these samples, in this order."""
    name = hashlib.sha256(repr((schema.model_dump(), [(r.item, r.object, r.label, r.patient) for r in found])).encode()).hexdigest()
    path = site.layout.cache / f"{name[:32]}.safetensors"
    if not path.exists():
        site.layout.cache.mkdir(mode=0o700, exist_ok=True)
        await pipelines.through(site, schema, found, lambda made: _write(site, schema, found, path, made))
    return path


def truth(schema: DataSchema, found: Sequence[Any]) -> np.ndarray:
    """int64 [samples]: which class each is of."""
    return np.array([schema.classes.index(row.label) for row in found], dtype=np.int64)


def _write(site: Site, schema: DataSchema, found: Sequence[Any], path: Path, outputs: Mapping[str, str]) -> None:
    patients = np.unique([row.patient for row in found], return_inverse=True)[1].astype(np.int64)
    temporary = path.with_suffix(".new")
    made = (pipelines.read(site, row, outputs[row.object]) if outputs else sample(site, row, schema) for row in found)
    beside = {"y": truth(schema, found), "patients": patients}
    weights.save_rows(temporary, "x", (len(found), *schema.shape), dtype_of(schema), made, beside)
    temporary.replace(path)


def forget_arrays(site: Site) -> None:
    """Wipe arrays made of images: they lie in the clear while somebody trains on them, and no longer."""
    if site.layout.cache.exists():
        for path in (*site.layout.cache.glob("*.safetensors"), *site.layout.cache.glob("*.new")):  # a kill may leave half of one
            wipe(path)
