"""Settings of a node: `edge.json` in its folder, written at enrolment."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medmesh.contracts.message import Identifier
from medmesh.embedded import files
from medmesh.errors import Problem


class ColdTier(BaseModel):
    """Where originals of the DICOM archive lie once they are old: another folder, or a bucket of an S3 service. Encrypted there as here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path | None = None
    """It must be there: where a disk is not mounted, nothing is made in its place."""
    s3_url: str | None = None
    s3_bucket: str = "medmesh-cold"
    s3_credentials: Path | None = None
    """A file 0600 with `access_key` and `secret_key` as JSON."""
    after_days: float = Field(default=180, ge=0)
    """So long after it came, or was recalled, an object becomes cold."""
    least_kib: int = Field(default=0, ge=0)
    """Smaller objects stay."""
    most_hot_gib: float | None = Field(default=None, ge=0)
    """Above this the oldest go before their time."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.folder is None) == (self.s3_url is None):
            raise ValueError("give folder, or s3_url")
        if self.s3_url is not None and self.s3_credentials is None:
            raise ValueError("s3_url needs s3_credentials")
        return self


class Settings(BaseModel):
    """What a node needs to know; secrets lie beside it, 0600."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hospital: Identifier
    node: Identifier
    gateway: str
    proxy: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    """The local page and the hospital's own inference; 0 takes a free port, written to `edge.port`."""
    frameworks: tuple[str, ...] = ()
    """Which framework a package that is written for several is run with here, most wanted first; the package's own by default."""
    python: dict[str, Path] = Field(default_factory=dict)
    """Framework to the interpreter that has it; ours by default."""
    worker_account: str | None = None
    worker_memory_bytes: int = Field(default=4 * 2**30, gt=0)
    worker_processes: int = Field(default=1, ge=1, le=64)
    """In how many processes a package is trained here; needs namespaces, and a framework that can."""
    worker_silence_seconds: float = Field(default=120, gt=0)
    roster_every: timedelta = timedelta(seconds=30)
    """How often the platform is asked for newer versions of the roster."""
    witness_seconds: float = Field(default=20, gt=0)
    """How long a federation's start may take to be in the platform's log and before its witnesses, once a round was opened."""
    log_every: timedelta = timedelta(seconds=30)
    """How often it is looked whether the platform's log only grew."""
    log_compared_every: timedelta = timedelta(minutes=5)
    """How often that is compared with what other hospitals were shown."""
    require_programs: bool = False
    """Refuse to start unless somebody of the pinned roster signed for the programs that are loaded (`medmesh program sign`)."""
    holdout: float = Field(default=0.25, gt=0, lt=1)
    """The share of patients whose samples are never trained on."""
    authorities: tuple[str, ...] = ()
    """Who else gives the patient numbers under which this hospital's images come (HL7 PID-3.4, FHIR's `identifier.system`): timelines of
    those numbers are of the same pseudonyms as the images."""
    deidentification: str = ""
    """What of images is kept beyond the Basic Profile of PS3.15, as words: `dates=shift patient`; see docs/hospital/deidentification.md."""
    pipelines_gib: float = Field(default=100, gt=0)
    """How much of the disk what pipelines made of items may take; what was used least lately goes first, and is made again when a round
    needs it."""
    cold: ColdTier | None = None
    log_level: str = "info"

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises `Problem` (`edge.not_enrolled`, `settings.invalid`)."""
        try:
            return cls.model_validate_json((folder / "edge.json").read_bytes())
        except FileNotFoundError:
            raise Problem("edge.not_enrolled", folder=folder) from None
        except ValidationError as error:
            reason = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
            raise Problem("settings.invalid", file="edge.json", reason=reason) from None

    def save(self, folder: Path) -> None:
        """Write it."""
        files.write(folder / "edge.json", json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False))


class Layout:
    """Where things lie below a node's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "secrets" / "node.key"
        self.certificate = folder / "secrets" / "node.pem"
        self.next_key = folder / "secrets" / "node.next.key"
        self.next_certificate = folder / "secrets" / "node.next.pem"
        self.next_request = folder / "secrets" / "node.next.csr"
        self.organisation_key = folder / "secrets" / "organisation.key"
        """The hospital's own, which signs what it accepts; apart from the node's, which renews."""
        self.site_key = folder / "secrets" / "pseudonyms" / "site.key"
        self.keys = folder / "secrets" / "hospital"
        self.withdrawn = folder / "secrets" / "withdrawn"
        self.enrolment = folder / "secrets" / "enrolment.json"
        self.local_token = folder / "secrets" / "local.token"
        self.ca = folder / "ca.pem"
        self.trust = folder / "trust.json"
        self.gate = folder / "gate.toml"
        """The hospital's own rules for text in pixels; they come before the default ones."""
        self.roster = folder / "roster.json"
        """From the pinned version on."""
        self.checkpoint = folder / "log.checkpoint"
        """The platform's log as it was verified here last: it must still contain that."""
        self.policy = folder / "policy.toml"
        self.database = folder / "store.db"
        self.objects = folder / "objects"
        self.archive = folder / "archive"
        """The hospital's own DICOM objects as they came: see `medmesh.archive`."""
        self.dicom = folder / "dicom.toml"
        self.dicom_port = folder / "dicom.port"
        self.dicom_tls_port = folder / "dicom.tls.port"
        self.models = folder / "models"
        self.work = folder / "work"
        self.cache = folder / "cache"
        self.port = folder / "edge.port"

    def cached(self, kind: str) -> Path:
        """The folder of the cache for what was fetched, by kind; made where it is not there."""
        folder = self.cache / kind
        if not folder.exists():
            folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        return folder

    def take_up(self) -> None:
        """Put a renewed certificate and its key into their places; interrupted, it is finished at the next start."""
        if self.next_certificate.exists():
            if self.next_key.exists():
                os.replace(self.next_key, self.key)
            os.replace(self.next_certificate, self.certificate)
