"""Timelines as a MEDS 0.4 data set: `data/*.parquet`, `metadata/{dataset.json,codes.parquet,subject_splits.parquet}`, and labels.

https://medical-event-data-standard.github.io: a subject lies in one file, contiguous, sorted by time with static events first. Our own
columns stand beside those of MEDS and are declared in `dataset.json`. Texts leave only when they are asked for: what people wrote may
name anybody, and is not searched here. The text of an imaging study is its de-identified instance UID and always goes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import meds
import pyarrow as pa
import pyarrow.parquet as pq

from medmesh.errors import Problem
from medmesh.timeline.events import Event

SHARD = 1_000_000
"""Events in a file, at least; a subject is never torn."""
SPLITS = (meds.train_split, meds.tuning_split, meds.held_out_split)
_US = pa.timestamp("us")
OWN: dict[str, Any] = {
    "event_id": pa.string(),
    "source_uri": pa.string(),
    "object_sha256": pa.string(),
    "modality": pa.string(),
    "unit": pa.string(),
    "code_system": pa.string(),
    "time_precision": pa.string(),
    "ingested_at": _US,
    "consent_id": pa.string(),
    "revision": pa.int64(),
}
"""Our columns beside those of MEDS, which `Event` holds under the same names."""
SCHEMA = pa.schema([*meds.DataSchema.schema(), *OWN.items()])


@dataclass(frozen=True, slots=True)
class Sample:
    """A label of a subject at a time (MEDS's label schema); what is known up to and including that time may be used."""

    subject_id: int
    prediction_time: datetime
    value: bool


@dataclass
class Exported:
    """What was written; `files` are SHA-256 and bytes by name."""

    name: str
    events: int = 0
    subjects: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    files: dict[str, tuple[str, int]] = field(default_factory=dict)


async def export(
    target: Path,
    name: str,
    timelines: AsyncIterator[tuple[int, list[Event]]],
    split: Callable[[int], str],
    *,
    release: str = "1",
    texts: bool = False,
    descriptions: Mapping[str, str] | None = None,
    labels: Mapping[str, Iterable[Sample]] | None = None,
    licence: str | None = None,
    shard: int = SHARD,
) -> Exported:
    """Write a data set into the folder `target`, which must not exist: it is there whole or not at all. Raises `Problem`
    (`timeline.target`)."""
    if target.exists():
        raise Problem("timeline.target", folder=target.name)
    work = target.with_name(f".{target.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    (work / "data").mkdir(parents=True, mode=0o700)
    (work / "metadata").mkdir()
    done = Exported(name)
    members: list[tuple[int, str]] = []
    batch: list[Event] = []
    place = 0
    try:
        async for subject, events in timelines:
            members.append((subject, split(subject)))
            batch += events
            if len(batch) >= shard:
                await asyncio.to_thread(_write, work / "data" / f"{place}.parquet", batch, texts, done)
                batch, place = [], place + 1
        if batch or not place:
            await asyncio.to_thread(_write, work / "data" / f"{place}.parquet", batch, texts, done)
        done.subjects, done.splits = len(members), Counter(split for _, split in members)
        _metadata(work, done, members, descriptions or {}, release, licence)
        for label, samples in (labels or {}).items():
            write_labels(work / "labels" / f"{label}.parquet", samples)
        from medmesh.timeline.croissant import describe

        done.files = {str(path.relative_to(work)): digest_of(path) for path in sorted(work.rglob("*")) if path.is_file()}
        (work / "croissant.json").write_text(json.dumps(describe(done, release, licence), indent=1, ensure_ascii=False), encoding="utf-8")
        work.rename(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return done


def _write(path: Path, events: list[Event], texts: bool, done: Exported) -> None:
    columns: dict[str, list[Any]] = {
        name: [getattr(event, name) for event in events] for name in SCHEMA.names if name not in ("ingested_at", "text_value")
    }
    columns["text_value"] = [event.text_value if texts or event.modality == "imaging" else None for event in events]
    columns["ingested_at"] = [event.ingested_at.astimezone(UTC).replace(tzinfo=None) for event in events]
    table = pa.table([pa.array(columns[one.name], one.type) for one in SCHEMA], schema=SCHEMA)
    meds.DataSchema.validate(table)
    pq.write_table(table, path, compression="zstd")
    done.events += len(events)
    done.codes.update(columns["code"])


def _metadata(
    work: Path, done: Exported, members: list[tuple[int, str]], descriptions: Mapping[str, str], release: str, licence: str | None
) -> None:
    codes = sorted(done.codes)
    table = {
        "code": pa.array(codes, pa.string()),
        "description": pa.array([descriptions.get(code) for code in codes], pa.string()),
        "parent_codes": pa.array([parents(code) or None for code in codes], pa.list_(pa.string())),
    }
    _checked(meds.CodeMetadataSchema, table, work / meds.code_metadata_filepath)
    splits = {
        "subject_id": pa.array([subject for subject, _ in members], pa.int64()),
        "split": pa.array([split for _, split in members], pa.string()),
    }
    _checked(meds.SubjectSplitSchema, splits, work / meds.subject_splits_filepath)
    about = {
        "dataset_name": done.name,
        "dataset_version": release,
        "etl_name": "medmesh",
        "etl_version": version("medmesh"),
        "meds_version": version("meds"),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"license": licence} if licence else {}),
        "raw_source_id_columns": ["event_id", "source_uri"],
        "code_modifier_columns": ["unit"],
        "additional_value_modality_columns": ["object_sha256"],
        "other_extension_columns": ["modality", "code_system", "time_precision", "ingested_at", "consent_id", "revision"],
    }
    meds.DatasetMetadataSchema.validate(about)
    (work / meds.dataset_metadata_filepath).write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")


def parents(code: str) -> list[str]:
    """The category above an ICD code: what stands before its point."""
    kind, _, rest = code.partition("//")
    system, _, value = rest.partition("//")
    category = value.partition(".")[0]
    return [f"{kind}//{system}//{category}"] if system.startswith("ICD") and category != value else []


def write_labels(path: Path, samples: Iterable[Sample]) -> None:
    """A file of labels in MEDS's label schema."""
    rows = sorted(samples, key=lambda one: (one.subject_id, one.prediction_time))
    table = {
        "subject_id": pa.array([one.subject_id for one in rows], pa.int64()),
        "prediction_time": pa.array([one.prediction_time for one in rows], _US),
        "boolean_value": pa.array([one.value for one in rows], pa.bool_()),
    }
    path.parent.mkdir(exist_ok=True)
    _checked(meds.LabelSchema, table, path)


def _checked(schema: Any, columns: dict[str, Any], path: Path) -> None:
    wanted = [schema.schema().field(name) for name in columns]
    table = pa.table(list(columns.values()), schema=pa.schema(wanted))
    schema.validate(table)
    pq.write_table(table, path, compression="zstd")


def digest_of(path: Path) -> tuple[str, int]:
    """SHA-256 and bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def rows_in(path: Path) -> int:
    """How many rows a file of a data set has, from its footer."""
    return int(pq.read_metadata(path).num_rows)
