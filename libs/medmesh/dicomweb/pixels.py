"""Pixel data of one object, frame by frame: as they are encoded, decoded, and as people look at them."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom import encaps
from pydicom import pixels as decoders
from pydicom.uid import UID, ExplicitVRLittleEndian

from medmesh.errors import Problem
from medmesh.imaging.reading import LARGEST

BUFFER = 1 << 20
"""What is read ahead: the archive's objects are sealed in pieces of that size."""
SIDE = 8192
_WANTED = {"00280002": "samples", "00280010": "rows", "00280011": "columns", "00280100": "bits", "00280008": "frames"}
_MEMBER = re.compile(r'^"(00280002|00280010|00280011|00280100|00280008|7FE00001|7FE00002)":', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Shape:
    """Of plain samples. `offsets` and `lengths` are the extended table's, little endian, where there is one."""

    rows: int
    columns: int
    samples: int
    bits: int
    frames: int
    table: tuple[bytes, bytes] | None = None

    @property
    def frame_bits(self) -> int:
        """Of one frame."""
        return self.rows * self.columns * self.samples * self.bits

    @property
    def odd(self) -> bool:
        """Whether frames do not begin at bytes."""
        return self.frame_bits % 8 != 0

    @property
    def frame_bytes(self) -> int:
        """Of one frame."""
        return -(-self.frame_bits // 8)

    @property
    def all_bytes(self) -> int:
        """Of all frames together."""
        return -(-self.frame_bits * self.frames // 8)

    def frame(self, whole: bytes, number: int) -> bytes:
        """One out of all of them. Raises `Problem` (`dicomweb.not_found`)."""
        if len(whole) < self.all_bytes:
            raise Problem("dicomweb.not_found")
        if not self.odd:
            return whole[(number - 1) * self.frame_bytes : number * self.frame_bytes]
        bits = np.unpackbits(np.frombuffer(whole, np.uint8), bitorder="little")
        return np.packbits(bits[(number - 1) * self.frame_bits : number * self.frame_bits], bitorder="little").tobytes()


def shape(header: str) -> Shape:
    """From a header's members with line feeds between them. Raises `Problem` (`dicomweb.not_found`) where they describe no pixels."""
    lines = {line[1:9]: line for line in header.split("\n") if _MEMBER.match(line)}
    found: dict[str, int] = {"samples": 1, "frames": 1}
    tables: dict[str, bytes] = {}
    for tag, line in lines.items():
        element = json.loads("{" + line + "}", strict=False)[tag]
        if tag in _WANTED and element.get("Value"):
            try:
                found[_WANTED[tag]] = int(element["Value"][0])
            except (TypeError, ValueError):
                raise Problem("dicomweb.not_found") from None
        elif tag not in _WANTED and "InlineBinary" in element:
            tables[tag] = base64.b64decode(element["InlineBinary"])
    try:
        made = Shape(
            found["rows"], found["columns"], found["samples"], found["bits"], max(1, found["frames"]),
            (tables["7FE00001"], tables["7FE00002"]) if len(tables) == 2 else None,
        )  # fmt: skip
    except KeyError:
        raise Problem("dicomweb.not_found") from None
    if not 0 < made.frame_bytes <= LARGEST:
        raise Problem("dicomweb.not_found")
    return made


class _File(io.RawIOBase):
    """An object of so many bytes as a file."""

    name = ""  # pydicom looks for one

    def __init__(self, size: int, read: Callable[[int, int], Iterator[bytes]]) -> None:
        self._size, self._read, self._place = size, read, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        end = min(self._size, self._place + len(buffer))
        if end <= self._place:
            return 0
        data = b"".join(self._read(self._place, end))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def opened(size: int, read: Callable[[int, int], Iterator[bytes]]) -> BinaryIO:
    """An object as a file that can be sought in; `read` gives what lies between two places."""
    return cast(BinaryIO, io.BufferedReader(_File(size, read), BUFFER))


def decodable(syntax: str) -> bool:
    """Whether there is a decoder here."""
    uid = UID(syntax)
    if not uid.is_transfer_syntax or uid.is_private:
        return False
    if not uid.is_encapsulated:
        return True
    try:
        return bool(decoders.get_decoder(uid).is_available)
    except NotImplementedError:  # pydicom knows the syntax, and no decoder for it
        return False


def _failed(error: Exception) -> Problem:
    return Problem("dicomweb.undecodable", reason=type(error).__name__)


def explicit(file: BinaryIO) -> bytes:
    """The object in Explicit VR Little Endian, its pixels decoded. Raises `Problem` (`dicomweb.undecodable`)."""
    try:
        dataset = pydicom.dcmread(file)
        before = dataset.file_meta.TransferSyntaxUID
        if before.is_encapsulated:
            dataset.decompress(generate_instance_uid=False)
        elif not before.is_little_endian and "PixelData" in dataset and dataset.BitsAllocated > 8:
            dataset.PixelData = np.frombuffer(dataset.PixelData, f">u{dataset.BitsAllocated // 8}").byteswap().tobytes()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        buffer = io.BytesIO()
        for _ in dataset.iterall():
            pass  # decoded, so that it can be written in another order of bytes
        dataset.set_original_encoding(False, True, dataset.original_character_set)
        dataset.save_as(buffer, enforce_file_format=True)
    except Exception as error:  # every decoder has errors of its own
        raise _failed(error) from None
    return buffer.getvalue()


def decoded(file: BinaryIO, number: int) -> bytes:
    """Plain samples of a frame, little endian. Raises `Problem` (`dicomweb.undecodable`)."""
    try:
        file.seek(0)
        array = decoders.pixel_array(file, index=number - 1, raw=True)
    except Exception as error:  # see `explicit`
        raise _failed(error) from None
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def encoded(file: BinaryIO, start: int, number: int, frames: int, of: Shape) -> bytes:
    """A frame as it is encoded in pixel data that begin at `start`. Raises `Problem` (`dicomweb.undecodable`)."""
    try:
        file.seek(start)
        return encaps.get_frame(file, number - 1, number_of_frames=frames, extended_offsets=of.table)
    except Exception as error:  # see `explicit`
        raise _failed(error) from None


@dataclass(frozen=True, slots=True)
class Rendering:
    """How a frame is looked at: (center, width, function), and a box to fit into."""

    window: tuple[float, float, str] | None = None
    viewport: tuple[int, int] | None = None
    quality: int = 90

    @classmethod
    def parse(cls, parameters: dict[str, str]) -> Rendering:
        """From `window`, `viewport`, `quality` (PS3.18 §8.3.5). Raises `Problem` (`dicomweb.parameter`) that names the parameter."""
        window: tuple[float, float, str] | None = None
        viewport: tuple[int, int] | None = None
        quality = 90
        for name, value in parameters.items():
            parts = value.split(",")
            try:
                if name == "window":
                    center, width = float(parts[0]), float(parts[1])
                    function = (parts[2] if len(parts) > 2 else "linear").lower().replace("_", "-")
                    if len(parts) > 3 or not width >= 1 or abs(center) > 1e9 or function not in ("linear", "linear-exact", "sigmoid"):
                        raise ValueError
                    window = center, width, function
                elif name == "viewport":
                    viewport = int(parts[0]), int(parts[1])
                    if len(parts) != 2 or not all(1 <= one <= SIDE for one in viewport):
                        raise ValueError
                elif name == "quality":
                    quality = int(value)
                    if not 1 <= quality <= 100:
                        raise ValueError
                else:
                    raise ValueError
            except (ValueError, IndexError):
                raise Problem("dicomweb.parameter", parameter=name[:40]) from None
        return cls(window, viewport, quality)


def rendered(file: BinaryIO, number: int, asked: Rendering, name: str) -> bytes:
    """A frame as a JPEG or PNG of 8 bits. Raises `Problem` (`dicomweb.undecodable`)."""
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        file.seek(0)
        array = decoders.pixel_array(file, index=number - 1)
        image = Image.fromarray(_seen(array, header, asked.window))
    except Exception as error:  # see `explicit`
        raise _failed(error) from None
    if asked.viewport is not None:
        scale = min(asked.viewport[0] / image.width, asked.viewport[1] / image.height)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    if name == "image/png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=asked.quality)
    return buffer.getvalue()


def _seen(array: NDArray[Any], header: pydicom.Dataset, window: tuple[float, float, str] | None) -> NDArray[np.uint8]:
    """[rows, columns] or [rows, columns, 3] in 0..255, by the grey scale pipeline of PS3.4 N.2."""
    interpretation = str(header.get("PhotometricInterpretation", ""))
    if interpretation == "PALETTE COLOR":
        array = decoders.apply_color_lut(array, header)
    if array.ndim == 3:
        if array.dtype.itemsize > 1:
            array = array >> (8 * array.dtype.itemsize - 8)
        return np.ascontiguousarray(array[..., :3].astype(np.uint8))
    values = np.asarray(decoders.apply_modality_lut(array, header), np.float64)
    if window is None and "VOILUTSequence" in header:
        values = np.asarray(decoders.apply_voi(np.asarray(decoders.apply_modality_lut(array, header)), header), np.float64)
    elif window is None and header.get("WindowWidth") not in (None, ""):
        function = str(header.get("VOILUTFunction") or "LINEAR").lower().replace("_", "-")
        window = _first(header.WindowCenter), _first(header.WindowWidth), function
    if window is None:
        low, high = float(values.min()), float(values.max())
        shares = (values - low) / (high - low) if high > low else np.zeros_like(values)
    else:
        shares = windowed(values, *window)
    if interpretation == "MONOCHROME1":
        shares = 1 - shares
    return np.ascontiguousarray(np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8))


def windowed(values: NDArray[np.float64], center: float, width: float, function: str) -> NDArray[np.float64]:
    """Values through a window, as shares of what can be shown (PS3.3 §C.11.2.1.2)."""
    if function == "sigmoid":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
    if function == "linear-exact":
        return np.clip((values - center) / width + 0.5, 0, 1)
    if width <= 1:
        return np.where(values <= center - 0.5, 0.0, 1.0)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _first(value: Any) -> float:
    return float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)
