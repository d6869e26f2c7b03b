"""Accounts of people and of hospital systems, and their roles."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from pydantic import Field

from medmesh.contracts.governance.common import Done, OneTimeCode
from medmesh.contracts.labels import Clearance
from medmesh.contracts.message import Command, Event, Exchange, Identifier, Names, Query, Record


class Bootstrap(Exchange):
    """Create the first security administrator with the one-time token printed at installation."""

    TYPE: ClassVar[str] = "governance.bootstrap.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Done

    token: str = Field(repr=False)
    name: Identifier
    display_name: str
    password: str = Field(repr=False)


class CreateUser(Exchange):
    """Create an account without a password; its owner sets one with the one-time activation code."""

    TYPE: ClassVar[str] = "governance.create-user.v1"
    ACTION: ClassVar[str | None] = "user.create"
    Reply: ClassVar[type[Record]] = OneTimeCode

    name: Identifier
    display_name: str
    organisation: Identifier
    roles: tuple[str, ...]


class ActivateUser(Exchange):
    """Set the first password."""

    TYPE: ClassVar[str] = "governance.activate-user.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Done

    name: Identifier
    code: str = Field(repr=False)
    password: str = Field(repr=False)


class RecoverUser(Exchange):
    """Issue a new activation code for somebody who lost the password, and with `second_factor` the authenticator too."""

    TYPE: ClassVar[str] = "governance.recover-user.v1"
    ACTION: ClassVar[str | None] = "user.manage"
    Reply: ClassVar[type[Record]] = OneTimeCode
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("user", "{name}"),)

    name: Identifier
    second_factor: bool = False


class UserView(Record):
    name: str
    display_name: str
    organisation: str
    roles: tuple[str, ...]
    active: bool
    kind: str = "person"
    second_factor: bool = False
    disabled: bool = False
    locked_until: datetime | None = None
    signed_in: datetime | None = None
    certificate_until: datetime | None = None
    """Until when the last of their client certificates is good."""
    clearance: Clearance | None = None


class Users(Record):
    users: tuple[UserView, ...]


class ListUsers(Query):
    TYPE: ClassVar[str] = "governance.list-users.v1"
    ACTION: ClassVar[str | None] = "user.list"
    Reply: ClassVar[type[Record]] = Users


class RegisterSystem(Command):
    """Register a system of a hospital, which signs in with the private half of this key. Result: `{"system": name}`."""

    TYPE: ClassVar[str] = "governance.register-system.v1"
    ACTION: ClassVar[str] = "system.register"

    hospital: Identifier
    name: Identifier
    public_key_pem: str = Field(max_length=2000)
    display_name: str = ""


class ChangeRoles(Command):
    """Give somebody exactly these roles. Nobody changes their own; the sessions of the person end."""

    TYPE: ClassVar[str] = "governance.change-roles.v1"
    ACTION: ClassVar[str] = "user.manage"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("user", "{name}"),)

    name: Identifier
    roles: tuple[str, ...]


class SetClearance(Command):
    """Clear a person or a system up to a level, for the compartments named and no others. Nobody sets their own; the sessions end."""

    TYPE: ClassVar[str] = "governance.set-clearance.v1"
    ACTION: ClassVar[str] = "clearance.set"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("user", "{name}"),)

    name: Identifier
    clearance: Clearance


class DisableUser(Command):
    """Close an account: its sessions end, and nobody signs in until it is enabled again."""

    TYPE: ClassVar[str] = "governance.disable-user.v1"
    ACTION: ClassVar[str] = "user.manage"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("user", "{name}"),)

    name: Identifier
    reason: str = Field(default="", max_length=500)


class EnableUser(Command):
    """Open a closed account again."""

    TYPE: ClassVar[str] = "governance.enable-user.v1"
    ACTION: ClassVar[str] = "user.manage"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("user", "{name}"),)

    name: Identifier


class UnlockUser(Command):
    """Lift the lock that follows wrong passwords, before its time."""

    TYPE: ClassVar[str] = "governance.unlock-user.v1"
    ACTION: ClassVar[str] = "user.manage"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("user", "{name}"),)

    name: Identifier


class UserCreated(Event):
    TYPE: ClassVar[str] = "governance.user.created.v1"

    name: Identifier
    organisation: Identifier
    roles: tuple[str, ...]


class UserChanged(Event):
    """Roles were changed, or the account was disabled or enabled."""

    TYPE: ClassVar[str] = "governance.user.changed.v1"

    name: Identifier
    roles: tuple[str, ...]
    disabled: bool
