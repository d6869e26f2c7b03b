"""Settings of ingestion."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from medmesh.service.settings import ServiceSettings


class Settings(ServiceSettings):
    """Beside the common ones."""

    key: Path
    """Secret file, made at the first start: 32 bytes that turn identifiers into pseudonyms. Lost, the same patient gets new ones."""
    deidentification: str = ""
    """What is kept beyond the Basic Profile of PS3.15, as words (`medmesh.imaging.deidentify.Options`): `dates=shift patient`."""
    max_files: int = Field(default=100_000, ge=1)
    """Entries of an archive."""
    max_bytes: int = Field(default=50 * 2**30, ge=1)
    """Bytes of an archive, packed or unpacked; the folder `state` must hold twice as many."""
    max_ratio: int = Field(default=200, ge=1)
    """How many times larger than the archive its content may be; deflate reaches 1032, images hardly 10."""
    max_file_bytes: int = Field(default=512 * 2**20, ge=1)
    """A larger file is rejected: a file is held in memory while it is cleaned."""
