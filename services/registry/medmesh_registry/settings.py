"""Settings of the registry."""

from __future__ import annotations

from pathlib import Path

from medmesh.service.settings import ServiceSettings


class Settings(ServiceSettings):
    """Beside the common ones."""

    release_key: Path
    """NKEY seed of the key that signs manifests; it opens nothing else, and hospitals know its public half."""
