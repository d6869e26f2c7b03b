"""What a sealed store must hold, against the real SeaweedFS: nobody deletes, shortens or replaces what was put."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from minio import Minio
from minio.error import S3Error
from minio.retention import COMPLIANCE, GOVERNANCE, Retention

from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.store.objects.sealed import SealedStore


def keys(servers: RunningServers, folder: Path) -> Path:
    path = folder / "s3.json"
    path.write_text(json.dumps({"access_key": servers.s3_access_key, "secret_key": servers.s3_secret_key}))
    path.chmod(0o600)
    return path


def anybody(servers: RunningServers) -> Minio:
    """Somebody who has the platform's own keys."""
    where = servers.s3_url.removeprefix("http://")
    return Minio(where, access_key=servers.s3_access_key, secret_key=servers.s3_secret_key, secure=False, region="us-east-1")


@pytest.fixture
async def store(servers: RunningServers, private: Path, unique: str) -> AsyncIterator[SealedStore]:
    made = await SealedStore.open(servers.s3_url, f"sealed-{unique}", keys(servers, private), retain_days=200)
    yield made
    made.close()


async def test_nobody_deletes_or_shortens_what_is_sealed(servers: RunningServers, store: SealedStore) -> None:
    version = await store.put("tile/0/000", b"one")
    client, bucket = anybody(servers), store._bucket
    kept = client.get_object_retention(bucket, "tile/0/000", version_id=version)
    assert kept is not None and kept.mode == COMPLIANCE
    assert kept.retain_until_date > datetime.now(UTC) + timedelta(days=199)
    sooner = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    for attempt in (
        lambda: client.remove_object(bucket, "tile/0/000", version_id=version),
        lambda: client.set_object_retention(bucket, "tile/0/000", Retention(COMPLIANCE, sooner), version_id=version),
        lambda: client.set_object_retention(bucket, "tile/0/000", Retention(GOVERNANCE, sooner), version_id=version),
        lambda: client.remove_bucket(bucket),
    ):
        with pytest.raises(S3Error):
            attempt()
    assert await store.read("tile/0/000", version) == b"one"


async def test_a_version_is_read_whatever_was_put_over_it(servers: RunningServers, store: SealedStore) -> None:
    version = await store.put("tile/0/000", b"one")
    client, bucket = anybody(servers), store._bucket
    client.put_object(bucket, "tile/0/000", io.BytesIO(b"two"), 3)
    assert await store.read("tile/0/000", version) == b"one"
    client.remove_object(bucket, "tile/0/000")
    assert await store.read("tile/0/000", version) == b"one"
    with pytest.raises(S3Error):
        client.get_object(bucket, "tile/0/000")
    found = await store.versions("tile/")
    assert sorted((v.key, v.marker) for v in found) == [("tile/0/000", False), ("tile/0/000", False), ("tile/0/000", True)]


async def test_a_name_is_used_once(store: SealedStore) -> None:
    version = await store.put("a", b"one")
    assert await store.put("a", b"one") == version, "after a crash the same step is done again"
    with pytest.raises(Problem) as refused:
        await store.put("a", b"other")
    assert refused.value.code == "objects.sealed"
    assert [v.id for v in await store.versions("a")] == [version]
    assert await store.put("ab", b"other") != version, "a longer name is another one"


async def test_a_version_that_is_not_there_is_missed(store: SealedStore) -> None:
    await store.put("a", b"one")
    with pytest.raises(Problem) as missing:
        await store.read("b", "00000000000000000000000000000000")
    assert missing.value.code == "objects.missing"


async def test_a_bucket_without_a_lock_is_refused(servers: RunningServers, private: Path, unique: str) -> None:
    anybody(servers).make_bucket(f"open-{unique}")
    with pytest.raises(Problem) as refused:
        await SealedStore.open(servers.s3_url, f"open-{unique}", keys(servers, private), retain_days=200)
    assert refused.value.code == "objects.unlocked"
