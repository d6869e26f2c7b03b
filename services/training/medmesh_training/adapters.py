"""From items of a data set version to the file that a worker trains on. Imported, with numpy and the decoders, by the first job."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from medmesh.contracts.data import ItemSchema, dtype_of, sample_bytes
from medmesh.errors import Problem
from medmesh.importing.formats.content import LARGEST
from medmesh.learning import weights
from medmesh.pipelines.samples import sample
from medmesh.store.objects.open import Stores
from medmesh.store.objects.port import load
from medmesh_training.domain import Item

_AT_ONCE = 8
_BYTES = 64 << 20
"""Of items that are read together: small ones wait for the store side by side, a large one is alone in memory."""


async def write_samples(content: Sequence[Item], data: ItemSchema, stores: Stores, path: Path) -> None:
    """Write safetensors with `x` [items, *shape] and `y` int64 [items], in the order of `content`, whose labels were checked. What an
    item becomes is what a hospital's node makes of it (`medmesh.pipelines.samples`).

    Raises `Problem`: `objects.*`, and `training.item` for the first one that cannot be brought into the shape.
    """
    y = np.array([data.classes.index(item.label or "") for item in content], dtype=np.int64)
    with weights.row_writer(path, "x", (len(content), *data.shape), dtype_of(data), {"y": y}) as write:
        for some in _batches(content, data):
            for row in await asyncio.gather(*(_sample(item, data, stores) for item in some)):
                await asyncio.to_thread(write, row)


async def _sample(item: Item, data: ItemSchema, stores: Stores) -> np.ndarray:
    raw = await load(stores.kept, item.object, limit=LARGEST)
    try:
        return await asyncio.to_thread(sample, raw, data)
    except Problem as problem:
        # Who sends a job names the items: the hash of one is no name of anybody.
        raise Problem("training.item", object=item.object.sha256[:12], reason=f"{problem.code}: {problem.detail()}"[:300]) from None


def _batches(content: Sequence[Item], data: ItemSchema) -> Iterator[list[Item]]:
    each, batch, held = sample_bytes(data), list[Item](), 0
    for item in content:
        if batch and (len(batch) == _AT_ONCE or held + item.object.bytes + each > _BYTES):
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += item.object.bytes + each
    if batch:
        yield batch
