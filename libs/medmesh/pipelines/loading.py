"""Batches for training, one batch in memory at a time, in an order that a seed decides."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medmesh.errors import Problem
from medmesh.imaging.reading import pixels, read
from medmesh.importing.formats import edf, nifti, wav, wfdb
from medmesh.importing.port import Item, Source
from medmesh.pipelines.data import Data

T = TypeVar("T")


def stream(keys: Sequence[T], load: Callable[[T], Data], batch: int, *, seed: int | None = None, epoch: int = 0) -> Iterator[NDArray[Any]]:
    """Arrays [up to `batch`, ...] of what `load` answers for each key; the last may be smaller. `seed` and `epoch` decide the order, None
    keeps it. Raises `Problem` (`pipelines.shapes`) when two results do not fit in one batch."""
    if batch < 1:
        raise ValueError("batch must be at least 1")
    order = list(range(len(keys)))
    if seed is not None:
        random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - an order, not a secret
    for start in range(0, len(order), batch):
        made = [load(keys[place]).values for place in order[start : start + batch]]
        if len({one.shape for one in made}) > 1:
            raise Problem("pipelines.shapes", shapes=", ".join(sorted({"x".join(map(str, one.shape)) for one in made})))
        yield np.stack(made)


def load(source: Source, item: Item) -> Data:
    """What an item of `formats.files` is, decoded: a volume, a signal, sound, or an image (grey; of DICOM in its rescaled unit, PS3.3
    C.11.1.1.2). Raises `Problem` (`formats.*`, `imaging.*`, `pipelines.unfit` for anything else)."""
    form, raw = str(item.meta.get("format")), {}
    for file in item.files:
        if file.role != "annotation":
            with source.open(file.name) as opened:
                raw[file.name] = opened.read()
    if form != "wfdb":
        return from_file(raw[item.files[0].name], form)
    header = wfdb.read_header(raw[item.files[0].name])
    values, _ = wfdb.decode(header, {name.rpartition("/")[2]: data for name, data in raw.items()})
    units = {one.unit for one in header.signals}
    return Data(values, rate=header.rate, unit=units.pop() if len(units) == 1 else "")


def from_file(raw: bytes, form: str) -> Data:
    """One file of a format that is one file."""
    if form == "nifti":
        values, header = nifti.decode(raw)
        return Data(values, affine=header.affine)
    if form == "wav":
        values, rate = wav.decode(raw)
        return Data(values, rate=rate, unit="1")
    if form == "edf":
        channels, found = edf.decode(raw)
        signals = [one for one in found.channels if not one.annotations]
        if len({(one.count, one.unit) for one in signals}) != 1:
            raise Problem("pipelines.unfit", step="load", reason="signals at different rates or in different units")
        return Data(np.stack(channels), rate=signals[0].count / found.seconds, unit=signals[0].unit)
    if form == "dicom":
        return _dicom(raw)
    if form in ("png", "jpeg"):
        with Image.open(io.BytesIO(raw), formats=["PNG", "JPEG"]) as picture:
            upright = ImageOps.exif_transpose(picture)
            return Data(np.array(upright if upright.mode[:1] in "IF" else upright.convert("L")))
    raise Problem("pipelines.unfit", step="load", reason=f"files of the format {form}")


def _dicom(raw: bytes) -> Data:
    dataset = read(raw)
    pixels(dataset)  # refuses what is no grey frame, or cannot be decoded
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    values = (dataset.pixel_array.astype(np.float64) * slope + intercept).astype(np.float32)
    return Data(values, unit=str(dataset.get("RescaleType") or ""))
