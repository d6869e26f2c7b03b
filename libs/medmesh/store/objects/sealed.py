"""The durability class *sealed*: S3 under Object Lock in COMPLIANCE mode. What is put stays until its time is over, whoever asks.

The lock holds versions, not names: anybody with the keys may still put another version or a delete marker over a name. So every
reader names the version it was told at the put, and a second version of a name is a sign of tampering (`versions`).
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import urllib3
from minio.error import S3Error
from minio.retention import COMPLIANCE, Retention

from medmesh.errors import Problem
from medmesh.security.keys import read_secret
from medmesh.store.objects.s3 import connect

_GONE = ("NoSuchKey", "NoSuchObject", "NoSuchVersion", "NotFound")


class Version(NamedTuple):
    """One version of a name; a marker hides the name from whoever reads it without a version."""

    key: str
    id: str
    marker: bool


class SealedStore:
    """A bucket made with object lock. `retain_days` is how long each object cannot be deleted, counted from its put."""

    def __init__(self, url: str, bucket: str, *, access_key: str, secret_key: str, retain_days: int) -> None:
        self._pool, self._client = connect(url, access_key, secret_key, connections=4, retries=urllib3.Retry(total=2))
        self._bucket = bucket
        self._retain = timedelta(days=retain_days)

    @classmethod
    async def open(cls, url: str, bucket: str, credentials: Path, *, retain_days: int) -> SealedStore:
        """Connect with the keys in a file 0600; a bucket can be given its lock only when it is made. Raises `Problem`."""
        pair = json.loads(read_secret(credentials))
        store = cls(url, bucket, access_key=pair["access_key"], secret_key=pair["secret_key"], retain_days=retain_days)
        await asyncio.to_thread(store._ensure)
        return store

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()

    def _ensure(self) -> None:
        try:
            if not self._client.bucket_exists(self._bucket):
                self._client.make_bucket(self._bucket, object_lock=True)
        except S3Error as error:
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise
        try:
            self._client.get_object_lock_config(self._bucket)
        except S3Error as error:
            # A service may be kept from asking; then the first put tells, which no bucket without a lock accepts.
            if error.code != "AccessDenied":
                raise Problem("objects.unlocked", bucket=self._bucket) from None

    async def put(self, key: str, data: bytes) -> str:
        """Seal bytes under a name that is used once; answers the version. The same bytes again answer the version they have.

        Raises `Problem` (`objects.sealed`) when other bytes were put under that name, and puts nothing.
        """
        return await asyncio.to_thread(self._put, key, data)

    def _put(self, key: str, data: bytes) -> str:
        for version in self._versions(key):
            if version.key == key and not version.marker:
                if self._read(key, version.id) != data:
                    raise Problem("objects.sealed", key=key)
                return version.id
        until = datetime.now(UTC).replace(microsecond=0) + self._retain
        try:
            done = self._client.put_object(self._bucket, key, io.BytesIO(data), len(data), retention=Retention(COMPLIANCE, until))
        except S3Error as error:
            raise Problem("objects.refused", key=key, reason=error.code) from None
        if not done.version_id:
            raise Problem("objects.unlocked", bucket=self._bucket)
        return done.version_id

    async def read(self, key: str, version: str) -> bytes:
        """The bytes of a version. Raises `Problem` (`objects.missing`)."""
        return await asyncio.to_thread(self._read, key, version)

    def _read(self, key: str, version: str) -> bytes:
        try:
            answer = self._client.get_object(self._bucket, key, version_id=version)
        except S3Error as error:
            if error.code in _GONE:
                raise Problem("objects.missing", sha256=f"{key}@{version}") from None
            raise
        try:
            return answer.read()
        finally:
            answer.close()
            answer.release_conn()

    async def unlocked(self, key: str, version: str) -> None:
        """Raise `Problem` (`objects.locked`) while the store may not let a version go; one that has gone is unlocked."""
        await asyncio.to_thread(self._unlocked, key, version)

    def _unlocked(self, key: str, version: str) -> None:
        try:
            found = self._client.get_object_retention(self._bucket, key, version_id=version)
        except S3Error as error:
            if error.code in _GONE:
                return
            raise
        if found is not None and found.retain_until_date > datetime.now(UTC):
            raise Problem("objects.locked", key=key, until=found.retain_until_date.date().isoformat())

    async def remove(self, key: str, version: str) -> None:
        """Let a version go whose time is over. Raises `Problem` (`objects.locked`)."""
        await asyncio.to_thread(self._remove, key, version)

    def _remove(self, key: str, version: str) -> None:
        self._unlocked(key, version)
        self._client.remove_object(self._bucket, key, version_id=version)

    async def versions(self, prefix: str = "") -> list[Version]:
        """Every version of every name that begins so, in the order of names."""
        return await asyncio.to_thread(lambda: list(self._versions(prefix)))

    def _versions(self, prefix: str) -> Iterator[Version]:
        for found in self._client.list_objects(self._bucket, prefix=prefix, recursive=True, include_version=True):
            yield Version(str(found.object_name), str(found.version_id), bool(found.is_delete_marker))
