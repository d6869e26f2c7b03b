"""Settings of audit."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from medmesh.service.settings import ServiceSettings


class Settings(ServiceSettings):
    """Beside the common ones."""

    log_key: Path
    """NKEY seed of the key that signs checkpoints; it opens nothing else."""
    origin: str = "medmesh/log"
    """The log's name, first line of every checkpoint; each deployment has its own."""
    group_milliseconds: float = Field(default=3.0, ge=0)
    """How long a commit waits for companions once one record is there."""
    watch_seconds: float = Field(default=5.0, gt=0)
    """How often the watcher looks for anomalies."""
    export_poll_seconds: float = Field(default=30.0, gt=0)
    """How often approved exports are looked for when nobody tells of one."""
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    """How often a sign of life is published while nothing happens."""
