"""Settings of conversion."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from medmesh.service.settings import ServiceSettings


class Settings(ServiceSettings):
    """Beside the common ones."""

    max_abs: float = Field(default=1e-3, ge=0)
    """The largest difference between a logit of the model and the same logit of the converted file."""
    agreement: float = Field(default=1.0, ge=0, le=1)
    """The smallest share of examples for which both name the same class."""
    examples: int = Field(default=32, ge=2, le=256)
    """How many seeded images both answer; also the larger of the two batch sizes."""
    opset_oldest: int = Field(default=13, ge=7)
    opset_newest: int = Field(default=18, ge=7)
    """The operator set versions hospitals are known to run; exporters may silently write another than they were asked for."""
    max_onnx_bytes: int = Field(default=2**30, ge=1, lt=2**31)
    """Protobuf ends at 2 GiB."""
    python: Path | None = None
    """The interpreter that has the training frameworks; our own by default."""
    account: str | None = None
    """Whom a package runs as when the service is root."""
    memory_bytes: int = Field(default=4 * 2**30, ge=2**28)
    silence_seconds: float = Field(default=600, gt=0)
    """How long an export may take: it tells no progress."""
    measure_seconds: float = Field(default=300, gt=0)
    """How long checking and running the converted file may take."""
