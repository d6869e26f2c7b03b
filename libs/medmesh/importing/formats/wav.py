"""WAV audio: RIFF (IBM and Microsoft, 1991) with PCM or IEEE float samples."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from medmesh.importing.formats.content import Content, Format, bounded, damaged, exactly, strings, unsupported

_KEPT = (b"fmt ", b"fact", b"data")
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_GUID = bytes.fromhex("000000001000800000aa00389b71")  # what follows the tag in KSDATAFORMAT_SUBTYPE_*


def describe(file: BinaryIO, size: int) -> Content:
    """Rate, channels, bits; every chunk but the samples and their description is identity (LIST INFO, bext, id3, iXML...)."""
    form: dict[str, int] = {}
    identity, frames = [], -1
    for name, length, body in _chunks(file, size):
        if name == b"fmt ":
            form = _format(body)
        elif name == b"data":
            if not form:
                raise damaged("data", "it comes before fmt")
            frames = length // form["block"]
        elif name not in _KEPT:
            label = name.decode() if name.isascii() and name.decode().isprintable() else "unknown chunk"
            identity.append((label.strip(), " ".join(strings(body))))
    if frames < 0:
        raise damaged("data", "there are no samples")
    if file.read(1):
        identity.append(("after the end", ""))
    meta = {"rate": form["rate"], "channels": form["channels"], "bits": form["bits"], "samples": frames, "float": form["tag"] == _FLOAT}
    return Content("audio", meta | {"seconds": round(frames / form["rate"], 6)}, tuple(identity))


def decode(data: bytes) -> tuple[NDArray[np.float32], float]:
    """Samples as float32 [channels, samples] in -1..1 (integers by their range; 8 bits are unsigned), and the rate in hertz."""
    form: dict[str, int] = {}
    for name, _, body in _chunks(io.BytesIO(data), len(data), whole=True):
        if name == b"fmt ":
            form = _format(body)
        elif name == b"data" and form:
            raw = body[: len(body) // form["block"] * form["block"]]
            return _samples(raw, form).reshape(-1, form["channels"]).T.copy(), float(form["rate"])
    raise damaged("data", "there are no samples")


def clean(data: bytes) -> bytes:
    """Without them."""
    kept = [(name, body) for name, _, body in _chunks(io.BytesIO(data), len(data), whole=True) if name in _KEPT]
    made = b"".join(name + len(body).to_bytes(4, "little") + body + b"\0" * (len(body) % 2) for name, body in kept)
    return b"RIFF" + (len(made) + 4).to_bytes(4, "little") + b"WAVE" + made


def beside(data: bytes) -> bytes:
    """Every chunk that is not samples."""
    return b"".join(name + body for name, _, body in _chunks(io.BytesIO(data), len(data)))


def _chunks(file: BinaryIO, size: int, *, whole: bool = False) -> Iterator[tuple[bytes, int, bytes]]:
    """(name, length, content); the content of `data` only if `whole`."""
    start = exactly(file, 12, "RIFF")
    if start[:4] != b"RIFF" or start[8:] != b"WAVE":
        raise damaged("RIFF", "this is no WAV file")
    left = int.from_bytes(start[4:8], "little") - 4
    if left + 12 > size:
        raise damaged("RIFF", "the file ends before its length")
    while left >= 8:
        head = exactly(file, 8, "a chunk")
        name, length = head[:4], int.from_bytes(head[4:], "little")
        left -= 8 + length + length % 2
        if left < -1:  # some leave out the padding of the last chunk
            raise damaged("a chunk", "it is longer than the file")
        if name == b"data" and not whole:
            file.seek(length, 1)
            body = b""
        else:
            body = exactly(file, bounded(length, "a chunk"), "a chunk")
        if length % 2 and left >= 0:
            exactly(file, 1, "a chunk")
        yield name, length, body


def _format(body: bytes) -> dict[str, int]:
    if len(body) < 16:
        raise damaged("fmt", "it is too short")
    tag, channels, rate, _, block, bits = (
        int.from_bytes(body[a:b], "little") for a, b in ((0, 2), (2, 4), (4, 8), (8, 12), (12, 14), (14, 16))
    )
    if tag == _EXTENSIBLE and len(body) >= 40 and body[26:40] == _GUID:
        tag = int.from_bytes(body[24:26], "little")
    if (tag, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}:
        raise unsupported("audio that is neither PCM of 8, 16, 24 or 32 bits nor float of 32 or 64")
    if not 1 <= channels <= 64 or not 1 <= rate <= 10_000_000 or block != channels * bits // 8:
        raise damaged("fmt", "channels, rate and block do not fit each other")
    return {"tag": tag, "channels": channels, "rate": rate, "block": block, "bits": bits}


def _samples(raw: bytes, form: dict[str, int]) -> NDArray[np.float32]:
    bits = form["bits"]
    if form["tag"] == _FLOAT:
        return np.frombuffer(raw, f"<f{bits // 8}").astype(np.float32)
    if bits == 8:
        return (np.frombuffer(raw, "u1").astype(np.float32) - 128) / np.float32(128)
    if bits == 24:
        three = np.frombuffer(raw, "u1").reshape(-1, 3)
        wide = np.zeros((len(three), 4), "u1")
        wide[:, 1:] = three
        return (wide.view("<i4").ravel() >> 8).astype(np.float32) / np.float32(1 << 23)
    return (np.frombuffer(raw, f"<i{bits // 8}") / float(1 << (bits - 1))).astype(np.float32)


WAV = Format("wav", "audio/wav", (".wav",), lambda start: start[:4] == b"RIFF" and start[8:12] == b"WAVE", describe, clean, beside)
