"""Settings: one JSON file a service, every field overridable by `MEDMESH_<FIELD>`; secrets are named by path, never given."""

from __future__ import annotations

import json
import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medmesh.errors import Problem


class ObjectSettings(BaseModel):
    """Where bytes live: kept and sealed in S3 (or a folder when `s3_url` is empty), scratch in a spool folder that services on
    one machine share, or in S3 where they do not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    s3_url: str = ""
    s3_credentials: Path | None = None
    """JSON file with `access_key` and `secret_key`, 0600."""
    folder: Path | None = None
    spool: Path | None = None
    keys: str = ""
    """Who keeps the key that wraps those of kept objects: a folder of key files, or `unix:` and the socket of a keeper."""
    suite: str = "intl-1"
    """With which new objects are encrypted."""
    suites: tuple[str, ...] = ("intl-1", "sm-1")
    """Which are accepted when one is read."""


class ServiceSettings(BaseModel):
    """What every service needs to know; a service adds its own fields in `settings.py`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    platform: str = "medmesh"
    nats_url: str
    identity: Path
    """NKEY seed file of this service: it opens the bus and signs its tokens."""
    database_url: str
    database_password: Path | None = None
    trust: Path
    """Public keys of everybody this service believes (`medmesh.security.tokens.TrustBundle`)."""
    objects: ObjectSettings = ObjectSettings()
    state: Path
    """A private folder for what may be lost: caches, temporary files."""
    telemetry: Path | None = None
    otlp_endpoint: str | None = None
    trace_ratio: float = Field(default=1.0, ge=0, le=1)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    """Health and metrics, and the HTTP application where the service has one."""
    administrator_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """From where administrators may come, as CIDR; everywhere when there is none. Behind a proxy the address is the proxy's."""
    administrators_elsewhere: Literal["refuse", "record"] = "refuse"
    """What happens to one who comes from somewhere else; it is recorded and an alert either way."""
    unbound_tokens: bool = False
    """Whether the doors of audit and inference also take tokens that are bound to no key (RFC 9449): whoever overhears one has it for ten
    minutes. For clients that can send nothing but a fixed header."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    pool_size: int = 8
    require_programs: bool = False
    """Refuse to start unless somebody of the roster signed for the programs that are loaded (`medmesh program sign`)."""
    audit_lag_seconds: float = Field(default=60.0, gt=0)
    """How long an audit record may wait for the log's receipt before privileged actions are refused."""
    audit_quota_bytes: int = Field(default=2 * 2**30, gt=0)
    """How many bytes of records may wait before everything that leaves a record is refused."""
    audit_quota_days: float = Field(default=7.0, gt=0)
    """How long the oldest may wait before that."""

    @classmethod
    def load(cls, path: Path, environment: dict[str, str] | None = None) -> Self:
        """Read a settings file. Raises `Problem` (`settings.invalid`) naming the field at fault."""
        environment = dict(os.environ) if environment is None else environment
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise Problem("settings.invalid", file=path.name, reason=str(error)) from None
        for name in cls.model_fields:
            if (given := environment.get(f"MEDMESH_{name.upper()}")) is not None:
                values[name] = given
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            reason = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False, include_url=False))
            raise Problem("settings.invalid", file=path.name, reason=reason) from None

    def password(self) -> str | None:
        """The database password."""
        return self.database_password.read_text(encoding="utf-8").strip() if self.database_password else None
