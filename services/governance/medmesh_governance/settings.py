"""Settings of governance."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from medmesh.service.settings import ServiceSettings


class Settings(ServiceSettings):
    """Beside the common ones."""

    authority: Path
    """Folder of the certification authority (`ca.key`, `ca.pem`)."""
    bootstrap_token: Path | None = None
    """File with the SHA-256 of the one-time token that creates the first security administrator."""
    session_idle_minutes: int = Field(default=30, ge=1)
    session_hours: int = Field(default=12, ge=1)
    lock_after: int = Field(default=5, ge=1)
    lock_minutes: int = Field(default=30, ge=1)
    approvals_needed: int = Field(default=1, ge=1)
    approval_hours: int = Field(default=24, ge=1)
    enrolment_hours: int = Field(default=72, ge=1)
