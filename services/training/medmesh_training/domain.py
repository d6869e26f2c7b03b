"""Rules of training, as functions of values."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import Field, ValidationError

from medmesh.contracts.data import ItemSchema, sample_bytes
from medmesh.contracts.message import ObjectRef, Record
from medmesh.errors import Problem

_HELD_OUT_OF = 5
_EXACT = 2**53


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN = (State.QUEUED, State.RUNNING)
"""What may still be claimed or cancelled."""


class Item(Record):
    """One image, volume or signal of a data set version and its class; of a published set also its split and a pseudonym of its patient
    or group. `kind` is missing of images that came by themselves."""

    item: str = Field(min_length=1, max_length=200)
    object: ObjectRef
    label: str | None = None
    kind: str | None = None
    split: str | None = None
    group: str | None = None


class Content(Record):
    """What a data set version holds."""

    items: tuple[Item, ...]


class Schedule(Record):
    """What beside the data and the seed decides the weights."""

    checkpoint_steps: int
    batch_size: int
    learning_rate: float
    pipeline: str | None = None
    """The hash of the one that the data go through (`medmesh.contracts.pipeline`)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The steps up to the next checkpoint."""

    steps: int
    seed: int


def read_content(data: bytes, schema: ItemSchema) -> tuple[Item, ...]:
    """The items by id, whatever their order in `data`, each of the kind and with one of the classes of `schema`.

    Raises `Problem`: `training.content` (not what a data set version looks like, or an item twice), `training.kinds`,
    `training.unlabelled`, `training.foreign_labels`, `training.too_few`. Labels and ids are counted, never quoted.
    """
    try:
        items = Content.model_validate_json(data, extra="ignore").items
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['type']}" for e in error.errors(include_input=False, include_url=False)[:3])
        raise Problem("training.content", reason=where) from None
    if repeated := sum(count > 1 for count in Counter(item.item for item in items).values()):
        raise Problem("training.content", reason=f"{repeated} items occur more than once")
    if others := Counter(what for item in items if (what := _kind(item)) != schema.kind[:-1]):
        found = ", ".join(f"{what} {count}" for what, count in sorted(others.items()))
        raise Problem("training.kinds", count=others.total(), total=len(items), wanted=schema.kind, found=found)
    if unlabelled := sum(item.label is None for item in items):
        raise Problem("training.unlabelled", count=unlabelled, total=len(items))
    if foreign := sum(item.label not in schema.classes for item in items):
        raise Problem("training.foreign_labels", count=foreign, total=len(items), classes=", ".join(schema.classes))
    if len({held_out(item) for item in items}) < 2:
        raise Problem("training.too_few", total=len(items))
    return tuple(sorted(items, key=lambda item: item.item))


def _kind(item: Item) -> str:
    """What an item is; colour, which no package here trains on, is told from grey."""
    if item.kind in (None, "image"):
        return "image" if item.kind is None or item.object.media_type == "application/dicom" else "colour image"
    return str(item.kind)


def held_out(item: Item) -> bool:
    """Whether an item is kept from training to measure the result.

    A published split is kept: all that is not `train` is held out. Else a fifth is, by the patient or group alone, or by the item where
    none is known, so that it stays on its side in every version of the data set and in every job.
    """
    if item.split is not None:
        return item.split != "train"
    return int.from_bytes(hashlib.sha256((item.group or item.item).encode()).digest()[:8], "big") % _HELD_OUT_OF == 0


def check_size(steps: int, seed: int, version: int, limit: int) -> None:
    """Raise a `Problem` for numbers that no job may have."""
    if steps > limit:
        raise Problem("training.too_long", steps=min(steps, _EXACT), limit=limit)
    if not -_EXACT < seed < _EXACT or not 0 <= version < _EXACT:
        raise Problem("request.invalid", reason="seed and version must lie within 2^53")


def check_room(samples: int, data: ItemSchema, limit: int) -> None:
    """Raise a `Problem` (`training.too_large`) when the samples as a worker is given them would take more than `limit` bytes."""
    if (needed := samples * sample_bytes(data)) > limit:
        raise Problem("training.too_large", bytes=needed, limit=limit)


def check_pipeline(data: ItemSchema, schedule: Schedule) -> None:
    """Raise a `Problem` (`pipelines.hash`) when the package's pipeline is no more what it was when the job was submitted."""
    here = data.pipeline.hash if data.pipeline else ""
    if here != (schedule.pipeline or ""):
        name = data.pipeline.name if data.pipeline else ""
        raise Problem("pipelines.hash", pipeline=name, wanted=(schedule.pipeline or "")[:16], here=here[:16])


def segment_at(step: int, steps: int, seed: int, schedule: Schedule) -> Segment:
    """The segment that begins at the checkpoint `step`: the same whoever asks, so that a resumed job repeats an undisturbed one."""
    index = step // schedule.checkpoint_steps
    return Segment(min(schedule.checkpoint_steps, steps - step), segment_seed(seed, index))


def segment_seed(seed: int, index: int) -> int:
    """32 bits that depend on the job's seed and the segment's number."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:4], "big")


def transient(problem: Problem) -> bool:
    """Whether another attempt may go better: the worker was ended by a signal from outside (memory, a restart), or this machine
    could not isolate it. Whatever the package itself did is final."""
    if problem.code == "worker.crashed":
        return str(problem.params.get("reason", "")).startswith("SIG")
    return problem.code in {"worker.not_isolated", "isolation.unavailable", "isolation.account_missing", "isolation.folder_missing"}


def check_counts(answer: Any, expected: Sequence[int]) -> list[list[int]]:
    """The confusion counts [true][predicted] in a worker's answer. Raises `Problem` unless each row sums to `expected`, the
    samples of that class."""
    try:
        counts = [[int(cell) for cell in row] for row in answer]
    except (TypeError, ValueError):
        raise Problem("training.answer", operation="evaluate") from None
    square = all(len(row) == len(expected) and min(row) >= 0 for row in counts)
    if not square or [sum(row) for row in counts] != list(expected):
        raise Problem("training.answer", operation="evaluate")
    return counts
