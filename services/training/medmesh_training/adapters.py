"""From items of a data set version to samples. Imported, with numpy and what it needs of Pillow and pydicom, by the first job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from medmesh.contracts.data import ImageSchema
from medmesh.errors import Problem
from medmesh.learning.adapter import Samples
from medmesh.learning.package import Manifest
from medmesh.store.objects.open import Stores
from medmesh.store.objects.port import load
from medmesh_training.domain import Item

if TYPE_CHECKING:
    from medmesh.imaging.preprocess import Preprocess

_AT_ONCE = 8
_LARGEST_PIXELS = 2**26
_PICTURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}


async def load_samples(content: Sequence[Item], manifest: Manifest, stores: Stores) -> Samples:
    """`x` uint8 [items, channels, size, size], or float32 of what the package's pipeline makes, and `y` int64 [items], in the order of
    `content`, whose labels were checked.

    Raises `Problem`: `objects.*`, `training.image` for a PNG or JPEG that cannot be read, `imaging.*` for DICOM, `pipelines.*`.
    """
    data = manifest.images()
    make = _maker(data)
    x = np.empty((len(content), *data.shape), dtype=np.uint8 if data.pipeline is None else np.float32)

    async def one(place: int, item: Item) -> None:
        image = await load(stores.kept, item.object)
        x[place] = await asyncio.to_thread(make, image, item.object.sha256)

    for start in range(0, len(content), _AT_ONCE):
        await asyncio.gather(*(one(start + i, item) for i, item in enumerate(content[start : start + _AT_ONCE])))
    return Samples(x, np.array([data.classes.index(item.label or "") for item in content], dtype=np.int64))


def _maker(data: ImageSchema) -> Callable[[bytes, str], np.ndarray]:
    if data.pipeline is None:
        from medmesh.imaging.preprocess import Preprocess

        return partial(sample, preprocess=Preprocess(data.image_size, data.channels))
    from medmesh.pipelines.pipeline import of
    from medmesh.pipelines.samples import decoded, through

    pipeline = of(data.pipeline)
    return lambda image, _: through(pipeline, decoded(image, data), data).values


def sample(data: bytes, name: str, preprocess: Preprocess) -> np.ndarray:
    """One image as uint8 [channels, size, size]; `name` is what an error calls it."""
    kind = next((kind for start, kind in _PICTURES.items() if data.startswith(start)), None)
    if kind:
        grey = _picture(data, kind, name)
    else:
        from medmesh.imaging import reading

        grey = reading.pixels(reading.read(data))
    return np.rint(preprocess.apply(grey) * np.float32(255)).astype(np.uint8)


def _picture(data: bytes, kind: str, name: str) -> np.ndarray:
    """float32 [rows, columns] in 0..1; colour becomes luma (ITU-R BT.601), 16-bit grey keeps its depth."""
    from PIL import Image

    try:
        # The format is given: Pillow then tries no other reader on bytes from outside.
        with Image.open(BytesIO(data), formats=(kind,)) as image:
            if image.width * image.height > _LARGEST_PIXELS:
                raise Problem("training.image", object=name[:12], reason=f"more than {_LARGEST_PIXELS} pixels")
            deep = image.mode[:1] == "I"
            stored = np.asarray(image if deep else image.convert("L"), dtype=np.float32)
    except Problem:
        raise
    except Exception as error:  # Pillow lets OSError, SyntaxError, ValueError, struct.error and others through
        raise Problem("training.image", object=name[:12], reason=type(error).__name__) from None
    return np.clip(stored / np.float32(65535 if deep else 255), 0.0, 1.0, dtype=np.float32)
