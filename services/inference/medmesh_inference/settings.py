"""Settings of inference."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from medmesh.service.settings import ServiceSettings


class Settings(ServiceSettings):
    """Beside the common ones."""

    client_ca: Path | None = None
    """Certificate of the authority whose client certificates are taken: for tokens of a session that belongs to one."""
    threads: int = Field(default=1, ge=1, le=64)
    """Threads of one running model."""
    reconcile_seconds: float = Field(default=30.0, gt=0)
    """How often the models on disk are compared with those that ought to be served."""
