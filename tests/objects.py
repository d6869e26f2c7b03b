"""Object stores for tests: keys in a folder, a bucket of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medmesh.embedded.testing import RunningServers
from medmesh.security.keyring.file import FileKeys
from medmesh.store.objects.envelope import Wrapping
from medmesh.store.objects.s3 import S3Blobs


def wrapping(private: Path, suite: str = "intl-1") -> Wrapping:
    return Wrapping(FileKeys(private / "kek").ensure("objects", suite=suite), "objects", suite)


async def bucket(request: pytest.FixtureRequest, private: Path, unique: str) -> S3Blobs:
    running: RunningServers = request.getfixturevalue("servers")
    keys = private / "s3.json"
    keys.write_text(json.dumps({"access_key": running.s3_access_key, "secret_key": running.s3_secret_key}))
    keys.chmod(0o600)
    return await S3Blobs.open(running.s3_url, f"test-{unique}", keys)
