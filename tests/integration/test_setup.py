"""`medmesh setup`: a platform whose servers run elsewhere, from an empty folder to a service that is ready."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from sqlalchemy import text
from sqlalchemy.engine import make_url

from medmesh.bus.memory_bus import MemoryBus
from medmesh.bus.topology import apply, streams
from medmesh.cli.setup import setup
from medmesh.embedded import apart, binaries, probe
from medmesh.embedded.layout import Apart
from medmesh.embedded.nats import Nats, NatsUser, authorization
from medmesh.embedded.ports import HOST, Ports
from medmesh.embedded.process import Command
from medmesh.embedded.supervisor import Supervisor
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security.keys import Identity
from medmesh.service.spec import services
from medmesh.store import postgres
from medmesh.store.objects.s3 import S3Store

DERIVED = {"settings.json", "authorization.conf", "trust.json"}
CERTIFICATES = {"tls.crt"}


def run(*options: object) -> Result:
    return CliRunner().invoke(setup, ["--external", *map(str, options)], catch_exceptions=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def alternatives(certificate: Path) -> set[str]:
    found = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return {str(name.value) for name in found.value}
