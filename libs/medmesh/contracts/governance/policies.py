"""The site's additional access policy: proposed, approved, asked for by every service."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from medmesh.contracts.message import Command, Event, Query, Record, Sha256


class PolicyView(Record):
    """`number` counts the policies that were in force so far; 0 is none. `digest` is that of the text."""

    number: int
    text: str
    digest: str = ""
    approval: str = ""


class GetPolicy(Query):
    """The site's policy in force."""

    TYPE: ClassVar[str] = "governance.get-policy.v1"
    ACTION: ClassVar[str | None] = "policy.read"
    Reply: ClassVar[type[Record]] = PolicyView


class ProposePolicy(Command):
    """Propose the whole text of the site's policy: it takes the place of the one in force when a second person approves exactly this text.

    Result: `{"approval", "digest"}`. An empty text means: no policy of the site's own.
    """

    TYPE: ClassVar[str] = "governance.propose-policy.v1"
    ACTION: ClassVar[str] = "policy.propose"

    text: str = Field(max_length=32_768)
    reason: str = Field(default="", max_length=500)


class PolicyChanged(Event):
    """Another policy is in force."""

    TYPE: ClassVar[str] = "governance.policy.changed.v1"

    number: int
    digest: Sha256
