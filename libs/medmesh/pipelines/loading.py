"""Batches for training, one batch in memory at a time, in an order that a seed decides."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom.dataset import Dataset

from medmesh.errors import Problem
from medmesh.imaging.reading import frame_count, read
from medmesh.importing.formats import arrays, edf, nifti, wav, wfdb
from medmesh.importing.port import Item, Source
from medmesh.pipelines.data import Data
from medmesh.pipelines.series import of_frames, rescaled, volume

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
                raw[file.name.rpartition("/")[2]] = opened.read()
    return from_files(form, raw)


def from_files(form: str, files: Mapping[str, bytes], channels: Sequence[str] = ()) -> Data:
    """The files of one item, the one that describes the others first, or all objects of a DICOM series. Of a signal only these `channels`,
    in this order, by their names in the file, capitals or not (those of a sound are 1, 2, ...). Raises `Problem` (`formats.*`,
    `imaging.*`, `pipelines.unfit`)."""
    raw = next(iter(files.values()))
    if form in ("wfdb", "edf", "wav"):
        return _chosen(_channels(form, raw, files), channels)
    if form == "nifti":
        values, header = nifti.decode(raw)
        return Data(values, affine=header.affine)
    if form == "npy":
        return Data(arrays.decode(raw)[""])
    if form == "dicom":
        return _alone(read(raw)) if len(files) == 1 else volume(files.values())
    if form in ("png", "jpeg"):
        with Image.open(io.BytesIO(raw), formats=["PNG", "JPEG"]) as picture:
            upright = ImageOps.exif_transpose(picture)
            return Data(np.array(upright if upright.mode[:1] in "IF" else upright.convert("L")))
    raise Problem("pipelines.unfit", step="load", reason=f"files of the format {form}")


def _alone(dataset: Dataset) -> Data:
    return rescaled(dataset) if frame_count(dataset) == 1 else of_frames(dataset)


@dataclass(frozen=True, slots=True)
class _Channel:
    name: str
    values: NDArray[np.float32]
    rate: float
    unit: str


def _channels(form: str, raw: bytes, files: Mapping[str, bytes]) -> list[_Channel]:
    if form == "wfdb":
        record = wfdb.read_header(raw)
        values, _ = wfdb.decode(record, files)
        return [_Channel(one.label, row, record.rate, one.unit) for one, row in zip(record.signals, values, strict=True)]
    if form == "edf":
        rows, header = edf.decode(raw)
        signals = [one for one in header.channels if not one.annotations]
        return [_Channel(s.label, row, s.count / header.seconds, s.unit) for s, row in zip(signals, rows, strict=True)]
    sounds, rate = wav.decode(raw)
    return [_Channel(str(place), row, rate, "1") for place, row in enumerate(sounds, start=1)]


def _chosen(found: list[_Channel], names: Sequence[str]) -> Data:
    if names:
        by_name = {one.name.strip().casefold(): one for one in reversed(found)}
        if missing := [name for name in names if name.strip().casefold() not in by_name]:
            raise Problem("pipelines.unfit", step="load", reason=f"it has no channel {missing[0]}")
        found = [by_name[name.strip().casefold()] for name in names]
    if len({(one.rate, len(one.values)) for one in found}) != 1:
        raise Problem("pipelines.unfit", step="load", reason="signals at different rates")
    units = {one.unit for one in found}
    return Data(np.stack([one.values for one in found]), rate=found[0].rate, unit=units.pop() if len(units) == 1 else "")
