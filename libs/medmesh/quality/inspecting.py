"""Looking at files one after the other: what each is by its content, decoded, and every rule of its kind."""

from __future__ import annotations

import io
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from posixpath import dirname

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from medmesh.duplicates.clusters import near
from medmesh.duplicates.hashes import exact, look, same_pixels
from medmesh.errors import Problem
from medmesh.importing.formats import arrays, edf, found, nifti, wav, wfdb
from medmesh.importing.formats.content import START
from medmesh.importing.port import Source
from medmesh.quality import dicom, tables
from medmesh.quality.arrays import of_image, of_signal, of_volume
from medmesh.quality.report import Report
from medmesh.quality.rules import BLOCKING, Finding

ALIKE = 6  # of 256 bits
_THUMBNAIL = 96  # pixels


class Inspection:
    """`look_at` each file, then `finish`. Keeps hashes and the geometry of DICOM slices, never pixels."""

    def __init__(self, title: str, blocking: frozenset[str] = BLOCKING) -> None:
        self.report = Report(title, blocking)
        self._files: dict[str, str] = {}
        self._pixels: dict[str, str] = {}
        self._looks: list[NDArray[np.uint8]] = []
        self._series: dict[str, tuple[str, list[dicom.Slice]]] = {}

    def look_at(self, place: str, data: bytes, beside: dict[str, bytes] | None = None) -> None:
        """One file; `beside` are the others of a WFDB record by name."""
        digest = exact(data)
        if (first := self._files.setdefault(digest, place)) != place:
            self.report.add("file", place, [Finding("exact_copy", {"first": first})])
            return
        form = found(data[:START])
        if form is None:
            return
        try:
            getattr(self, f"_{form.name}")(place, data, beside or {})
        except Problem as problem:
            self.report.add("file", place, [Finding("unreadable", {"reason": problem.detail()})])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's decoders
            self.report.add("file", place, [Finding("unreadable", {"reason": type(error).__name__})])

    def finish(self) -> Report:
        """Series as wholes, and which pictures look alike."""
        for place, slices in self._series.values():
            if len(slices) > 1:
                self.report.add("series", f"{place} + {len(slices) - 1}", dicom.of_series(slices))
        if self._looks:
            sizes = Counter(near(np.array(self._looks), ALIKE))
            self.report.clusters = sorted((size for size in sizes.values() if size > 1), reverse=True)
        return self.report

    def _dicom(self, place: str, data: bytes, beside: dict[str, bytes]) -> None:
        from medmesh.imaging.reading import frame_count, parse, pixels, read

        if "DirectoryRecordSequence" in (directory := parse(data)):
            return
        if "PixelData" not in directory:
            self.report.add("file", place, [])
            return
        dataset = read(data)
        if frame_count(dataset) > 1:
            self._frames(place, dataset)
            return
        series = str(dataset.get("SeriesInstanceUID") or place)
        self._series.setdefault(series, (place, []))[1].append(dicom.slice_of(dataset))
        findings = dicom.of_object(dataset)
        try:
            values = pixels(dataset)
        except Problem:
            self.report.add("image", place, findings)
            return
        self._picture("image", place, values, (np.clip(values, 0, 1) * 255).astype(np.uint8), findings)

    def _frames(self, place: str, dataset: Dataset) -> None:
        """As one volume, and its middle frame as it is seen."""
        from medmesh.imaging.reading import frame_count, frames
        from medmesh.quality.frames import of_object

        findings = of_object(dataset)
        middle, sums = None, []
        try:
            for number, frame in enumerate(frames(dataset)):
                middle = frame if number == frame_count(dataset) // 2 else middle
                sums.append(zlib.crc32(frame.tobytes()))
        except Problem:
            self.report.add("volume", place, findings)
            return
        assert middle is not None
        self._picture("volume", place, np.array(sums), _stretched(middle), findings)

    def _png(self, place: str, data: bytes, beside: dict[str, bytes]) -> None:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as opened:
            deep = opened.mode[:1] in "IF"
            values = np.asarray(opened if deep else opened.convert("L"))
        findings = [Finding("too_small", {"least": dicom.SMALLEST})] if min(values.shape) < dicom.SMALLEST else []
        shown = values if not deep else _stretched(values)
        self._picture("image", place, values, shown, [*findings, *of_image(values, bits=16 if deep else 8)])

    _jpeg = _png

    def _nifti(self, place: str, data: bytes, beside: dict[str, bytes]) -> None:
        values, header = nifti.decode(data)
        for axis, spacing in zip("xyz", header.spacing, strict=True):
            self.report.measure(f"spacing {axis} (mm)", spacing)
        middle = values.reshape(*values.shape[:3], -1)[:, :, values.shape[2] // 2, 0]
        findings = [*of_image(values), *of_volume(header.shape, header.spacing, header.affine)]
        self._picture("volume", place, values, _stretched(np.rot90(middle)), findings)

    def _npy(self, place: str, data: bytes, beside: dict[str, bytes]) -> None:
        for name, values in arrays.decode(data).items():
            self.report.add("image" if values.ndim > 1 else "signal", f"{place}[{name}]" if name else place, of_image(values))

    _npz = _npy

    def _edf(self, place: str, data: bytes, beside: dict[str, bytes]) -> None:
        channels, header = edf.decode(data)
        signals = [one for one in header.channels if not one.annotations]
        rates = [one.count / header.seconds for one in signals]
        self._signal(place, channels, rates, [one.label for one in signals])

    def _wav(self, place: str, data: bytes, beside: dict[str, bytes]) -> None:
        channels, rate = wav.decode(data)
        self.report.measure("audio rate (Hz)", rate)
        self.report.add("audio", place, of_signal(list(channels), [rate] * len(channels), [], "audio"))

    def _wfdb(self, place: str, data: bytes, beside: dict[str, bytes]) -> None:
        header = wfdb.read_header(data)
        if missing := [name for name in header.files if name not in beside]:
            raise Problem("formats.missing_file", place=place, reference=missing[0])
        channels, wrong = wfdb.decode(header, beside)
        findings = [Finding("checksum", {"channel": name}) for name in wrong]
        self._signal(place, list(channels), [header.rate] * len(channels), [one.label for one in header.signals], findings)

    def _csv(self, place: str, data: bytes, beside: dict[str, bytes]) -> None:
        self.report.add("table", place, tables.of_table(io.BytesIO(data)))

    def _vcf(self, place: str, data: bytes, beside: dict[str, bytes]) -> None:
        from medmesh.importing.formats.vcf import describe

        describe(io.BytesIO(data), len(data))
        self.report.add("table", place, [])

    def _signal(
        self, place: str, channels: list[NDArray[np.float32]], rates: list[float], names: list[str], findings: Iterable[Finding] = ()
    ) -> None:
        for values, rate in zip(channels, rates, strict=True):
            self.report.measure("signal rate (Hz)", rate)
            self.report.measure("signal length (s)", len(values) / rate)
        self.report.add("signal", place, [*findings, *of_signal(channels, rates, names)])

    def _picture(self, kind: str, place: str, values: NDArray, shown: NDArray[np.uint8], findings: list[Finding]) -> None:
        if (first := self._pixels.setdefault(same_pixels(values), place)) != place:
            findings = [*findings, Finding("same_pixels", {"first": first})]
        codes = self.report.add(kind, place, findings)
        picture = Image.fromarray(np.ascontiguousarray(shown))
        self._looks.append(look(picture, "average"))
        self.report.measure("mean brightness", float(np.mean(shown)) / 255)
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        made = io.BytesIO()
        picture.save(made, "PNG")
        self.report.picture(place, made.getvalue(), codes)


def codes_of(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """The codes of every rule that one item breaks (its files by name, the one that describes the others first)."""
    made = Inspection("")
    first, *others = files.items()
    made.look_at(first[0], first[1], dict(others))
    return tuple(sorted(made.report.counts))


def inspect(made: Inspection, source: Source) -> Iterator[int]:
    """Look at every file; after each, how many were. One file at a time is in memory."""
    names = set(source.names)
    for number, name in enumerate(source.names, start=1):
        with source.open(name) as file:
            data = file.read()
        beside = {}
        if found(data[:START]) is wfdb.WFDB:
            try:
                for own in wfdb.read_header(data).files:
                    if (path := f"{dirname(name)}/{own}".lstrip("/")) in names:
                        with source.open(path) as file:
                            beside[own] = file.read()
            except Problem:
                pass  # said when it is looked at
        made.look_at(name, data, beside)
        yield number


def _stretched(values: NDArray) -> NDArray[np.uint8]:
    """uint8 from the lowest to the highest 1 % of the finite values."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        return np.zeros(values.shape, np.uint8)
    low, high = (float(one) for one in np.percentile(finite, (1, 99)))
    with np.errstate(all="ignore"):
        scaled = np.clip((np.nan_to_num(values.astype(np.float64)) - low) / max(high - low, 1e-12), 0, 1)
    return (scaled * 255).astype(np.uint8)
