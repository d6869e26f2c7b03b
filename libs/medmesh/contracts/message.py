"""What travels on the bus: facts, commands, queries and signals, and the envelope around them.

The envelope is CloudEvents 1.0 in structured JSON: the bytes as published are canonical and are never serialised again.
The type of a message is its subject, kind first, so that no stream overlaps another:

    medmesh.evt.<owner>.<entity>.<past-tense verb>.v1    a fact; stream EVENTS
    medmesh.cmd.<owner>.<name>.v1                        a command; work queue WORK_<owner>
    medmesh.qry.<owner>.<name>.v1                        a query; request and reply
    medmesh.edge.<hospital>.<name>.v1                    a signal of a hospital; not kept

Writers forbid unknown fields, readers ignore them (`decode`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from medmesh.errors import Problem

Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
"""The name of a hospital, a person or a project: it may stand in a subject."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in lower-case hexadecimal: the name of an object."""


def _written(value: object) -> object:
    """A number is nobody's way to write a time: pydantic would take it for seconds since 1970, or for milliseconds if it is large."""
    if isinstance(value, int | float) or (isinstance(value, str) and value.strip().lstrip("+-").replace(".", "", 1).isdigit()):
        raise ValueError("a time is written as 2026-11-26T08:00:00Z (RFC 3339)")
    return value


Instant = Annotated[datetime, BeforeValidator(_written)]
"""A time that somebody hands in: RFC 3339 text, not a number."""

MAX_MESSAGE_BYTES = 64 * 1024
"""Anything larger is an object in the store, and the message carries its reference."""


class Record(BaseModel):
    """A value inside a message: immutable, unknown fields forbidden to writers."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64", defer_build=True)


class ObjectRef(Record):
    """The name of bytes that do not ride the bus."""

    sha256: Sha256
    bytes: int = Field(ge=0)
    media_type: str = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Names:
    """An object that a message is about: access to it is decided before the handler runs. `id` is a template over the message's fields;
    a field that is None names nothing, a tuple several.

    `action` is what the actor must be allowed to do with it, where that is not the message's own: reading a source, for example.
    `new` says that there may be none yet: the message makes it.
    """

    kind: str
    id: str
    action: str = ""
    new: bool = False


class Message(Record):
    """The data of an envelope. `TYPE` is the part of the subject after the kind, e.g. `registry.model.released.v1`."""

    KIND: ClassVar[str]
    TYPE: ClassVar[str]
    OBJECTS: ClassVar[tuple[Names, ...]] = ()
    """The objects it is about, of commands and queries."""
    MAKES: ClassVar[str] = ""
    """The kind of labelled object that a command makes: its handler says which label that gets."""
    LISTS: ClassVar[str] = ""
    """The kind of labelled objects that a query lists: its handler takes them through the guard."""

    @classmethod
    def subject(cls) -> str:
        """The subject it is published on, which is also its CloudEvents type."""
        return f"medmesh.{cls.KIND}.{cls.TYPE}"

    def address(self) -> str:
        """The subject of this very message; differs from `subject` only where that holds a wildcard."""
        return self.subject()

    @classmethod
    def owner(cls) -> str:
        """The service that emits this fact, or that answers this command or query."""
        return cls.TYPE.split(".", 1)[0]


class Event(Message):
    """A fact that its owner committed. Facts for hospitals also name them in a field `hospitals`."""

    KIND: ClassVar[str] = "evt"


class HospitalEvent(Event):
    """A fact that the gateway puts into the inbox of every hospital it names."""

    APART: ClassVar[Mapping[str, str]] = {}
    """Fields that have something for each hospital alone, and under which name a hospital finds its own in its inbox, and nobody else's."""

    hospitals: tuple[Identifier, ...]

    @classmethod
    def parted(cls, document: dict[str, Any], hospitals: Sequence[str]) -> list[dict[str, Any]]:
        """An envelope's document as each of these hospitals may read it: one for all of them, or one each where something in it is for
        each alone."""
        data = {field: value for field, value in document["data"].items() if field not in cls.APART}
        own = {name: found for field, name in cls.APART.items() if (found := document["data"].get(field))}
        if not own:
            return [{**document, "data": data}]
        return [{**document, "data": data | {name: found[one] for name, found in own.items() if one in found}} for one in hospitals]


class Command(Message):
    """A wish that exactly one service fulfils or refuses. `ACTION` is what the role table must allow the actor.

    What the service answers is an `OperationFinished` whose `operation` is the id of the command's envelope.
    """

    KIND: ClassVar[str] = "cmd"
    ACTION: ClassVar[str]


class Query(Message):
    """A question; `Reply` is the model of its answer. `ACTION` is what the role table must allow the actor; None means: anybody,
    the handler itself checks a secret."""

    KIND: ClassVar[str] = "qry"
    ACTION: ClassVar[str | None]
    Reply: ClassVar[type[Record]]


class Exchange(Query):
    """An exchange of credentials (opening a session, redeeming a code), or an operator's act on one service: it changes state and
    travels as a query all the same, because a secret may stand in no stream and in no outbox, and an operator waits at the bus itself.
    Like a command it leaves an audit record or changes nothing."""


class Signal(Message):
    """A hospital's sign of life or progress: published at most once, never stored. `TYPE` is the name after the hospital."""

    KIND: ClassVar[str] = "edge"

    hospital: Identifier

    def address(self) -> str:
        """The subject of this hospital's signal."""
        return f"medmesh.edge.{self.hospital}.{self.TYPE}"

    @classmethod
    def subject(cls) -> str:
        """The subject that hears this signal from every hospital."""
        return f"medmesh.edge.*.{cls.TYPE}"


class OperationFinished(Event):
    """The owner's answer to one command: what the gateway shows under `/v1/operations/{id}`."""

    TYPE: ClassVar[str] = "*.operation.finished.v1"

    service: Identifier
    operation: str
    command: str
    succeeded: bool
    result: dict[str, Any] | None = None
    problem: dict[str, Any] | None = None

    def address(self) -> str:
        """Every service publishes its own answers only."""
        return f"medmesh.evt.{self.service}.operation.finished.v1"


M = TypeVar("M", bound=Message)


class Envelope(BaseModel, Generic[M]):
    """CloudEvents 1.0 attributes, our extensions, and the message.

    `actor` is a signed token, which the receiver verifies; it is never believed as a name. `traceparent` is the W3C
    trace context of what caused the message.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str
    type: str
    time: datetime
    datacontenttype: Literal["application/json"] = "application/json"
    dataschema: str
    hospital: str | None = None
    actor: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    data: M


_Writer = Envelope[Any]  # looked up once: asking the generic class each time costs as much as making the envelope


def new_id(now_ns: int | None = None) -> str:
    """A UUIDv7 (RFC 9562 §5.7): 48 bits of milliseconds, then random, so that ids sort roughly by time."""
    milliseconds = (time.time_ns() if now_ns is None else now_ns) // 1_000_000
    value = milliseconds << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def envelope(
    message: M,
    *,
    source: str,
    cause: Envelope[Any] | None = None,
    actor: str | None = None,
    hospital: str | None = None,
    traceparent: str | None = None,
    id: str | None = None,
) -> Envelope[M]:
    """Wrap `message`. What `cause` carries (actor, correlation, trace) is inherited where nothing else is given."""
    identifier = id or new_id()
    return _Writer.model_construct(
        specversion="1.0",
        id=identifier,
        source=f"/medmesh/{source}",
        type=message.address(),
        time=datetime.now(UTC),
        datacontenttype="application/json",
        dataschema=f"urn:medmesh:schema:{message.KIND}.{message.TYPE}",
        hospital=hospital or (cause.hospital if cause else None),
        actor=actor or (cause.actor if cause else None),
        correlationid=(cause.correlationid or cause.id) if cause else identifier,
        causationid=cause.id if cause else None,
        traceparent=traceparent or (cause.traceparent if cause else None),
        data=message,
    )


def encode(message: Envelope[Any]) -> bytes:
    """The canonical bytes. Raises `Problem` when they are over `MAX_MESSAGE_BYTES`."""
    body = message.__pydantic_serializer__.to_json(message, exclude_none=True)
    if len(body) > MAX_MESSAGE_BYTES:
        raise Problem("message.too_large", type=message.type, bytes=len(body), limit=MAX_MESSAGE_BYTES)
    return body


@cache
def _reader(message: type[Message]) -> type[Envelope[Any]]:
    return Envelope[message]  # type: ignore[valid-type]


def decode(body: bytes, message: type[M]) -> Envelope[M]:
    """Read an envelope around `message`, ignoring fields this version does not know.

    Raises `Problem` (`message.invalid`) which names the fields at fault but never their values.
    """
    return _read(lambda reader: reader.model_validate_json(body, extra="ignore"), message)


def understood(document: Mapping[str, Any], message: type[M]) -> Envelope[M]:
    """The same of what JSON was made into already."""
    return _read(lambda reader: reader.model_validate(document, extra="ignore"), message)


def _read(how: Callable[[type[Envelope[Any]]], Envelope[Any]], message: type[Message]) -> Envelope[Any]:
    try:
        return how(_reader(message))
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['type']}" for e in error.errors(include_input=False, include_url=False)[:5])
        raise Problem("message.invalid", type=message.subject(), where=where) from None
