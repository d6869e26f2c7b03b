"""Emergency access (break-glass, 紧急访问): opened at once, told to everybody concerned, reviewed afterwards."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from pydantic import Field

from medmesh.contracts.governance.common import OfSession
from medmesh.contracts.message import Command, Exchange, HospitalEvent, Identifier, Names, Query, Record

EmergencyReason = Literal["resuscitation", "deterioration", "transfer", "mass_casualty", "system_failure"]
"""抢救 · 病情突变 · 急诊转诊 · 群体伤或公共卫生事件 · 常规途径故障. The list is closed, so that it can be counted."""


class EmergencyView(Record):
    """`note` and `comment` are shown to who reviews; they stand in no event and in no audit record."""

    emergency: str
    person: str
    organisation: str
    reason: EmergencyReason
    note: str
    state: str
    opened: datetime
    expires: datetime
    ended: datetime | None = None
    due: datetime
    reviewer: str = ""
    comment: str = ""


class Emergencies(Record):
    emergencies: tuple[EmergencyView, ...]


class OpenEmergency(Exchange, OfSession):
    """Open an emergency access to one organisation, for this session: a reason of the list, a note without identifiers, and the
    second factor now (in a session of a client certificate the password). The same again answers the one that is open."""

    TYPE: ClassVar[str] = "governance.open-emergency.v1"
    ACTION: ClassVar[str | None] = "emergency.open"
    Reply: ClassVar[type[Record]] = EmergencyView

    organisation: Identifier
    reason: EmergencyReason
    note: str = Field(max_length=200)
    code: str = Field(default="", repr=False)
    password: str = Field(default="", repr=False)
    minutes: int = Field(default=60, ge=1, le=60)


class EndEmergency(Command):
    """End one's own before its time; the security administrator ends anybody's. Result: `{"emergency", "state"}`."""

    TYPE: ClassVar[str] = "governance.end-emergency.v1"
    ACTION: ClassVar[str] = "emergency.end"

    emergency: str


class ReviewEmergency(Command):
    """Another person says whether it was justified. When it was not, the sessions end and the person opens none again until the
    security administrator allows it. Result: `{"emergency", "state"}`."""

    TYPE: ClassVar[str] = "governance.review-emergency.v1"
    ACTION: ClassVar[str] = "emergency.review"

    emergency: str
    justified: bool
    comment: str = Field(default="", max_length=200)


class RestoreEmergency(Command):
    """Let somebody open emergency accesses again whose last one was not justified."""

    TYPE: ClassVar[str] = "governance.restore-emergency.v1"
    ACTION: ClassVar[str] = "user.manage"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("user", "{name}"),)

    name: Identifier


class ListEmergencies(Query):
    """Newest first: one's own, or everybody's for who reviews or audits. `state` filters."""

    TYPE: ClassVar[str] = "governance.list-emergencies.v1"
    ACTION: ClassVar[str | None] = "emergency.list"
    Reply: ClassVar[type[Record]] = Emergencies

    state: str | None = None


class EmergencyOpened(HospitalEvent):
    """Somebody has emergency access to the organisation, which hears of it when it is a hospital."""

    TYPE: ClassVar[str] = "governance.emergency.opened.v1"

    emergency: str
    person: Identifier
    organisation: Identifier
    reason: EmergencyReason
    expires: datetime
    due: datetime


class EmergencyEnded(HospitalEvent):
    """It ended: by who opened it, the security administrator, its time, or with its session (`by`)."""

    TYPE: ClassVar[str] = "governance.emergency.ended.v1"

    emergency: str
    organisation: Identifier
    by: str


class EmergencyOverdue(HospitalEvent):
    """Nobody reviewed it in time: who opened it opens no other one until somebody does."""

    TYPE: ClassVar[str] = "governance.emergency.overdue.v1"

    emergency: str
    person: Identifier
    organisation: Identifier


class EmergencyReviewed(HospitalEvent):
    """Another person looked into it."""

    TYPE: ClassVar[str] = "governance.emergency.reviewed.v1"

    emergency: str
    person: Identifier
    organisation: Identifier
    justified: bool
