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


@dataclass(frozen=True, slots=True)
class Together:
    """One machine, one account: all secrets in one folder."""

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
        return self.folder / owner / what

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
    "release_key.nk": "secrets/release.nk",
    "log_key.nk": "secrets/log.nk",
    "sm_key.json": "secrets/log.sm2.json",
    "project.key": "secrets/ingestion.key",
    "seal.key": "secrets/{owner}.seal",
    "settings.json": "settings/{owner}.json",
    "state": "state/{owner}",
}
