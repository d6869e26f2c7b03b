"""EDF, EDF+ and BDF biosignals. Sources: B. Kemp et al., "A simple format for exchange of digitized polygraphic recordings", 1992;
B. Kemp and J. Olivan, "EDF+", 2003; BioSemi's BDF. The patient's name, code and birth date stand in the header's first fields.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medmesh.importing.formats.content import Content, Format, bounded, damaged, exactly, text
from medmesh.importing.formats.identity import parts

_WIDTHS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)  # label, transducer, unit, min, max, digital min, max, filter, samples, reserved
_NOBODY = b"X X X X"
_ANNOTATIONS = ("EDF Annotations", "BDF Annotations")
_NEITHER = re.compile(r"(?:X|\s)*")
_PLUS = re.compile(r"Startdate X X X X")
_STANDARD = re.compile(  # edfplus.info/specs/edftexts.html
    rb"Sleep stage (?:[W1234RN?]|N[123])|Lights (?:on|off)|Recording (?:starts|ends)|(?:Obstructive |Central |Mixed )?(?:apnea|hypopnea)"
    rb"|(?:Apnea|Hypopnea|RERA|Hypoventilation|Snore|PLMS|Movement time|Limb movement|EEG arousal|Oxygen desaturation)"
    rb"|(?:Periodic|CSR) breathing"
)
_TALS = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15(\d+(?:\.\d*)?))?\x14((?:[^\x14\x00]*\x14)*)\x00")


@dataclass(frozen=True, slots=True)
class Channel:
    """One signal: physical values are (digital - digital_low) x gain + low, in `unit`; `count` samples a record."""

    label: str
    unit: str
    low: float
    gain: float
    digital_low: float
    digital_high: float
    count: int
    begins: int

    @property
    def annotations(self) -> bool:
        """Whether it is text."""
        return self.label in _ANNOTATIONS


@dataclass(frozen=True, slots=True)
class Header:
    """`seconds` a record, `begins` the byte of the first, `width` the bytes of a sample (3 in BDF); `plus` is EDF+C, EDF+D or empty."""

    width: int
    plus: str
    begins: int
    records: int
    seconds: float
    record: int
    channels: tuple[Channel, ...]
    raw: bytes


def read_header(file: BinaryIO, size: int) -> Header:
    """The header, and that the records it promises are there. A count of -1 (a recording cut off) is taken from the size."""
    start = exactly(file, 256, "header")
    if not _matches(start):
        raise damaged("version", "this is neither EDF nor BDF")
    width = 3 if start[0] == 0xFF else 2
    count = _whole(start[252:256], "number of signals")
    if not 1 <= count <= 4096:
        raise damaged("number of signals", "it must be 1 to 4096")
    if _whole(start[184:192], "bytes of the header") != 256 * (count + 1):
        raise damaged("bytes of the header", "they contradict the number of signals")
    rest = exactly(file, 256 * count, "the signals' header")
    columns, at = [], 0
    for field in _WIDTHS:
        columns.append([rest[at + field * place : at + field * (place + 1)] for place in range(count)])
        at += field * count
    channels, begins = [], 0
    for place in range(count):
        channel = _channel([column[place] for column in columns], begins, f"signal {place + 1}")
        channels.append(channel)
        begins += channel.count * width
    seconds, records = _number(start[244:252], "duration of a record"), _whole(start[236:244], "number of records")
    if seconds < 0 or (seconds == 0 and any(not channel.annotations for channel in channels)):
        raise damaged("duration of a record", "it must be above 0")
    there = (size - 256 * (count + 1)) // begins
    if records == -1:
        records = there
    if records < 0 or records > there:
        raise damaged("records", "the file ends before the last one")
    bounded(records * begins * 4 // width, "records")
    return Header(width, text(start[192:197]), 256 * (count + 1), records, seconds, begins, tuple(channels), start + rest)


def describe(file: BinaryIO, size: int) -> Content:
    """Rates, labels, units; annotations are counted. Patient, recording and start are identity, unless they are X and 1 January 1985."""
    found = read_header(file, size)
    signals = [channel for channel in found.channels if not channel.annotations]
    meta: dict[str, Any] = {
        "channels": [channel.label for channel in signals],
        "units": [channel.unit for channel in signals],
        "rates": [round(channel.count / found.seconds, 6) for channel in signals] if found.seconds else [],
        "seconds": round(found.records * found.seconds, 6),
        "bits": 8 * found.width,
        "continuous": found.plus[:5] not in ("EDF+D", "BDF+D"),
    }
    identity = list(_identity(found.raw))
    if size > found.begins + found.records * found.record:
        identity.append(("after the records", ""))
    if len(signals) < len(found.channels):
        texts = said(found, file.read(found.records * found.record))
        meta["annotations"] = len(texts)
        names = parts(identity)
        if any(word in one for _, _, one in texts for word in names):
            identity.append(("annotations", ""))
    return Content("signal", meta, tuple(identity))


def decode(data: bytes) -> tuple[list[NDArray[np.float32]], Header]:
    """Physical values of each signal that is no annotation, float32 [samples], and the header."""
    found = read_header(io.BytesIO(data), len(data))
    records = np.frombuffer(data, "u1", found.records * found.record, found.begins).reshape(found.records, found.record)
    made = []
    for channel in found.channels:
        if not channel.annotations:
            digital = _digital(records[:, channel.begins : channel.begins + channel.count * found.width], found.width)
            made.append(((digital - channel.digital_low) * channel.gain + channel.low).astype(np.float32))
    return made, found


def said(found: Header, body: bytes) -> list[tuple[float, float | None, str]]:
    """(onset in seconds, duration or None, text) of every annotation in the records; those that keep time are left out (EDF+ §2.2.4)."""
    made = []
    for channel in found.channels:
        if not channel.annotations:
            continue
        for record in range(found.records):
            start = record * found.record + channel.begins
            for onset, duration, notes in _TALS.findall(body[start : start + channel.count * found.width]):
                for one in notes.split(b"\x14")[:-1]:
                    if one:
                        made.append((float(onset), float(duration) if duration else None, text(one)))
    return made


def clean(data: bytes) -> bytes:
    """Patient and recording as EDF+ writes the unknown, the start as 1 January 1985; words of them in annotations become X."""
    found = read_header(io.BytesIO(data), len(data))
    end = found.begins + found.records * found.record
    made = bytearray(data[:end])
    made[8:88] = _NOBODY.ljust(80)
    made[88:168] = b"Startdate X X X X".ljust(80)
    made[168:184] = b"01.01.8500.00.00"
    made[192:236] = found.plus.encode("latin-1", "replace").ljust(44)
    count = len(found.channels)
    made[256 + 224 * count : 256 + 256 * count] = b" " * 32 * count
    made[236:244] = str(found.records).encode().ljust(8)
    words = sorted(parts(_identity(found.raw)), key=len, reverse=True)
    needles = [needle for word in words for needle in {word.encode(), word.encode("gb18030"), word.encode("latin-1", "ignore")} if needle]
    for channel in found.channels if needles else ():
        if channel.annotations:
            for record in range(found.records):
                start = found.begins + record * found.record + channel.begins
                stop = start + channel.count * found.width
                kept = bytes(made[start:stop])
                for needle in needles:
                    kept = re.sub(re.escape(needle), b"X" * len(needle), kept, flags=re.I)
                made[start:stop] = kept
    return bytes(made)


def beside(data: bytes) -> bytes:
    """The header and the annotations."""
    found = read_header(io.BytesIO(data), len(data))
    texts = said(found, data[found.begins :])
    return found.raw + "\n".join(one for _, _, one in texts).encode()


def standard(data: bytes) -> bytes:
    """A cleaned file in which nothing is left that somebody wrote freely but the labels and units of its signals: sensors and filters are
    blank, an annotation that is no standard text becomes X of its length. For who keeps recordings whose annotations nobody has read."""
    found = read_header(io.BytesIO(data), len(data))
    made, count = bytearray(data), len(found.channels)
    made[256 + 16 * count : 256 + 96 * count] = b" " * 80 * count  # transducers
    made[256 + 136 * count : 256 + 216 * count] = b" " * 80 * count  # filters
    for channel in found.channels:
        for record in range(found.records if channel.annotations else 0):
            start = found.begins + record * found.record + channel.begins
            stop = start + channel.count * found.width
            made[start:stop] = _TALS.sub(_without_words, bytes(made[start:stop]))
    return bytes(made)


def labels(data: bytes) -> list[str]:
    """Labels and units of the signals."""
    channels = read_header(io.BytesIO(data), len(data)).channels
    return [word for one in channels if not one.annotations for word in (one.label, one.unit) if word]


def _without_words(found: re.Match[bytes]) -> bytes:
    notes = found[3].split(b"\x14")
    kept = [one if _STANDARD.fullmatch(one) else b"X" * len(one) for one in notes]
    return found[0][: -1 - len(found[3])] + b"\x14".join(kept) + b"\0"


def _identity(raw: bytes) -> list[tuple[str, str]]:
    patient, recording, start = text(raw[8:88]), text(raw[88:168]), text(raw[168:176])
    count = len(raw) // 256 - 1
    found = []
    if not _NEITHER.fullmatch(patient):
        found.append(("patient", patient))
    if recording and not _PLUS.fullmatch(recording):
        found.append(("recording", recording))
    if start not in ("01.01.85", ""):
        found.append(("start", start))
    if reserved := text(raw[192:236])[5:].strip():
        found.append(("reserved", reserved))
    if reserved := text(raw[256 + 224 * count : 256 + 256 * count]).strip():
        found.append(("reserved of the signals", reserved))
    return found


def _channel(fields: list[bytes], begins: int, where: str) -> Channel:
    label, unit = text(fields[0]), text(fields[2])
    low, high = _number(fields[3], where), _number(fields[4], where)
    digital_low, digital_high = _number(fields[5], where), _number(fields[6], where)
    count = _whole(fields[8], where)
    if not 1 <= count <= 1 << 24:
        raise damaged(where, "the number of samples in a record")
    if label in _ANNOTATIONS:
        return Channel(label, "", 0.0, 1.0, 0.0, 0.0, count, begins)
    if digital_high <= digital_low or high == low:
        raise damaged(where, "its minimum and maximum are equal or exchanged")
    return Channel(label, unit, low, (high - low) / (digital_high - digital_low), digital_low, digital_high, count, begins)


def _digital(raw: NDArray[np.uint8], width: int) -> NDArray[np.float64]:
    flat = np.ascontiguousarray(raw).reshape(-1, width)
    if width == 2:
        return flat.view("<i2").ravel().astype(np.float64)
    wide = np.zeros((len(flat), 4), "u1")
    wide[:, 1:] = flat
    return (wide.view("<i4").ravel() >> 8).astype(np.float64)


def _number(raw: bytes, where: str) -> float:
    try:
        value = float(raw.decode("ascii").strip().replace(",", "."))
    except ValueError:
        raise damaged(where, "a field that is no number") from None
    if not math.isfinite(value):
        raise damaged(where, "a number that is not finite")
    return value


def _whole(raw: bytes, where: str) -> int:
    value = _number(raw, where)
    if value != int(value):
        raise damaged(where, "a number that is not whole")
    return int(value)


def _matches(start: bytes) -> bool:
    return (start[:8] == b"0       " or start[:8] == b"\xffBIOSEMI") and start[184:192].strip().isdigit()


EDF = Format("edf", "application/x-edf", (".edf", ".bdf", ".rec"), _matches, describe, clean, beside)
