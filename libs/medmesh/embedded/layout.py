"""Where a platform's secrets and settings lie: one rule for a platform on one machine, one for a platform whose parts run apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Layout(Protocol):
    """Paths only: nothing here reads or writes."""

    @property
    def folder(self) -> Path:
        """Everything lies below it."""

    def private(self, owner: str, what: str) -> Path:
        """A file that `owner` alone may read: `identity.nk`, `database_password`, `settings.json`, `tls.key` and so on."""

    def public(self, what: str) -> Path:
        """A file that everybody may read: `ca.pem` or `trust.json`."""


DOMAINS = {
    "ca.key": "authority",
    "log_key.nk": "log",
    "sm_key.json": "log",
    "release_key.nk": "release",
    "project.key": "pseudonyms",
    "objects": "objects",
    "seal": "seal",
}
"""Keys whose holders must not be one: each lies in a folder of its domain, which has its own backup (`medmesh vault export`) and is
given to one service. Whoever has the certification authority cannot write the log, whoever has stored objects cannot open them, and
whoever has images cannot follow a pseudonym back. `objects` and `seal` are folders of a key provider."""


@dataclass(frozen=True, slots=True)
class Together:
    """One machine, one account: secrets in one folder, those of a domain in one of their own below it."""

    folder: Path

    def private(self, owner: str, what: str) -> Path:
        return self.folder / _TOGETHER[what].format(owner=owner)

    def public(self, what: str) -> Path:
        return self.folder / what


@dataclass(frozen=True, slots=True)
class Apart:
    """A folder for each service and server, so that each can be given its own and no other."""

    folder: Path

    def private(self, owner: str, what: str) -> Path:
        domain = DOMAINS.get(what, owner)
        return self.folder / domain if what == domain else self.folder / domain / what

    def public(self, what: str) -> Path:
        return self.folder / "trust" / what


_TOGETHER = {
    "identity.nk": "secrets/{owner}.nk",
    "database_password": "secrets/{owner}.password",
    "s3.json": "secrets/s3.json",
    "tls.crt": "secrets/server.pem",
    "tls.key": "secrets/server.key",
    "ca.key": "secrets/authority/ca.key",
    "bootstrap_code": "secrets/bootstrap.token",
    "bootstrap_token": "secrets/bootstrap.sha256",
    "release_key.nk": "secrets/release/release.nk",
    "log_key.nk": "secrets/log/log.nk",
    "sm_key.json": "secrets/log/log.sm2.json",
    "project.key": "secrets/pseudonyms/project.key",
    "objects": "secrets/objects",
    "seal": "secrets/seal",
    "settings.json": "settings/{owner}.json",
    "state": "state/{owner}",
}
