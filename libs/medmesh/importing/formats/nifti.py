"""NIfTI-1 and NIfTI-2 volumes (.nii, .nii.gz). Sources: nifti1.h (R. Cox et al., 2004), nifti2.h (2011), nifti.nimh.nih.gov.

The header is read by this module: what is left out (text fields, extensions, which may hold a whole DICOM header) has to be left out byte
by byte, and a header is 348 or 540 bytes. The tests compare it with nibabel.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medmesh.importing.formats.content import (
    START,
    Content,
    Format,
    Inflated,
    beginning,
    bounded,
    damaged,
    gzip_identity,
    is_gzip,
    text,
    zipped,
)

_TEXT = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
_ONE = np.dtype(
    {
        "names": ["sizeof_hdr", "data_type", "db_name", "dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter",
                  "xyzt_units", "descrip", "aux_file", "qform_code", "sform_code", "quatern", "qoffset", "srow", "intent_name", "magic"],
        "formats": ["i4", "S10", "S18", "(8,)i2", "i2", "i2", "(8,)f4", "f4", "f4", "f4",
                    "u1", "S80", "S24", "i2", "i2", "(3,)f4", "(3,)f4", "(3,4)f4", "S16", "S4"],
        "offsets": [0, 4, 14, 40, 70, 72, 76, 108, 112, 116, 123, 148, 228, 252, 254, 256, 268, 280, 328, 344],
        "itemsize": 348,
    }
)  # fmt: skip
_TWO = np.dtype(
    {
        "names": ["sizeof_hdr", "magic", "datatype", "bitpix", "dim", "pixdim", "vox_offset", "scl_slope", "scl_inter",
                  "descrip", "aux_file", "qform_code", "sform_code", "quatern", "qoffset", "srow", "xyzt_units", "intent_name"],
        "formats": ["i4", "S8", "i2", "i2", "(8,)i8", "(8,)f8", "i8", "f8", "f8",
                    "S80", "S24", "i4", "i4", "(3,)f8", "(3,)f8", "(3,4)f8", "i4", "S16"],
        "offsets": [0, 4, 12, 14, 16, 104, 168, 176, 184, 240, 320, 344, 348, 352, 376, 400, 500, 508],
        "itemsize": 540,
    }
)  # fmt: skip
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_LETTERS = ("LR", "PA", "IS")


@dataclass(frozen=True, slots=True)
class Header:
    """`shape` without trailing ones beyond the third; `affine` float64 [4, 4] from voxel indices to millimetres in RAS+;
    `spacing` in millimetres, `begins` the byte at which the voxels begin, `stored` their dtype as stored."""

    version: int
    shape: tuple[int, ...]
    stored: np.dtype
    begins: int
    slope: float
    intercept: float
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    source: str
    raw: Any

    @property
    def size(self) -> int:
        """Bytes of the voxels."""
        return math.prod(self.shape) * self.stored.itemsize


def read_header(data: bytes) -> Header:
    """The header in the first 540 bytes. Raises `formats.damaged`, `formats.too_large` or `formats.unsupported`."""
    raw = _raw(data)
    version = 1 if raw.dtype.itemsize == _ONE.itemsize else 2
    if bytes(raw["magic"])[:3] not in (b"n+1", b"n+2"):
        raise damaged("magic", "header and voxels in two files (.hdr, .img) are not taken; write one .nii")
    dim = [int(size) for size in raw["dim"]]
    if not 1 <= dim[0] <= 7:
        raise damaged("dim[0]", "the number of dimensions must be 1 to 7")
    if any(size < 1 for size in dim[1 : dim[0] + 1]):
        raise damaged("dim", "a size below 1")
    shape = tuple(dim[1 : dim[0] + 1])
    shape = shape + (1,) * (3 - len(shape))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    code, bits = int(raw["datatype"]), int(raw["bitpix"])
    if code not in _TYPES:
        raise damaged("datatype", "voxels that are not single numbers (colour, complex) or no type of the standard")
    stored = np.dtype(_TYPES[code]).newbyteorder(raw.dtype["dim"].base.byteorder)
    if bits != stored.itemsize * 8:
        raise damaged("bitpix", "it contradicts datatype")
    offset = float(raw["vox_offset"])
    least = 352 if version == 1 else 544
    if not math.isfinite(offset) or offset != int(offset) or not least <= offset <= 1 << 26:
        raise damaged("vox_offset", f"it must be a whole number from {least} to {1 << 26}")
    bounded(math.prod(shape) * stored.itemsize, "dim")
    scale = [float(raw["scl_slope"]), float(raw["scl_inter"])]
    if not all(map(math.isfinite, scale)) or scale[0] == 0:  # the standard: slope 0 means no scaling; NaN is written by some
        scale = [1.0, 0.0]
    with np.errstate(all="ignore"):  # any number may stand there
        affine, source = _affine(raw)
        spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
        sound = np.isfinite(affine).all() and np.isfinite(spacing).all() and (spacing > 0).all()
        sound = sound and abs(np.linalg.det(affine[:3, :3] / spacing)) >= 1e-4
    if not sound:
        raise damaged(source, "the geometry is not finite, or has no volume")
    x, y, z = (round(float(mm), 6) for mm in spacing)
    return Header(version, shape, stored, int(offset), scale[0], scale[1], affine, (x, y, z), source, raw)


def describe(file: BinaryIO, size: int) -> Content:
    """The header, and that the voxels it promises are there (of a compressed file only when it is read whole)."""
    start = file.read(START)
    packed = is_gzip(start)
    head = beginning(start, START)
    if len(head) < 540 and packed:  # a long gzip header, or voxels that hardly shrink
        file.seek(0)
        head = io.BufferedReader(Inflated(file)).read(START)
    found = read_header(head)
    if not packed and size < found.begins + found.size:
        raise damaged("voxels", "the file ends before the last voxel")
    identity = [(name, value) for name in _TEXT if name in found.raw.dtype.names and (value := text(bytes(found.raw[name])))]
    if found.raw.dtype.itemsize < found.begins - 4 and len(head) > found.raw.dtype.itemsize and head[found.raw.dtype.itemsize]:
        identity.append(("extension", ""))
    meta: dict[str, Any] = {
        "shape": list(found.shape),
        "dtype": found.stored.newbyteorder("=").name,
        "spacing": list(found.spacing),
        "orientation": orientation(found.affine),
        "affine": [[round(float(value), 6) for value in row] for row in found.affine],
        "geometry": found.source,
        "version": found.version,
    }
    return Content("volume", meta, (*gzip_identity(start), *identity) if packed else tuple(identity))


def decode(data: bytes) -> tuple[NDArray[np.float32], Header]:
    """Scaled voxels, float32 in the header's shape (first axis fastest in the file), and the header. Voxels may be NaN: quality tells."""
    opened, found = _opened(data)
    stored = np.frombuffer(opened, found.stored, math.prod(found.shape), found.begins).reshape(found.shape, order="F")
    if (found.slope, found.intercept) == (1.0, 0.0):
        with np.errstate(all="ignore"):
            return stored.astype(np.float32), found
    with np.errstate(all="ignore"):
        return (stored * found.slope + found.intercept).astype(np.float32), found


def orientation(affine: NDArray[np.float64]) -> str:
    """Three letters, where each voxel axis points to, e.g. RAS: the closest axes to the affine's (as nibabel's aff2axcodes)."""
    columns = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    left, _, right = np.linalg.svd(columns)
    turned = left @ right
    letters, free = [""] * 3, [0, 1, 2]
    for axis in np.argsort(-np.abs(turned).max(axis=0), kind="stable"):
        world = max(free, key=lambda row: abs(turned[row, axis]))
        free.remove(world)
        letters[axis] = _LETTERS[world][int(turned[world, axis] > 0)]
    return "".join(letters)


def clean(data: bytes) -> bytes:
    """Without text fields and extensions; voxels and geometry bit for bit the same. A compressed file stays one, without its name."""
    opened, found = _opened(data)
    voxels = opened[found.begins :]
    header = bytearray(opened[: found.raw.dtype.itemsize])
    fields = found.raw.dtype.fields
    for name in _TEXT:
        if name in fields:
            at, width = fields[name][1], fields[name][0].itemsize
            header[at : at + width] = bytes(width)
    if found.version == 2:
        header[525:540] = bytes(15)  # unused_str
    begins = len(header) + 4
    at, kind = fields["vox_offset"][1], fields["vox_offset"][0]
    header[at : at + kind.itemsize] = np.array(begins, kind).tobytes()
    made = bytes(header) + bytes(4) + voxels
    return zipped(made) if is_gzip(data) else made


def replaced(data: bytes, values: NDArray[np.float32], changed: NDArray[np.bool_]) -> bytes:
    """The file with the voxels of `changed` as `values` has them (both in its shape, scaled as `decode` gives them), rounded where whole
    numbers are stored; everything else bit for bit the same."""
    opened, found = _opened(data)
    voxels = np.frombuffer(opened, found.stored, math.prod(found.shape), found.begins).reshape(found.shape, order="F").copy(order="F")
    new = (values[changed].astype(np.float64) - found.intercept) / found.slope
    if found.stored.kind != "f":
        limits = np.iinfo(found.stored)
        new = np.clip(np.rint(new), limits.min, limits.max)
    voxels[changed] = new.astype(found.stored)
    made = opened[: found.begins] + voxels.tobytes(order="F")
    return zipped(made) if is_gzip(data) else made


def _opened(data: bytes) -> tuple[bytes, Header]:
    """The file up to its last voxel, inflated no further than its header promises."""
    if not is_gzip(data):
        found = read_header(data)
        opened = data[: found.begins + found.size]
    else:
        reader = io.BufferedReader(Inflated(io.BytesIO(data)), 1 << 20)
        start = reader.read(START)
        found = read_header(start)
        opened = start + reader.read(max(0, found.begins + found.size - len(start)))
        opened = opened[: found.begins + found.size]
    if len(opened) < found.begins + found.size:
        raise damaged("voxels", "the file ends before the last voxel")
    return opened, found


def _raw(data: bytes) -> Any:
    for layout in (_ONE, _TWO):
        for order in "<>":
            if data[:4] == layout.itemsize.to_bytes(4, "little" if order == "<" else "big"):
                if len(data) < layout.itemsize:
                    raise damaged("header", "the file ends here")
                return np.frombuffer(data, layout.newbyteorder("<" if order == "<" else ">"), 1)[0]
    raise damaged("sizeof_hdr", "it is neither 348 nor 540")


def _affine(raw: Any) -> tuple[NDArray[np.float64], str]:
    """The sform if it is set, else the qform, else the voxel sizes alone (methods 3, 2 and 1 of nifti1.h)."""
    made = np.eye(4)
    sizes = np.array(raw["pixdim"], dtype=np.float64)
    millimetres = _MILLIMETRES.get(int(raw["xyzt_units"]) & 7, 1.0)
    if int(raw["sform_code"]) > 0:
        made[:3] = raw["srow"]
        source = "sform"
    elif int(raw["qform_code"]) > 0:
        b, c, d = (float(value) for value in raw["quatern"])
        square = 1.0 - (b * b + c * c + d * d)
        if not square >= -1e-5:  # so written, it refuses NaN
            raise damaged("quatern", "it is no rotation")
        a = math.sqrt(max(square, 0.0))
        turn = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * b * c - 2 * a * d, 2 * b * d + 2 * a * c],
                [2 * b * c + 2 * a * d, a * a + c * c - b * b - d * d, 2 * c * d - 2 * a * b],
                [2 * b * d - 2 * a * c, 2 * c * d + 2 * a * b, a * a + d * d - c * c - b * b],
            ]
        )
        made[:3, :3] = turn * (sizes[1:4] * [1.0, 1.0, -1.0 if sizes[0] < 0 else 1.0])
        made[:3, 3] = raw["qoffset"]
        source = "qform"
    else:
        made[:3, :3] = np.diag(np.where(np.abs(sizes[1:4]) > 0, np.abs(sizes[1:4]), 1.0))
        source = "pixdim"
    made[:3] *= millimetres
    return made, source


def _matches(start: bytes) -> bool:
    head = beginning(start, 540)
    one = head[344:348] in (b"n+1\0", b"ni1\0")
    return one or head[4:12] in (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")


def _beside(data: bytes) -> bytes:
    opened, found = _opened(data)
    return opened[: found.begins] + b"".join(value.encode() for _, value in gzip_identity(data) if is_gzip(data))


NIFTI = Format("nifti", "application/x-nifti", (".nii", ".nii.gz"), _matches, describe, clean, _beside)
