"""Settings of audit."""

from __future__ import annotations

from datetime import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from medmesh.service.settings import ServiceSettings


class Settings(ServiceSettings):
    """Beside the common ones."""

    log_key: Path
    """NKEY seed of the key that signs checkpoints; it opens nothing else."""
    client_ca: Path | None = None
    """Certificate of the authority whose client certificates are taken: for tokens of a session that belongs to one."""
    origin: str = "medmesh/log"
    """The log's name, first line of every checkpoint; each deployment has its own."""
    sm_keys: tuple[Path, ...] = ()
    """Key files of the second tree (SM3, SM2), the current one first; all of them sign. Needs `medmesh[sm]`. No second tree without one."""
    sm_seconds: float = Field(default=1.0, gt=0)
    """How often the second tree follows the first."""
    heartbeat_seconds: float = Field(default=60.0, gt=0)
    """How often the log records that it lives; one that is missed is an alert."""
    anomaly_seconds: float = Field(default=5.0, gt=0)
    """How often the log's tail is looked through for anomalies."""
    time_zone: str = "Asia/Shanghai"
    """In which working hours are meant."""
    working_hours: dict[str, tuple[time, time]] = Field(default_factory=dict)
    """Role to when it works, for example `{"researcher": ["07:00", "21:00"]}`; a role without hours works at any. The second may be
    earlier than the first: a night shift."""
    working_purposes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Role to what it works for (HL7 v3 PurposeOfUse), for example `{"clinician": ["TREAT"]}`; a role without purposes is not watched."""
    export_poll_seconds: float = Field(default=30.0, gt=0)
    """How often approved exports are looked for when nobody tells of one."""
    witness_policy: Path | None = None
    """A c2sp.org/tlog-policy file: this log's key, the witnesses with their addresses, the quorum. Nobody is asked without one.
    It is read again when it changes."""
    witness_ca: Path | None = None
    """The authority of the witnesses' certificates, where it is not a public one."""
    witness_seconds: float = Field(default=1.0, gt=0)
    """How often witnesses are shown the newest checkpoint."""
    witness_timeout_seconds: float = Field(default=5.0, gt=0)
    witness_patience_seconds: float = Field(default=60.0, gt=0)
    """How long checkpoints wait for the quorum before they are shown without it, and before the alarm."""
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    """How often a sign of life is published while nothing happens."""
    watch_seconds: float = Field(default=10.0, gt=0)
    """How often it looks whether its tables are still protected, and whether somebody changed them."""
    sealed_bucket: str = "sealed"
    """Bucket of the sealed segments, made with object lock; used when `objects.s3_url` is set."""
    retain_days: int = Field(default=1095, ge=180)
    """How long nobody can delete what is sealed. Six months are the least the law allows (Cybersecurity Law, art. 23)."""
    retention: dict[Literal["security", "clinical", "operations"], Annotated[int, Field(ge=180)]] = Field(default_factory=dict)
    """Days that bodies of a class are kept, where it is not 1095, 2190 and 180; changed later by approval only. 180 is the law's floor."""
    seal_seconds: float = Field(default=30.0, gt=0)
    """How often what was committed is sealed, and the checkpoint over it."""
    inspect_seconds: float = Field(default=3600.0, gt=0)
    """How often the store's versions are compared with those that were sealed."""
