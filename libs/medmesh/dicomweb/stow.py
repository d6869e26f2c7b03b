"""STOW-RS (PS3.18 §10.5): objects out of a request's body into the archive while it arrives, and what is answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from medmesh.dicomweb import media
from medmesh.dicomweb.media import MediaType
from medmesh.dicomweb.multipart import Data, End, Headers, Parser
from medmesh.errors import Problem

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
TOGETHER, TOGETHER_BYTES = 32, 16 * 2**20
"""Objects of a request that are kept together, at most: so many, and more only while they have fewer bytes than this."""
RETRY_SECONDS = 30
NO_ROOM, MISMATCH, NOT_UNDERSTOOD = 0xA700, 0xA900, 0xC000


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of one object: `status` is 0, or its failure reason (PS3.18 table I.2-2)."""

    status: int
    sop_class: str = ""
    sop: str = ""
    study: str = ""
    series: str = ""
    id: int = 0
    """Of its row in the archive; 0 when it is not kept."""
    known: bool = False


class Sink(Protocol[T_co]):
    """Takes one object as it arrives; see `medmesh.archive.receive.Arrival`."""

    def write(self, data: bytes | memoryview) -> None:
        """More of it."""

    def seal(self) -> T_co:
        """It is whole: judge it. It is kept with others."""

    def abandon(self) -> None:
        """It ends here."""


class Storing(Generic[T]):
    """The objects of one request; for a thread, as all its methods wait for the disk. `keep` answers what became of some, once they are
    on the disk: they are handed over by the group, so that they wait once. Raises `Problem` (`dicomweb.*`)."""

    def __init__(self, content_type: str | None, begin: Callable[[], Sink[T]], keep: Callable[[list[T]], list[Stored]]) -> None:
        self._begin = begin
        self._keep = keep
        self._parser = _parser(media.parse(content_type or "application/octet-stream"))
        self._sink: Sink[T] | None = begin() if self._parser is None else None
        self._sealed: list[T] = []
        self._places: list[int] = []
        self._bytes = 0
        self._found: list[Stored] = []

    def feed(self, data: bytes) -> None:
        """More of the body."""
        self._bytes += len(data)
        if self._parser is None:
            assert self._sink is not None
            self._sink.write(data)
            return
        for event in self._parser.feed(data):
            match event:
                case Headers(fields):
                    self._part(fields)
                case Data(more):
                    if self._sink is not None:
                        self._sink.write(more)
                case End():
                    self._end()

    def finish(self) -> list[Stored]:
        """At the end of the body: what became of each object, in their order."""
        if self._parser is None:
            self._end()
        else:
            self._parser.close()
        self._keep_together()
        if not self._found:
            raise Problem("dicomweb.empty")
        return self._found

    def close(self) -> None:
        """Give up what has not come to its end, and keep what has. To be called at last, whatever happened."""
        if self._sink is not None:
            self._sink.abandon()
            self._sink = None
        self._keep_together()

    def _part(self, fields: dict[str, str]) -> None:
        try:
            kind = media.parse(fields.get("content-type", media.DICOM)).name
        except Problem:
            kind = ""
        if kind == media.DICOM:
            self._sink = self._begin()
        else:
            self._found.append(Stored(NOT_UNDERSTOOD))

    def _end(self) -> None:
        if self._sink is None:
            return
        sink, self._sink = self._sink, None
        self._sealed.append(sink.seal())
        self._places.append(len(self._found))
        self._found.append(Stored(NOT_UNDERSTOOD))
        if len(self._sealed) >= TOGETHER or self._bytes >= TOGETHER_BYTES:
            self._keep_together()

    def _keep_together(self) -> None:
        sealed, places = self._sealed, self._places
        self._sealed, self._places, self._bytes = [], [], 0
        if sealed:
            for place, stored in zip(places, self._keep(sealed), strict=True):
                self._found[place] = stored


def _parser(body: MediaType) -> Parser | None:
    """None for a body that is one object."""
    if body.name == media.DICOM:
        return None
    if body.name != media.MULTIPART or body.inner != media.DICOM:
        raise Problem("dicomweb.unsupported", media=body.name if body.name != media.MULTIPART else f"{body.name}; type={body.inner}")
    return Parser(body.parameters.get("boundary", ""))


def answer(stored: Sequence[Stored], root: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and DICOM JSON (PS3.18 §10.5.3): 200 all are there, 202 some are, 409 none is, 503 none is for want of room."""
    kept = [one for one in stored if one.status == 0]
    failed = [one for one in stored if one.status and one.sop]
    others = [one for one in stored if one.status and not one.sop]
    document: dict[str, Any] = {}
    studies = {one.study for one in kept}
    if len(studies) == 1:
        document["00081190"] = {"vr": "UR", "Value": [f"{root}/studies/{studies.pop()}"]}
    if failed:
        document["00081198"] = {"vr": "SQ", "Value": [_reference(one) | _reason(one) for one in failed]}
    if kept:
        document["00081199"] = {"vr": "SQ", "Value": [_reference(one) | {"00081190": _address(one, root)} for one in kept]}
    if others:
        document["0008119A"] = {"vr": "SQ", "Value": [_reason(one) for one in others]}
    body = json.dumps(document, separators=(",", ":")).encode()
    if not kept and all(one.status == NO_ROOM for one in stored):
        return 503, {"Retry-After": str(RETRY_SECONDS)}, body
    return (200 if len(kept) == len(stored) else 202 if kept else 409), {}, body


def _reference(one: Stored) -> dict[str, Any]:
    return {"00081150": {"vr": "UI", "Value": [one.sop_class]}, "00081155": {"vr": "UI", "Value": [one.sop]}}


def _reason(one: Stored) -> dict[str, Any]:
    return {"00081197": {"vr": "US", "Value": [one.status]}}


def _address(one: Stored, root: str) -> dict[str, Any]:
    return {"vr": "UR", "Value": [f"{root}/studies/{one.study}/series/{one.series}/instances/{one.sop}"]}
