"""The steps. Each has a name, a version that changes with its result, parameters, and a function of data that uses nothing else.

Written with numpy alone and in double precision, by sums in a fixed order: the same result in another process and after another step. A
step whose arithmetic changes gets a new version; the old number is never given to something else.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from medmesh.errors import Problem
from medmesh.imaging.preprocess import area
from medmesh.importing.formats.nifti import orientation
from medmesh.pipelines.data import TEXT, Data

Shape = Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=2, max_length=3)]
"""[rows, columns] of an image, [x, y, z] of a volume."""

_PLAIN = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
"""Full-width forms to those of ASCII."""
_WORD = re.compile("[0-9A-Za-z\u00c0-\u024f\u0370-\u052f]+|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
"""By ranges and not by properties of characters: those grow with each version of Unicode, and of Python."""


class Step(BaseModel, ABC):
    """Parameters of one step; `apply` is the step."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    version: ClassVar[int] = 1

    @abstractmethod
    def apply(self, data: Data) -> Data:
        """The step's result. Raises `Problem` (`pipelines.unfit`) for data it is not for."""


class Window(Step):
    """Values between `center` - `width`/2 and `center` + `width`/2 to 0..1, clipped (as PS3.3 C.11.2.1.3.2, LINEAR_EXACT)."""

    name = "window"
    center: float = Field(allow_inf_nan=False)
    width: float = Field(gt=0, allow_inf_nan=False)

    def apply(self, data: Data) -> Data:
        scaled = (data.values.astype(np.float64) - (self.center - self.width / 2)) / self.width
        return data.with_values(np.clip(scaled, 0.0, 1.0).astype(np.float32), unit="1")


class Orient(Step):
    """A volume turned by exchanging and flipping axes until they point to `to` (three letters as in RAS); no value is computed."""

    name = "orient"
    to: str = Field(default="RAS", pattern="^[LR][AP][IS]$|^[LR][IS][AP]$|^[AP][LR][IS]$|^[AP][IS][LR]$|^[IS][LR][AP]$|^[IS][AP][LR]$")

    def apply(self, data: Data) -> Data:
        affine = _affine(self, data)
        now = orientation(affine)
        pair = {letter: pair for pair in ("LR", "PA", "IS") for letter in pair}
        order = [next(axis for axis in range(3) if now[axis] in pair[wanted]) for wanted in self.to]
        values, turned = np.transpose(data.values, (*order, *range(3, data.values.ndim))), affine[:, [*order, 3]]
        for axis, wanted in enumerate(self.to):
            if now[order[axis]] != wanted:
                values = np.flip(values, axis)
                turned = turned.copy()
                turned[:, 3] += turned[:, axis] * (values.shape[axis] - 1)
                turned[:, axis] *= -1
        return data.with_values(np.ascontiguousarray(values), affine=turned)


class Resample(Step):
    """A volume at `spacing` millimetres: linear between voxel centres (`nearest` for masks), each axis in turn, the first centre kept."""

    name = "resample"
    spacing: tuple[float, float, float]
    by: Literal["linear", "nearest"] = "linear"

    def apply(self, data: Data) -> Data:
        affine = _affine(self, data)
        if not all(0.05 <= one <= 100 for one in self.spacing):
            raise _unfit(self, "spacing must be 0.05 to 100 mm")
        values, turned = data.values, affine.copy()
        for axis, wanted in enumerate(self.spacing):
            have = float(np.sqrt((affine[:3, axis] ** 2).sum()))
            count = max(1, math.floor((values.shape[axis] - 1) * have / wanted + 1e-6) + 1)
            if count * values.size // values.shape[axis] > 1 << 29:
                raise _unfit(self, "the result would be too large")
            values = _along(values, axis, np.arange(count) * (wanted / have), self.by)
            turned[:3, axis] = affine[:3, axis] * (wanted / have)
        return data.with_values(values if self.by == "nearest" else values.astype(np.float32), affine=turned)


class Scale(Step):
    """An image or a volume at `shape`, axis by axis: the mean over what a new pixel covers (as OpenCV's INTER_AREA when shrinking)."""

    name = "scale"
    shape: Shape

    def apply(self, data: Data) -> Data:
        values = _spatial(self, data, len(self.shape)).astype(np.float64)
        affine = data.affine
        for axis, size in enumerate(self.shape):
            before = values.shape[axis]
            values = np.moveaxis(area(np.moveaxis(values, axis, 0), size), 0, axis)
            if affine is not None:
                affine = affine.copy()
                affine[:3, 3] += affine[:3, axis] * ((before / size - 1) / 2)  # its first pixel is centred on what it covers
                affine[:3, axis] *= before / size
        return data.with_values(np.ascontiguousarray(values, dtype=np.float32), affine=affine)


class Crop(Step):
    """The middle of an image or a volume at `shape`; where it is smaller, `fill` around it."""

    name = "crop"
    shape: Shape
    fill: float = Field(default=0.0, allow_inf_nan=False)

    def apply(self, data: Data) -> Data:
        values = _spatial(self, data, len(self.shape))
        spare = [size - have for size, have in zip(self.shape, values.shape, strict=True)]
        kept = tuple(
            slice(max(0, -one // 2), max(0, -one // 2) + min(size, size - one)) for one, size in zip(spare, self.shape, strict=True)
        )
        around = [(max(0, one) // 2, max(0, one) - max(0, one) // 2) for one in spare]
        affine = data.affine
        if affine is not None:
            affine = affine.copy()
            for axis, (part, (before, _)) in enumerate(zip(kept, around, strict=True)):
                affine[:3, 3] += affine[:3, axis] * (part.start - before)
        made = np.pad(values[kept], around, constant_values=np.asarray(self.fill).astype(values.dtype))
        return data.with_values(np.ascontiguousarray(made), affine=affine)


class Normalise(Step):
    """Values to mean 0 and standard deviation 1 (`zscore`), to 0..1 between percentiles `low` and `high` (`percentile`), or between the
    lowest and the highest (`range`); a constant becomes 0. Signals channel by channel if `by_channel`."""

    name = "normalise"
    how: Literal["zscore", "percentile", "range"] = "zscore"
    low: float = Field(default=1.0, ge=0, le=100)
    high: float = Field(default=99.0, ge=0, le=100)
    by_channel: bool = False

    def apply(self, data: Data) -> Data:
        values = data.values.astype(np.float64)
        if not np.isfinite(values).all():
            raise _unfit(self, "values that are not finite")
        rows = values.reshape(values.shape[0], -1) if self.by_channel and values.ndim > 1 else values.reshape(1, -1)
        if self.how == "zscore":
            made = rows - rows.mean(axis=1, keepdims=True)
            spread = np.sqrt((made * made).mean(axis=1, keepdims=True))
        else:
            ends = (self.low, self.high) if self.how == "percentile" else (0, 100)
            low, high = np.percentile(rows, ends, axis=1, keepdims=True)
            made, spread = np.clip(rows, low, high) - low, high - low
        made = np.where(spread > 0, made / np.where(spread > 0, spread, 1.0), 0.0)
        return data.with_values(made.reshape(values.shape).astype(np.float32), unit="1")


class Rate(Step):
    """A signal at `hertz`: low-passed by a windowed sinc below half of the lower rate (Hann, 32 crossings), then linear between samples."""

    name = "rate"
    hertz: float = Field(gt=0, le=1e6)

    def apply(self, data: Data) -> Data:
        rate = _rate(self, data)
        if rate == self.hertz:
            return data
        values = data.values.astype(np.float64)
        if self.hertz < rate:
            values = _filtered(values, _low_pass(0.5 * self.hertz / rate, 32))
        count = max(1, math.floor((values.shape[1] - 1) * self.hertz / rate + 1e-9) + 1)
        made = _along(values, 1, np.arange(count) * (rate / self.hertz), "linear")
        return data.with_values(made.astype(np.float32), rate=self.hertz)


class Band(Step):
    """A signal between `low` and `high` hertz (either may be 0: no such bound), by windowed sincs, without delay; edges are mirrored."""

    name = "band"
    low: float = Field(default=0.0, ge=0)
    high: float = Field(default=0.0, ge=0)

    def apply(self, data: Data) -> Data:
        rate = _rate(self, data)
        if self.high >= rate / 2 or self.low >= rate / 2 or (self.high and self.low >= self.high):
            raise _unfit(self, f"the band must lie below {rate / 2:g} Hz, low before high")
        values = data.values.astype(np.float64)
        if self.high:
            values = _filtered(values, _low_pass(self.high / rate, 16))
        if self.low:
            values = values - _filtered(values, _low_pass(self.low / rate, 4))
        return data.with_values(values.astype(np.float32))


class Unit(Step):
    """Values from their unit to `to` by a fixed factor and offset (UCUM); from an unknown unit nothing is guessed."""

    name = "unit"
    to: str

    def apply(self, data: Data) -> Data:
        if data.unit == self.to:
            return data
        if (data.unit, self.to) not in UNITS:
            raise _unfit(self, f"from {data.unit or 'no unit'} to {self.to} there is no fixed factor")
        factor, offset = UNITS[data.unit, self.to]
        return data.with_values((data.values.astype(np.float64) * factor + offset).astype(np.float32), unit=self.to)


class Features(Step):
    """Numbers of an image, volume or signal, float32: mean, standard deviation, skewness, kurtosis, the percentiles 1, 5, 25, 50, 75, 95,
    99, energy, entropy of 64 bins (bits); of a signal also, per channel, zero crossings a second and the shares of power below 1, 5, 15 and
    40 Hz."""

    name = "features"

    def apply(self, data: Data) -> Data:
        values = data.values.astype(np.float64)
        if not values.size or not np.isfinite(values).all():
            raise _unfit(self, "no values, or some that are not finite")
        made = _of_values(values.ravel())
        if data.rate is not None and values.ndim == 2:
            for channel in values:
                made += _of_channel(channel, data.rate)
        return Data(np.array(made, dtype=np.float32))


class Ngrams(Step):
    """A text as `buckets` numbers: runs of `shortest` to `longest` words, each added as +1 or -1 to a bucket, both by its SHA-256
    (K. Weinberger et al., "Feature hashing", ICML 2009), the whole scaled to length 1. A word is a run of letters and digits, in small
    letters; signs of Chinese, Japanese and Korean are words each. There is no vocabulary: nothing is learned from notes for it."""

    name = "ngrams"
    shortest: int = Field(default=1, ge=1, le=5)
    longest: int = Field(default=2, ge=1, le=5)
    buckets: int = Field(ge=8, le=65_536)

    def apply(self, data: Data) -> Data:
        if data.unit != TEXT or data.values.dtype != np.uint8:
            raise _unfit(self, "it is for texts")
        words = _WORD.findall(data.values.tobytes().decode().translate(_PLAIN).lower())
        made = np.zeros(self.buckets, dtype=np.float64)
        for count in range(self.shortest, self.longest + 1):
            for start in range(len(words) - count + 1):
                drawn = sha256(" ".join(words[start : start + count]).encode()).digest()
                made[int.from_bytes(drawn[:8], "big") % self.buckets] += 1 if drawn[8] & 1 else -1
        length = math.sqrt(math.fsum(made * made))
        return Data((made / length if length else made).astype(np.float32))


_ALL: tuple[type[Step], ...] = (Window, Orient, Resample, Scale, Crop, Normalise, Rate, Band, Unit, Features, Ngrams)
STEPS: dict[str, type[Step]] = {one.name: one for one in _ALL}
UNITS: dict[tuple[str, str], tuple[float, float]] = {
    ("uV", "mV"): (1e-3, 0), ("mV", "uV"): (1e3, 0), ("V", "mV"): (1e3, 0), ("mV", "V"): (1e-3, 0), ("V", "uV"): (1e6, 0),
    ("uV", "V"): (1e-6, 0),
    ("[degF]", "Cel"): (5 / 9, -160 / 9), ("Cel", "[degF]"): (9 / 5, 32), ("K", "Cel"): (1, -273.15), ("Cel", "K"): (1, 273.15),
    ("g/L", "g/dL"): (0.1, 0), ("g/dL", "g/L"): (10, 0), ("mm[Hg]", "kPa"): (0.133322387415, 0), ("kPa", "mm[Hg]"): (1 / 0.133322387415, 0),
    ("cm", "m"): (0.01, 0), ("m", "cm"): (100, 0), ("[lb_av]", "kg"): (0.45359237, 0), ("kg", "[lb_av]"): (1 / 0.45359237, 0),
}  # fmt: skip
"""(from, to) -> (factor, offset), units as UCUM writes them. Amounts of substance need the substance: they are no fixed factor."""


def _unfit(step: Step, reason: str) -> Problem:
    return Problem("pipelines.unfit", step=step.name, reason=reason)


def _affine(step: Step, data: Data) -> NDArray[np.float64]:
    if data.affine is None or data.values.ndim < 3:
        raise _unfit(step, "it is for volumes with a geometry")
    return data.affine


def _spatial(step: Step, data: Data, axes: int) -> NDArray[Any]:
    if data.rate is not None or data.values.ndim != axes or not data.values.size:
        raise _unfit(step, f"it is for images or volumes of {axes} axes")
    if not np.isfinite(data.values).all():
        raise _unfit(step, "values that are not finite")
    return data.values


def _rate(step: Step, data: Data) -> float:
    if data.rate is None or data.values.ndim != 2 or not data.values.size:
        raise _unfit(step, "it is for signals with a rate")
    if not np.isfinite(data.values).all():
        raise _unfit(step, "values that are not finite")
    return data.rate


def _along(values: NDArray[Any], axis: int, at: NDArray[np.float64], by: str) -> NDArray[Any]:
    """`values` at the fractional indices `at` of one axis."""
    last = values.shape[axis] - 1
    if by == "nearest":
        return np.take(values, np.clip(np.floor(at + 0.5).astype(np.int64), 0, last), axis)
    below = np.clip(np.floor(at).astype(np.int64), 0, last)
    shape = [1] * values.ndim
    shape[axis] = len(at)
    part = np.clip(at - below, 0.0, 1.0).reshape(shape)
    above = np.minimum(below + 1, last)
    return np.take(values, below, axis) * (1.0 - part) + np.take(values, above, axis) * part


def _low_pass(cut: float, crossings: int) -> NDArray[np.float64]:
    """A symmetric filter; `cut` in cycles a sample, 0..0.5."""
    half = min(1 << 16, math.ceil(crossings / (2 * cut)))
    at = np.arange(-half, half + 1)
    made = 2 * cut * np.sinc(2 * cut * at) * np.hanning(2 * half + 3)[1:-1]
    return made / made.sum()


def _filtered(values: NDArray[np.float64], taps: NDArray[np.float64]) -> NDArray[np.float64]:
    half = len(taps) // 2
    edges = np.pad(values, ((0, 0), (half, half)), mode="reflect" if values.shape[1] > half else "edge")
    return np.stack([np.convolve(channel, taps, mode="valid") for channel in edges])


def _of_values(flat: NDArray[np.float64]) -> list[float]:
    mean = flat.mean()
    off = flat - mean
    spread = math.sqrt((off * off).mean())
    standard = off / spread if spread > 0 else off
    counts = np.histogram(flat, bins=64)[0] if spread > 0 else np.array([len(flat)])
    shares = counts[counts > 0] / len(flat)
    percentiles = [float(one) for one in np.percentile(flat, (1, 5, 25, 50, 75, 95, 99))]
    moments = [float(mean), spread, float((standard**3).mean()), float((standard**4).mean())]
    return [*moments, *percentiles, float((flat * flat).mean()), float(-(shares * np.log2(shares)).sum())]


def _of_channel(channel: NDArray[np.float64], rate: float) -> list[float]:
    centred = channel - channel.mean()
    crossings = float((np.diff(np.signbit(centred)) != 0).sum() / (len(channel) / rate))
    power = np.abs(np.fft.rfft(centred)) ** 2
    hertz = np.fft.rfftfreq(len(channel), 1 / rate)
    total = power.sum()
    return [crossings, *(float(power[hertz < edge].sum() / total) if total > 0 else 0.0 for edge in (1, 5, 15, 40))]
