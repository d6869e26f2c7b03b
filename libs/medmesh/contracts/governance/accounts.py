"""What evaluators ask of accounts: the list with rights, and what is amiss with each."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from pydantic import Field

from medmesh.contracts.message import Command, Exchange, Identifier, Instant, Names, Record


class AccountEntry(Record):
    """`findings` are the codes of what is amiss (`FINDINGS`)."""

    name: str
    kind: str
    display_name: str
    organisation: str
    roles: tuple[str, ...]
    state: str
    factor: str
    created: datetime
    signed_in: datetime | None = None
    password_due: datetime | None = None
    certificate_until: datetime | None = None
    ends: datetime | None = None
    sessions: int = 0
    findings: tuple[str, ...] = ()


class AccountReport(Record):
    """`next` is the name to go on after; None at the end."""

    accounts: tuple[AccountEntry, ...]
    next: str | None = None


class ReportAccounts(Exchange):
    """Every account with its rights and what is amiss with it, in pages, by name. That it was taken is recorded: it is a list of people."""

    TYPE: ClassVar[str] = "governance.report-accounts.v1"
    ACTION: ClassVar[str | None] = "user.list"
    Reply: ClassVar[type[Record]] = AccountReport

    after: str = ""
    limit: int = Field(default=200, ge=1, le=200)


class LimitUser(Command):
    """Let an account end at a time, or never (`ends` None): for who is here for a while."""

    TYPE: ClassVar[str] = "governance.limit-user.v1"
    ACTION: ClassVar[str] = "user.manage"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("user", "{name}"),)

    name: Identifier
    ends: Instant | None = None


FINDINGS: dict[str, tuple[str, str]] = {
    "disabled": ("disabled", "已停用"),
    "ended": ("its time is over", "账户已到期"),
    "ends_soon": ("ends within 14 days", "账户将在14天内到期"),
    "idle": ("unused for so long that it is disabled", "长期未使用，将被停用"),
    "idle_soon": ("unused for two thirds of that time", "较长时间未使用"),
    "never_used": ("was never activated, and its code is over", "从未激活且激活码已过期"),
    "shared": ("looks as if several people used it", "疑似共享账户"),
    "locked": ("locked after wrong secrets", "已锁定"),
    "password_due": ("the password is too old", "口令已过期"),
    "no_second_factor": ("a role needs a second factor", "角色要求双因素但未启用"),
    "no_roles": ("has no role", "未分配角色"),
}
"""Code to (English, Chinese)."""
