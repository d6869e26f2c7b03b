"""The unprivileged account that takes the place of root, and what that account can reach."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from medmesh.errors import Problem

USUAL = ("medmesh", "postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Account:
    """A line of the password file."""

    name: str
    uid: int
    gid: int


def choose(configured: str | None = None) -> Account | None:
    """Whom a server that refuses root shall run as: None (ourselves) unless we are root, else `configured` or the first of `USUAL`.

    Raises `Problem`: `embedded.account_missing` for an account that does not exist or is root again, and
    `embedded.account_nameless` when we are a number without a name, which PostgreSQL refuses.
    """
    if os.geteuid() != 0:
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            raise Problem("embedded.account_nameless", uid=os.geteuid()) from None
        return None
    for name in (configured,) if configured else USUAL:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        if found.pw_uid != 0:
            return Account(found.pw_name, found.pw_uid, found.pw_gid)
    raise Problem("embedded.account_missing", name=configured or ", ".join(USUAL))


def reaches(account: Account | None, path: Path) -> bool:
    """Whether every folder above `path` lets `account` pass, by the permission bits alone."""
    return account is None or all(_passes(account, parent.stat()) for parent in path.resolve().parents)


def _passes(account: Account, folder: os.stat_result) -> bool:
    if folder.st_uid == account.uid:
        return bool(folder.st_mode & 0o100)
    if folder.st_gid == account.gid:
        return bool(folder.st_mode & 0o010)
    return bool(folder.st_mode & 0o001)


def give(path: Path, account: Account | None) -> None:
    """Make `account` the owner of `path` and of everything below it."""
    if account is None:
        return
    os.chown(path, account.uid, account.gid, follow_symlinks=False)
    for folder, _, files in os.walk(path):
        os.chown(folder, account.uid, account.gid)
        for name in files:
            os.chown(os.path.join(folder, name), account.uid, account.gid, follow_symlinks=False)
