"""WFDB records: a header in text, signals in other files, annotations. Sources: header(5), signal(5), annot(5) of the WFDB library,
physionet.org/physiotools/wag. Comments of headers hold age, sex, diagnoses, and whatever somebody wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medmesh.importing.formats.content import MOST_TEXT, Content, Format, bounded, damaged, text, unsupported

_RECORD = re.compile(
    r"(?P<name>[-\w]+)(?:/(?P<segments>\d+))?[ \t]+(?P<signals>\d+)(?:[ \t]+(?P<rate>[\d.eE+-]+)(?:/[\d.eE+-]+(?:\([\d.eE+-]+\))?)?"
    r"(?:[ \t]+(?P<samples>\d+)(?:[ \t]+(?P<start>\S.*))?)?)?[ \t]*"
)
_SIGNAL = re.compile(
    r"(?P<file>[^\s/\\]+)[ \t]+(?P<format>\d+)(?:x(?P<times>\d+))?(?::(?P<skew>\d+))?(?:\+(?P<offset>\d+))?"
    r"(?:[ \t]+(?P<gain>[\d.eE+-]+)(?:\((?P<baseline>-?\d+)\))?(?:/(?P<unit>\S+))?(?:[ \t]+(?P<bits>\d+)(?:[ \t]+(?P<zero>-?\d+)"
    r"(?:[ \t]+(?P<first>-?\d+)(?:[ \t]+(?P<checksum>-?\d+)(?:[ \t]+(?P<block>\d+)(?:[ \t]+(?P<label>\S.*))?)?)?)?)?)?)?[ \t]*"
)
_SYMBOLS = dict(enumerate(' NLRaVFJASEj/Q~ | sT*D"=pB^t+u?![]en@xf()r'))  # ecgcodes.h; 15 and 17 are unused
_KNOWN = re.compile(r"#?\s*(Age|Sex|Dx)\s*:\s*([\d,]{1,200}|[MF]|Male|Female|male|female)\s*")  # PhysioNet/CinC challenges
_RHYTHM = re.compile(rb"\([A-Z0-9]{1,8}\0?")
_BITS = {8: 8, 16: 16, 24: 24, 32: 32, 61: 16, 80: 8, 160: 16, 212: 12, 310: 32 / 3, 311: 32 / 3}
_INVALID = {16: -(1 << 15), 61: -(1 << 15), 24: -(1 << 23), 32: -(1 << 31), 212: -(1 << 11), 80: -(1 << 7), 160: -(1 << 15),
            310: -(1 << 9), 311: -(1 << 9)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Signal:
    """One line of the header: physical values are (digital - baseline) / gain in `unit`; `times` samples a frame."""

    file: str
    format: int
    times: int
    skew: int
    offset: int
    gain: float
    baseline: int
    unit: str
    checksum: int | None
    label: str


@dataclass(frozen=True, slots=True)
class Header:
    """A record of one segment: frames a second, frames (0: as many as there are)."""

    name: str
    rate: float
    samples: int
    signals: tuple[Signal, ...]
    comments: tuple[str, ...]
    start: str
    lines: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Of the signals, each once, in the order of the header."""
        return tuple(dict.fromkeys(signal.file for signal in self.signals))


def read_header(data: bytes) -> Header:
    """A .hea file. Raises `formats.damaged` with the line, `formats.unsupported` for records of several segments."""
    if len(data) > MOST_TEXT:
        raise damaged("header", "it is too long")
    lines, comments, signals = [], [], []
    record: re.Match[str] | None = None
    for number, line in enumerate(text_of(data).splitlines(), start=1):
        if not line.strip():
            continue
        if line.lstrip().startswith("#"):
            comments.append(line.strip())
        elif record is None:
            record = _RECORD.fullmatch(line)
            if record is None:
                raise damaged("the record line", "it must be a name, the number of signals, a rate and a length", line=number)
            if record["segments"]:
                raise unsupported("a record of several segments; give its segments")
            lines.append(line)
        else:
            signals.append(_signal(line, number))
            lines.append(line)
    if record is None:
        raise damaged("the record line", "there is none")
    if len(signals) != int(record["signals"]):
        raise damaged("the record line", "the number of signals is not that of the lines")
    rate = _number(record["rate"] or "250", "rate")
    if not 0 < rate <= 1e7:
        raise damaged("rate", "it must be above 0")
    samples = int(record["samples"] or 0)
    bounded(samples * sum(signal.times for signal in signals) * 4, "the record line")
    return Header(record["name"], rate, samples, tuple(signals), tuple(comments), (record["start"] or "").strip(), tuple(lines))


def describe(file: BinaryIO, size: int) -> Content:
    """Rate, leads, units; comments and the start are identity. `Age`, `Sex` and `Dx` in comments, where they are what they are named, are
    labels too."""
    found = read_header(file.read(MOST_TEXT + 1))
    labels: dict[str, Any] = {}
    for comment in found.comments:
        if known := _KNOWN.fullmatch(comment):
            labels[known[1].lower()] = _label(known[1], known[2])
    identity = [("start", found.start)] if found.start else []
    identity += [("comment", comment.lstrip("# ")) for comment in found.comments if comment.strip("# ")]
    meta: dict[str, Any] = {
        "rate": found.rate,
        "channels": [signal.label for signal in found.signals],
        "units": [signal.unit for signal in found.signals],
        "samples": found.samples,
        "seconds": round(found.samples / found.rate, 6),
        "formats": sorted({signal.format for signal in found.signals}),
    }
    return Content("signal", meta, tuple(identity), labels)


def clean(data: bytes) -> bytes:
    """The header without comments and start."""
    found = read_header(data)
    first = found.lines[0]
    if found.start:
        first = first[: first.rindex(found.start)].rstrip()
    return ("\n".join((first, *found.lines[1:])) + "\n").encode()


def renamed(data: bytes, stem: str) -> tuple[bytes, dict[str, str]]:
    """A header whose record is called `stem`, and its signals' files by their new names: the name of a record is a patient's, often."""
    found = read_header(data)
    files = {name: f"{stem}_{place}.dat" if place else f"{stem}.dat" for place, name in enumerate(found.files)}
    lines = [stem + found.lines[0][len(found.name) :]]
    for line, signal in zip(found.lines[1:], found.signals, strict=True):
        lines.append(files[signal.file] + line.lstrip()[len(signal.file) :])
    return ("\n".join(lines) + "\n").encode(), files


def decode(found: Header, opened: Mapping[str, bytes]) -> tuple[NDArray[np.float32], list[str]]:
    """Physical values, float32 [signals, frames], NaN where the format marks none; several samples a frame are averaged. And the labels of
    signals whose checksum is wrong. `opened` are the signals' files by name. Raises `formats.damaged` (cut short, unequal formats)."""
    frames, wrong, made = found.samples, [], {}
    for name in found.files:
        own = [signal for signal in found.signals if signal.file == name]
        if len({(signal.format, signal.offset) for signal in own}) != 1:
            raise damaged("signal lines", "signals of one file have different formats")
        form, offset, width = own[0].format, own[0].offset, sum(signal.times for signal in own)
        raw = opened[name][offset:]
        there = _available(form, len(raw)) // width
        frames = frames or there
        if there < frames:
            raise damaged("a signal file", "it ends before the last sample")
        digital = _DECODERS[form](raw, frames * width).reshape(frames, width)
        at = 0
        for signal in own:
            taken = digital[:, at : at + signal.times]
            at += signal.times
            if form == 8:  # differences
                taken = np.cumsum(taken.ravel()).reshape(taken.shape)
            if signal.checksum is not None and (int(taken.sum()) - signal.checksum) % 65536:
                wrong.append(signal.label)
            physical = np.where(taken == _INVALID.get(form, 1 << 40), np.nan, (taken - signal.baseline) / signal.gain)
            made[id(signal)] = physical.mean(axis=1).astype(np.float32)
    return np.stack([made[id(signal)] for signal in found.signals]) if made else np.zeros((0, frames), np.float32), wrong


def read_annotations(data: bytes) -> Iterator[tuple[int, str, str]]:
    """(sample, symbol, text) of an annotation file in MIT format. Raises `formats.damaged`."""
    for sample, code, note, _ in _annotations(data):
        yield sample, _SYMBOLS.get(code, "?"), text(note)


def clean_annotations(data: bytes) -> bytes:
    """Without texts, but for names of rhythms such as `(AFIB`."""
    made = bytearray()
    for _, _, note, words in _annotations(data):
        for kind, word in words:
            if kind != 63 or _RHYTHM.fullmatch(note):
                made += word
    return bytes(made) + b"\0\0"


def text_of(data: bytes) -> str:
    """The header as text: UTF-8, else GB18030, else Latin-1."""
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def _annotations(data: bytes) -> Iterator[tuple[int, int, bytes, list[tuple[int, bytes]]]]:
    """(sample, code, text, the words it stands in, each with its code)."""
    at = sample = 0
    current: tuple[int, int] | None = None
    note = b""
    words: list[tuple[int, bytes]] = []
    while True:
        if at + 2 > len(data):
            raise damaged("annotations", "the file ends before their end")
        word = int.from_bytes(data[at : at + 2], "little")
        code, value = word >> 10, word & 1023
        if (code == 59 or code < 50) and current is not None:  # a new annotation, an interval before one, or the end
            yield *current, note, words
            current, note, words = None, b"", []
        if code == 0 and value == 0:
            return
        if code == 59:
            high, low = int.from_bytes(data[at + 2 : at + 4], "little"), int.from_bytes(data[at + 4 : at + 6], "little")
            interval = high << 16 | low
            sample += interval - (1 << 32 if interval >> 31 else 0)
            length = 6
        elif code == 63:
            length = 2 + value + value % 2
            note = data[at + 2 : at + 2 + value]
        else:
            length = 2
            if code < 50:
                sample += value
                current = (sample, code)
        if at + length > len(data):
            raise damaged("annotations", "the file ends before their end")
        words.append((code, data[at : at + length]))
        at += length


def _signal(line: str, number: int) -> Signal:
    found = _SIGNAL.fullmatch(line)
    if found is None:
        raise damaged("a signal line", "it must be a file, a format, and what belongs to it", line=number)
    form = int(found["format"])
    if form not in _BITS:
        raise unsupported("signals in a format that is not " + ", ".join(map(str, _BITS)))
    gain = _number(found["gain"] or "0", "gain") or 200.0
    times = int(found["times"] or 1)
    if not 1 <= times <= 10_000:
        raise damaged("a signal line", "the samples of a frame", line=number)
    zero = int(found["zero"] or 0)
    checksum = int(found["checksum"]) if found["checksum"] else None
    baseline = int(found["baseline"]) if found["baseline"] else zero
    if found["file"] in (".", "..", "~"):
        raise unsupported("signals without a file of their own")
    one = Signal(found["file"], form, times, int(found["skew"] or 0), int(found["offset"] or 0), gain, baseline, "", checksum, "")
    return replace(one, unit=found["unit"] or "mV", label=(found["label"] or "").strip())


def _number(value: str, where: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise damaged(where, "it is no number") from None


def _label(name: str, value: str) -> Any:
    if name == "Sex":
        return value[0].upper()
    return int(value) if name == "Age" and value.isdigit() else value


def available(signal: Signal, size: int) -> int:
    """Samples, of all signals of its file, in so many bytes."""
    return _available(signal.format, max(0, size - signal.offset))


def _available(form: int, count: int) -> int:
    if form == 212:
        return count // 3 * 2 + (count % 3 == 2)
    if form in (310, 311):
        return count // 4 * 3
    return int(count * 8 / _BITS[form])


def _plain(kind: str, minus: int = 0) -> Callable[[bytes, int], NDArray[np.int64]]:
    def read(raw: bytes, count: int) -> NDArray[np.int64]:
        return np.frombuffer(raw, kind, count).astype(np.int64) - minus

    return read


def _three_bytes(raw: bytes, count: int) -> NDArray[np.int64]:
    wide = np.zeros((count, 4), "u1")
    wide[:, 1:] = np.frombuffer(raw, "u1", count * 3).reshape(-1, 3)
    return (wide.view("<i4").ravel() >> 8).astype(np.int64)


def _twelve_bits(raw: bytes, count: int) -> NDArray[np.int64]:
    """Format 212: two samples in three bytes."""
    pairs = np.zeros((count + 1) // 2 * 3, "u1")
    data = np.frombuffer(raw, "u1")[: len(pairs)]
    pairs[: len(data)] = data
    a, b, c = pairs.reshape(-1, 3).astype(np.int64).T
    both = np.stack([(b & 15) << 8 | a, (b >> 4) << 8 | c], axis=1).ravel()[:count]
    return both - ((both >> 11) << 12)


def _ten_bits(raw: bytes, count: int, *, straight: bool) -> NDArray[np.int64]:
    """Formats 310 (samples in the upper bits of two words and across them) and 311 (one after the other in 32 bits)."""
    words = np.frombuffer(raw, "<u4", -(-count // 3)).astype(np.int64)
    low, high = words & 0xFFFF, words >> 16
    if straight:
        three = [words & 1023, (words >> 10) & 1023, (words >> 20) & 1023]
    else:
        three = [(low >> 1) & 1023, (high >> 1) & 1023, (low >> 11) | ((high >> 11) << 5)]
    both = np.stack(three, axis=1).ravel()[:count]
    return both - ((both >> 9) << 10)


_DECODERS: dict[int, Callable[[bytes, int], NDArray[np.int64]]] = {
    8: _plain("i1"), 16: _plain("<i2"), 24: _three_bytes, 32: _plain("<i4"), 61: _plain(">i2"), 80: _plain("u1", 128),
    160: _plain("<u2", 1 << 15), 212: _twelve_bits,
    310: lambda raw, count: _ten_bits(raw, count, straight=False), 311: lambda raw, count: _ten_bits(raw, count, straight=True),
}  # fmt: skip


def _matches(start: bytes) -> bool:
    if b"\0" in start:
        return False
    lines = [line for line in start.splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
    found = _RECORD.fullmatch(lines[0].decode("latin-1")) if lines and len(lines[0]) < 400 else None
    if found is None or not found["rate"]:
        return False
    return found["signals"] == "0" or (len(lines) > 1 and re.match(rb"[^\s/\\]+[ \t]+\d+", lines[1]) is not None)


WFDB = Format("wfdb", "text/x-wfdb-header", (".hea",), _matches, describe, clean, lambda data: data)
