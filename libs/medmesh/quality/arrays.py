"""Rules about pixels, voxels and samples: functions of arrays. Constants are the thresholds, with what they are for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from medmesh.quality.rules import Finding

CLIPPED = 0.25  # share of pixels at the ends of the stored range: more is saturation, a dark background is not counted
LEVELS = 16  # an image with fewer different values was quantised away
THICK = 5.0  # times the finest spacing: a volume for reading slices, not for learning in three dimensions
OBLIQUE = 0.9  # cosine between a voxel axis and the nearest of the patient's
FLAT = 0.5  # share of a channel without any change, in runs of at least FLAT_RUN seconds
FLAT_RUN = 1.0
SATURATED = 0.02  # share of a signal that sits at its own extremes in runs
SATURATED_RUN = 5  # samples
LOWEST_RATE = {"signal": 50.0, "audio": 2000.0}  # hertz: below it neither a QRS complex nor a heart sound can be told
OFF = 1e-6  # share of the median spread of the channels: a lead with less hangs loose


def of_image(values: NDArray, *, bits: int | None = None) -> Iterator[Finding]:
    """Of an image or volume, numbers of any type; `bits` are those stored, whose ends are where clipping is looked for."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        yield Finding("not_finite", {"share": _percent(1 - float(np.isfinite(values).mean()))})
        values = values[np.isfinite(values)]
    if not values.size or values.min() == values.max():
        yield Finding("constant_image")
        return
    high = values.max()
    # The bottom of the range is what air looks like; the top is where a detector ends.
    top = float((values == high).mean())
    if top > CLIPPED and (bits is None or high == 2**bits - 1 or high == 2 ** (bits - 1) - 1):
        yield Finding("clipped", {"share": _percent(top)})
    sample = values.ravel()[:: max(1, values.size // 200_000)]
    some = sample[:: max(1, sample.size // 1000)]  # enough for nearly every image: to sort all of it is a tenth of what an image costs
    if len(np.unique(some)) < LEVELS and (levels := len(np.unique(sample))) < LEVELS:
        yield Finding("few_levels", {"levels": levels})


def of_volume(shape: Sequence[int], spacing: Sequence[float], affine: NDArray[np.float64]) -> Iterator[Finding]:
    """Geometry: `spacing` in millimetres, `affine` float64 [4, 4]."""
    if min(shape[:3]) < 2:
        yield Finding("single_slice", {"slices": int(min(shape[:3]))})
    if max(spacing) > THICK * min(spacing):
        yield Finding("thick_slices", {"ratio": f"{max(spacing) / min(spacing):.1f}"})
    axes = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if (worst := float(np.abs(axes).max(axis=0).min())) < OBLIQUE:
        yield Finding("oblique", {"degrees": f"{math.degrees(math.acos(min(1.0, worst))):.0f}"})


def of_signal(
    channels: Sequence[NDArray[np.float32]], rates: Sequence[float], names: Sequence[str], kind: str = "signal"
) -> Iterator[Finding]:
    """`channels` float32 [samples] each, at `rates` hertz."""
    spreads = [float(np.nanstd(one)) if one.size and np.isfinite(one).any() else 0.0 for one in channels]
    middle = float(np.median(spreads)) if spreads else 0.0
    for place, (values, rate, spread) in enumerate(zip(channels, rates, spreads, strict=True)):
        about = {"channel": names[place] if place < len(names) and names[place] else str(place + 1)}
        if rate < LOWEST_RATE[kind]:
            yield Finding("low_rate", {**about, "rate": f"{rate:g}", "least": f"{LOWEST_RATE[kind]:g}"})
        finite = np.isfinite(values)
        if not finite.all():
            yield Finding("not_finite", {"share": _percent(1 - float(finite.mean()))})
            values = values[finite]
        if not values.size:
            continue
        flat = _in_runs(np.diff(values) == 0, max(2, round(FLAT_RUN * rate))) / max(1, values.size - 1)
        if flat > FLAT:
            yield Finding("flat_line", {**about, "share": _percent(flat)})
        elif spread <= OFF * middle:
            yield Finding("lead_off", about)
        elif flat <= FLAT:
            ends = (values == values.max()) | (values == values.min())
            if (share := _in_runs(ends, SATURATED_RUN) / values.size) > SATURATED:
                yield Finding("clipped", {"share": _percent(share)})


def _in_runs(mask: NDArray[np.bool_], least: int) -> int:
    """How many of `mask` stand in runs of at least `least`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    lengths = edges[1::2] - edges[::2]
    return int(lengths[lengths >= least].sum())


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
