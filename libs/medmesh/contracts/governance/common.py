"""What several exchanges answer."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from medmesh.contracts.message import Record


class Done(Record):
    """It was done."""


class OneTimeCode(Record):
    """Shown once to the person who asked; kept only as a hash."""

    code: str = Field(repr=False)
    expires: datetime
