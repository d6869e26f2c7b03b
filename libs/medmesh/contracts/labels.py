"""Security labels of objects, asked for and changed alike at every service that owns some."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from medmesh.contracts.message import Event, Exchange, Identifier, Query, Record, Sha256

LevelName = Literal["public", "internal", "sensitive", "core"]
Compartment = Annotated[str, StringConstraints(pattern=r"^([a-z0-9][a-z0-9_-]{0,62}|\*)$")]
"""An organisation; `*` in a clearance means every one."""

LabelledKind = Literal["dataset", "descriptor", "project", "job", "federation", "model", "release"]
"""Kinds of objects that carry a label."""

FILES: tuple[str, ...] = ("annotation", "federation", "ingestion", "registry", "training")
"""The services whose labelled objects consist of stored files."""

OWNERS: dict[str, tuple[str, ...]] = {
    "dataset": ("ingestion",),
    "descriptor": ("ingestion",),
    "project": ("annotation",),
    "item": ("annotation",),
    "job": ("training",),
    "federation": ("federation",),
    "model": ("registry",),
    "release": ("registry",),
    "approval": ("governance",),
    "user": ("governance",),
    "content": ("ingestion", "annotation"),
    "file": FILES,
}
"""Kind of object to the services that know such ones; a `content` is what a data set version or an export of labels names, a
`file` anything stored."""


class SecurityLabel(Record):
    """A level and the organisations whose data it is about."""

    level: LevelName = "internal"
    compartments: tuple[Identifier, ...] = ()


class Clearance(Record):
    """Up to which level somebody may read, and of which organisations."""

    level: LevelName = "public"
    compartments: tuple[Compartment, ...] = ()


class ObjectView(Record):
    """What decides who may read an object. `known` is false for one that is not there."""

    known: bool
    kind: str
    id: str
    label: SecurityLabel | None = None
    owner: str = ""
    organisations: tuple[str, ...] = ()
    maker: str = ""


class DescribeObject(Query):
    """What a service asks before it lets somebody use another service's object."""

    TYPE: ClassVar[str] = "*.describe-object.v1"
    ACTION: ClassVar[str | None] = "object.describe"
    Reply: ClassVar[type[Record]] = ObjectView

    service: Identifier
    kind: str
    id: str = Field(max_length=400)

    def address(self) -> str:
        return f"medmesh.qry.{self.service}.describe-object.v1"


class FileView(Record):
    """The labelled objects of which a stored file is a part; none for one that belongs to nothing that has a label."""

    things: tuple[ObjectView, ...] = ()


class FindFile(Query):
    """What a stored file belongs to, asked of every service that owns labelled objects before a person reads the file by its name."""

    TYPE: ClassVar[str] = "*.find-file.v1"
    ACTION: ClassVar[str | None] = "object.describe"
    Reply: ClassVar[type[Record]] = FileView

    service: Identifier
    sha256: Sha256

    def address(self) -> str:
        return f"medmesh.qry.{self.service}.find-file.v1"


class LabelAnswer(Record):
    """`state` is `changed`, `unchanged`, or `pending`: then an approval of the action `label.change` for `target` and `digest` does it."""

    state: str
    label: SecurityLabel
    target: str
    digest: Sha256


class ChangeLabel(Exchange):
    """Label an object anew. Raising takes effect at once; what lowers the level or leaves a compartment out waits for a second person."""

    TYPE: ClassVar[str] = "*.change-label.v1"
    ACTION: ClassVar[str | None] = "label.change"
    Reply: ClassVar[type[Record]] = LabelAnswer

    kind: LabelledKind
    id: str = Field(max_length=200)
    label: SecurityLabel
    reason: str = Field(default="", max_length=500)

    @property
    def service(self) -> str:
        """The owner."""
        return OWNERS[self.kind][0]

    def address(self) -> str:
        return f"medmesh.qry.{self.service}.change-label.v1"


class LabelChanged(Event):
    """An object has another label: whoever keeps a copy of it follows, and what was made from it is raised with it.

    `revision` counts the changes of this object's label: facts may arrive in another order. `approval` is what lowered it; `source` is
    the object (`kind/id`) with which it was raised.
    """

    TYPE: ClassVar[str] = "*.label.changed.v1"

    service: Identifier
    kind: str
    id: str
    label: SecurityLabel
    before: SecurityLabel | None = None
    revision: int = 0
    approval: str = ""
    source: str = ""

    def address(self) -> str:
        return f"medmesh.evt.{self.service}.label.changed.v1"
