"""What several exchanges answer."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from medmesh.contracts.message import Record, Sha256


class Done(Record):
    """It was done."""


class OneTimeCode(Record):
    """Shown once to the person who asked; kept only as a hash."""

    code: str = Field(repr=False)
    expires: datetime


class OfSession(Record):
    """A person's own session, as the gateway fills it in: the bearer, and the SHA-256 of the client certificate that was shown with it."""

    session: str = Field(repr=False)
    certificate: Sha256 | None = None
