"""WADO-RS (PS3.18 §10.4): objects, their metadata, frames and bulk values, out of the archive in pieces.

Objects are given as they are stored where the client takes that (`transfer-syntax=*`), and else in Explicit VR Little Endian, the
default of PS3.18 §8.7.3.5.2; other transfer syntaxes are not made.
"""

from __future__ import annotations

import re
import secrets
import sqlite3
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from medmesh.archive.dicomjson import MARK
from medmesh.archive.query import unpacked
from medmesh.dicomweb import media, multipart, pixels
from medmesh.dicomweb.media import DICOM, EXPLICIT, JSON, MULTIPART, NATIVE, OCTETS, MediaType
from medmesh.errors import Problem

DEFLATED, BIG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
FRAMES = 1024
"""Frames of one request."""
INFLATED_BYTES = 512 * 2**20
_WIDTH = {"OW": 2, "OL": 4, "OF": 4, "OD": 8, "OV": 8}


class Opens(Protocol):
    """The bytes of an object from `start` to `end`, in pieces; see `medmesh.store.objects.encrypted.EncryptedStore.open`."""

    def __call__(self, found: Located, start: int = 0, end: int | None = None, /) -> Iterator[bytes]:
        """Raises `Problem` (`objects.*`)."""


@dataclass(frozen=True, slots=True)
class Located:
    """An instance and its object."""

    instance: int
    sha256: str
    bytes: int
    syntax: str
    study: str
    series: str
    sop: str
    patient_id: str
    frames: int
    pixels: int

    @property
    def address(self) -> str:
        """Below the root."""
        return f"/studies/{self.study}/series/{self.series}/instances/{self.sop}"


@dataclass(frozen=True, slots=True)
class Reply:
    """A body in pieces, for a thread to draw on."""

    media_type: str
    body: Iterator[bytes]


_LOCATE = (
    "SELECT i.id, o.sha256, o.bytes, i.syntax, st.uid, se.uid, i.uid, st.patient_id, i.frames, i.pixels FROM instances i"
    " JOIN objects o ON o.id = i.object JOIN series se ON se.id = i.series JOIN studies st ON st.id = i.study"
)


def locate(connection: sqlite3.Connection, scope: int, study: str, series: str = "", instance: str = "") -> list[Located]:
    """What lies at an address, in order. Raises `Problem` (`dicomweb.not_found`)."""
    values: tuple[object, ...]
    if instance:
        where, values = "i.scope = ? AND i.uid = ? AND se.uid = ? AND st.uid = ?", (scope, instance, series, study)
    elif series:
        where, values = "i.series = (SELECT id FROM series WHERE scope = ? AND uid = ?) AND st.uid = ?", (scope, series, study)
    else:
        where, values = "i.study = (SELECT id FROM studies WHERE scope = ? AND uid = ?)", (scope, study)
    rows = connection.execute(f"{_LOCATE} WHERE {where} ORDER BY se.number, se.id, i.number, i.id", values)
    found = [Located(*row) for row in rows]
    if not found:
        raise Problem("dicomweb.not_found")
    return found


def metadata(connection: sqlite3.Connection, found: Sequence[Located], root: str) -> Iterator[bytes]:
    """Their headers as a DICOM JSON array."""
    between = b"["
    for one in found:
        (stored,) = connection.execute("SELECT json FROM headers WHERE instance = ?", (one.instance,)).fetchone()
        text = unpacked(stored).replace("\n", ",").replace(f'"BulkDataURI":"{MARK}', f'"BulkDataURI":"{root}{one.address}/bulkdata/')
        yield between + b"{" + text.encode() + b"}"
        between = b","
    yield b"]"


def metadata_type(accept: str | None) -> str:
    """The media type metadata are given as. Raises `Problem` (`dicomweb.not_acceptable`)."""
    return media.choose(media.accepted(accept), (JSON, "application/json"))[1]


def objects(found: Sequence[Located], accept: str | None, opens: Opens) -> Reply:
    """Whole objects. Raises `Problem` (`dicomweb.not_acceptable`) before anything is given, where one cannot be as it is wanted."""
    for wanted in media.accepted(accept):
        if not wanted.takes(DICOM) or (wanted.name == DICOM and len(found) > 1):
            continue
        as_stored = [wanted.syntax in ("*", one.syntax) or (not wanted.syntax and one.syntax == EXPLICIT) for one in found]
        convertible = wanted.syntax in ("", EXPLICIT) and all(
            kept or pixels.decodable(one.syntax) for kept, one in zip(as_stored, found, strict=True)
        )
        if not (all(as_stored) or convertible):
            continue
        if wanted.name == DICOM:
            return Reply(DICOM, _object(found[0], as_stored[0], opens))
        bodies = (
            (f"{DICOM}; transfer-syntax={one.syntax if kept else EXPLICIT}", _object(one, kept, opens))
            for one, kept in zip(found, as_stored, strict=True)
        )
        return _multipart(DICOM, bodies)
    raise Problem("dicomweb.not_acceptable", offered=_offered(DICOM, {one.syntax for one in found}))


def _object(one: Located, as_stored: bool, opens: Opens) -> Iterator[bytes]:
    return opens(one) if as_stored else iter((pixels.explicit(pixels.opened(one.bytes, lambda start, end: opens(one, start, end))),))


def _multipart(inner: str, bodies: Iterator[tuple[str, Iterator[bytes]]]) -> Reply:
    boundary = secrets.token_hex(16)
    return Reply(f'{MULTIPART}; type="{inner}"; boundary={boundary}', multipart.written(boundary, bodies))


def _offered(name: str, syntaxes: set[str]) -> str:
    return ", ".join([f"{name}; transfer-syntax={syntax}" for syntax in sorted(syntaxes | {EXPLICIT})])


def numbers(text: str, frames: int) -> list[int]:
    """Frame numbers from 1, as in an address: `1,3`. Raises `Problem` (`dicomweb.frames`, `dicomweb.not_found`)."""
    found = text.split(",")
    if len(found) > FRAMES or not all(one.isascii() and one.isdigit() and len(one) < 10 for one in found):
        raise Problem("dicomweb.frames")
    made = [int(one) for one in found]
    if not all(1 <= one <= frames for one in made):
        raise Problem("dicomweb.not_found")
    return made


def frames(connection: sqlite3.Connection, one: Located, wanted_frames: Sequence[int], accept: str | None, opens: Opens) -> Reply:
    """Frames as they are encoded, or decoded to plain samples in little endian. Raises `Problem` (`dicomweb.not_acceptable`)."""
    if not one.frames:
        raise Problem("dicomweb.not_found")
    shape = pixels.shape(unpacked(connection.execute("SELECT json FROM headers WHERE instance = ?", (one.instance,)).fetchone()[0]))
    stored = OCTETS if one.syntax in NATIVE else media.COMPRESSED.get(one.syntax, "")
    for wanted in media.accepted(accept):
        if wanted.name != MULTIPART and wanted.name != "*/*" and len(wanted_frames) > 1:
            continue
        name, syntax = _encoding(wanted, one, stored)
        if not name:
            continue
        read = (
            _native(one, shape, opens) if one.syntax in NATIVE else _packed(one, shape, opens, decode=name == OCTETS and stored != OCTETS)
        )
        if wanted.name in (MULTIPART, "*/*"):
            return _multipart(name, ((f"{name}; transfer-syntax={syntax}", iter((read(number),))) for number in wanted_frames))
        return Reply(name, iter((read(wanted_frames[0]),)))
    raise Problem("dicomweb.not_acceptable", offered=_offered(stored or OCTETS, {one.syntax}))


def _encoding(wanted: MediaType, one: Located, stored: str) -> tuple[str, str]:
    """(media type, transfer syntax) in which frames can be given as wanted; empty where they cannot."""
    native = one.syntax in NATIVE
    if not native and stored and wanted.takes(stored) and wanted.syntax in ("", "*", one.syntax) and wanted.inner != "*/*":
        return stored, one.syntax
    if not native and stored and wanted.inner == "*/*" and wanted.syntax in ("*", one.syntax):
        return stored, one.syntax
    if wanted.takes(OCTETS) and wanted.syntax in ("", "*", EXPLICIT) and (native or pixels.decodable(one.syntax)):
        return OCTETS, EXPLICIT
    if not native and stored and wanted.inner == "*/*" and not wanted.syntax:
        return stored, one.syntax
    return "", ""


def _native(one: Located, shape: pixels.Shape, opens: Opens) -> Callable[[int], bytes]:
    whole = b"".join(_data(one, one.pixels, None, opens)) if one.syntax == DEFLATED or shape.odd else b""

    def read(number: int) -> bytes:
        if whole:
            return shape.frame(whole, number)
        start = one.pixels + (number - 1) * shape.frame_bytes
        raw = b"".join(opens(one, start, start + shape.frame_bytes))
        if len(raw) < shape.frame_bytes:
            raise Problem("dicomweb.not_found")
        return swapped(raw, shape.bits // 8) if one.syntax == BIG else raw

    return read


def _packed(one: Located, shape: pixels.Shape, opens: Opens, *, decode: bool) -> Callable[[int], bytes]:
    file = pixels.opened(one.bytes, lambda start, end: opens(one, start, end))
    if decode:
        return lambda number: pixels.decoded(file, number)
    return lambda number: pixels.encoded(file, one.pixels, number, one.frames, shape)


def swapped(raw: bytes, width: int) -> bytes:
    """Big endian numbers of so many bytes in little endian."""
    if width <= 1:
        return raw
    made = bytearray(len(raw))
    for at in range(width):
        made[at::width] = raw[width - 1 - at :: width]
    return bytes(made)


def bulk(connection: sqlite3.Connection, one: Located, name: str, accept: str | None, opens: Opens) -> Reply:
    """A value that metadata left out, by the end of its BulkDataURI. Raises `Problem` (`dicomweb.not_found`, `dicomweb.not_acceptable`)."""
    header = unpacked(connection.execute("SELECT json FROM headers WHERE instance = ?", (one.instance,)).fetchone()[0])
    said = re.search(rf'"vr":"(..)","BulkDataURI":"{MARK}{re.escape(name)}"', header)
    if said is None:
        raise Problem("dicomweb.not_found")
    if name.startswith("7FE0"):
        if one.syntax not in NATIVE:
            return frames(connection, one, range(1, one.frames + 1), accept, opens)
        start, end = one.pixels, one.pixels + pixels.shape(header).all_bytes
    else:
        place, _, length = name.partition("+")
        start, end = int(place), int(place) + int(length)
    wanted, _ = media.choose(media.accepted(accept), (OCTETS,))
    body = _data(one, start, end, opens)
    width = pixels.shape(header).bits // 8 if name.startswith("7FE0") else _WIDTH.get(said[1], 1)
    if one.syntax == BIG and width > 1:
        body = iter((swapped(b"".join(body), width),))
    return Reply(OCTETS, body) if wanted.name == OCTETS else _multipart(OCTETS, iter(((OCTETS, body),)))


def _data(one: Located, start: int, end: int | None, opens: Opens) -> Iterator[bytes]:
    """Bytes of the object; of what is deflated, of the data set that is in it."""
    if one.syntax != DEFLATED:
        return opens(one, start, end)
    packed = b"".join(opens(one))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    found = inflater.decompress(packed[144 + int.from_bytes(packed[140:144], "little") :], INFLATED_BYTES)
    return iter((found[start:end],))


def rendered(one: Located, number: int, asked: pixels.Rendering, accept: str | None, opens: Opens) -> Reply:
    """A frame as people look at it (PS3.18 §10.4.1.1.3). Raises `Problem` (`dicomweb.not_acceptable`, `dicomweb.not_found`)."""
    if not one.frames:
        raise Problem("dicomweb.not_found")
    _, name = media.choose(media.accepted(accept), ("image/jpeg", "image/png"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        body = pixels.rendered(pixels.opened(one.bytes, lambda start, end: opens(one, start, end)), number, asked, name)
    return Reply(name, iter((body,)))
