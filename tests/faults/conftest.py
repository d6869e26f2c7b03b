"""One platform for the whole folder: each test kills something else and the platform lives on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.harness import Stage


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    # Not pytest's own folder: when we are root the database's account could not pass through it.
    folder = Path(tempfile.mkdtemp(prefix="medmesh-faults-"))
    folder.chmod(0o711)
    try:
        running = Stage.up(folder)
        try:
            yield running
        finally:
            running.down()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
