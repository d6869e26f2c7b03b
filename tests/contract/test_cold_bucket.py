"""A bucket of a real S3 server as the cold tier of an archive; all else about tiers: `tests/unit/archive/test_tiers.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.archive.test_tiers import LARGE, SMALL, opened

from medmesh.archive.objects import Objects
from medmesh.archive.tiers import Thresholds
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.store.objects.envelope import Wrapping
from medmesh.store.objects.s3 import S3Blobs
from medmesh.store.objects.tiered import Cold


def test_a_bucket_is_a_cold_tier(servers: RunningServers, private: Path, unique: str) -> None:
    with opened(private) as place:
        place.receive(SMALL, LARGE)
        keys = private / "s3.json"
        keys.write_text(json.dumps({"access_key": servers.s3_access_key, "secret_key": servers.s3_secret_key}))
        keys.chmod(0o600)
        bucket = Cold(lambda: S3Blobs.connected(servers.s3_url, f"cold-{unique}", keys))
        place.objects = Objects(place.folder / "archive", Wrapping(place.keys, "hospital"), lambda: bucket)
        place.move()
        assert place.states() == ["cold", "cold"]
        assert place.hot_bytes() < 2000
        assert place.read() == [SMALL, LARGE]
        place.move(Thresholds(age=3_600_000))
        assert place.states() == ["hot", "hot"]
        gone = Cold(lambda: S3Blobs.connected("http://127.0.0.1:1", "cold", keys))
        with pytest.raises(Problem) as found:
            gone.mark()
        assert found.value.code == "archive.cold_away"
