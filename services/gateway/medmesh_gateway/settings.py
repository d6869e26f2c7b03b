"""Settings of the gateway."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from medmesh.service.crowd import MOST
from medmesh.service.settings import ServiceSettings


class Settings(ServiceSettings):
    """Beside the common ones."""

    client_ca: Path
    """Certificate of the authority that signs hospitals' nodes."""
    max_object_bytes: int = Field(default=64 * 2**30, gt=0)
    alive_seconds: float = Field(default=3.0, gt=0)
    """How often a connected hospital's sign of life is passed on."""
    session_cache_seconds: float = Field(default=20.0, ge=0)
    require_client_certificate: bool = True
    """Off only where an inspecting firewall breaks mutual TLS: hospitals' requests are then proven by their signature alone."""
    most_connections: int = Field(default=MOST, ge=1)
    """At once; fewer where there are not two file descriptors for each (`medmesh.service.crowd`)."""
