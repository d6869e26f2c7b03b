"""Settings of training."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from medmesh.service.settings import ServiceSettings


class Settings(ServiceSettings):
    """Beside the common ones. What decides the weights (`checkpoint_steps`, `batch_size`, `learning_rate`) is frozen with each
    job when it is submitted: a change here never changes a job that is on its way."""

    checkpoint_steps: int = Field(default=200, ge=1)
    """Steps from one checkpoint to the next: what a crash costs at most."""
    batch_size: int = Field(default=32, ge=1, le=65_536)
    learning_rate: float = Field(default=0.01, gt=0, lt=1000)
    max_steps: int = Field(default=1_000_000, ge=1, lt=2**31)
    max_data_bytes: int = Field(default=16 * 2**30, ge=1)
    """Most that the samples of one job may take on the disk, as the worker reads them: twice while they are handed over. It maps them: they
    count as addresses (`Limits.mapped_bytes`) and not as `worker_memory_bytes`."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts in a row that end without a new checkpoint before a job is given up."""
    lease_seconds: float = Field(default=15.0, gt=0)
    """How long a job stays with an instance that no longer answers for it."""
    poll_seconds: float = Field(default=2.0, gt=0)
    """How often an idle instance looks for jobs it was not woken for."""
    rehearsal_seconds: float = Field(default=600.0, gt=0)
    """How long the rehearsal of a package may take."""
    interpreters: dict[str, Path] = Field(default_factory=dict)
    """The Python of each framework; the service's own where none is named."""
    worker_account: str | None = None
    """Who the worker is when the service runs as root."""
    worker_silence_seconds: float = Field(default=120.0, gt=0)
    worker_memory_bytes: int = Field(default=4 * 2**30, ge=2**28)
    worker_cpu_seconds: int = Field(default=86_400, ge=1)
    """CPU time of one attempt; beyond it the worker is ended and the next attempt goes on from the last checkpoint."""
