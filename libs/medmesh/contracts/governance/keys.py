"""Signing keys as their owners announce them. What counts is the roster: these are what keepers compare and put into it."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from pydantic import Field

from medmesh.contracts.message import Command, Query, Record


class RegisterKey(Command):
    """Announce the public half of one's own signing key (a C2SP verifier key named as the person is). Result: `{"key": vkey}`."""

    TYPE: ClassVar[str] = "governance.register-key.v1"
    ACTION: ClassVar[str] = "key.register"

    key: str = Field(max_length=400)


class KeyView(Record):
    """`rostered` says whether the roster this platform goes by has it; whoever relies on that looks into their own."""

    name: str
    key: str
    at: datetime
    rostered: bool


class SigningKeys(Record):
    keys: tuple[KeyView, ...]


class ListKeys(Query):
    """Every key that a person announced or a hospital enrolled with."""

    TYPE: ClassVar[str] = "governance.list-keys.v1"
    ACTION: ClassVar[str | None] = "key.list"
    Reply: ClassVar[type[Record]] = SigningKeys
