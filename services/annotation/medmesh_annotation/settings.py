"""Settings of annotation."""

from __future__ import annotations

from pydantic import Field

from medmesh.service.settings import ServiceSettings


class Settings(ServiceSettings):
    """Beside the common ones."""

    claim_minutes: int = Field(default=30, ge=1)
    """How long an item stays with the person who asked for it."""
