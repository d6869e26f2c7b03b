"""Objects in S3 through the minio SDK (the only module that imports it); its calls block, so they run in threads."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import S3Error

from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem
from medmesh.security.keys import read_secret
from medmesh.store.objects.blobs import Blob, Source
from medmesh.store.objects.port import CHUNK, file_digest

_GONE = ("NoSuchKey", "NoSuchObject", "NotFound")


def connect(url: str, access_key: str, secret_key: str, *, connections: int, retries: urllib3.Retry) -> tuple[urllib3.PoolManager, Minio]:
    """A client of an S3 service, and its connections."""
    where = urlsplit(url)
    pool = urllib3.PoolManager(maxsize=connections, timeout=urllib3.Timeout(connect=5, read=60), retries=retries)
    secure = where.scheme == "https"
    return pool, Minio(where.netloc, access_key=access_key, secret_key=secret_key, secure=secure, region="us-east-1", http_client=pool)


# S3 says "InternalError, please try again" (500) and "SlowDown" (503) when it is busy; every request of ours may be made twice.
_RETRIES = urllib3.Retry(total=4, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504), allowed_methods=None, raise_on_status=False)


class S3Blobs:
    """See `medmesh.store.objects.blobs.Blobs`: one bucket."""

    def __init__(self, url: str, bucket: str, *, access_key: str, secret_key: str) -> None:
        self._pool, self.client = connect(url, access_key, secret_key, connections=8, retries=_RETRIES)
        self.bucket = bucket

    @classmethod
    async def open(cls, url: str, bucket: str, credentials: Path) -> Self:
        """Connect with the keys in a file 0600, and make the bucket when it is not there."""
        return await asyncio.to_thread(cls.connected, url, bucket, credentials)

    @classmethod
    def connected(cls, url: str, bucket: str, credentials: Path) -> Self:
        """The same for code in threads."""
        pair = json.loads(read_secret(credentials))
        made = cls(url, bucket, access_key=pair["access_key"], secret_key=pair["secret_key"])
        made._ensure()
        return made

    def _ensure(self) -> None:
        try:
            if not self.client.bucket_exists(self.bucket):
                self.client.make_bucket(self.bucket)
        except S3Error as error:
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise

    def get(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes] | None:
        try:
            answer = self.client.get_object(self.bucket, name, offset=start, length=0 if end is None else end - start)
        except S3Error as error:
            if error.code in _GONE:
                return None
            if error.code == "InvalidRange":
                return iter(())
            raise
        return _pieces(answer)

    def put(self, name: str, source: Source, length: int) -> None:
        self.client.put_object(self.bucket, name, source, length, part_size=CHUNK)

    def delete(self, name: str) -> None:
        self.client.remove_object(self.bucket, name)

    def names(self, prefix: str = "") -> Iterator[Blob]:
        for found in self.client.list_objects(self.bucket, prefix=prefix, recursive=True):
            modified = found.last_modified.timestamp() if found.last_modified else 0.0
            yield Blob(str(found.object_name), int(found.size or 0), modified)

    def ready(self) -> None:
        self.client.bucket_exists(self.bucket)

    def close(self) -> None:
        self._pool.clear()


def _pieces(answer: Any) -> Iterator[bytes]:
    try:
        while piece := answer.read(CHUNK):
            yield piece
    finally:
        answer.close()
        answer.release_conn()


class S3Store:
    """See `medmesh.store.objects.port.ObjectStore`: plain bytes, for scratch where services share no folder."""

    def __init__(self, blobs: S3Blobs) -> None:
        self._client, self._bucket, self._blobs = blobs.client, blobs.bucket, blobs

    @classmethod
    async def open(cls, url: str, bucket: str, credentials: Path) -> S3Store:
        """Connect with the keys in a file 0600, and make the bucket when it is not there."""
        return cls(await S3Blobs.open(url, bucket, credentials))

    def close(self) -> None:
        """Close idle connections."""
        self._blobs.close()

    @staticmethod
    def _key(sha256: str) -> str:
        return f"{sha256[:2]}/{sha256}"

    async def size(self, sha256: str) -> int | None:
        def stat() -> int | None:
            try:
                return int(self._client.stat_object(self._bucket, self._key(sha256)).size or 0)
            except S3Error as error:
                if error.code in _GONE:
                    return None
                raise

        return await asyncio.to_thread(stat)

    async def read(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        size = await self.size(sha256)
        if size is None:
            raise Problem("objects.missing", sha256=sha256)
        end = size if end is None else min(end, size)
        if start >= end:
            return

        def begin() -> Any:
            return self._client.get_object(self._bucket, self._key(sha256), offset=start, length=end - start)

        answer = await asyncio.to_thread(begin)
        try:
            while piece := await asyncio.to_thread(answer.read, CHUNK):
                yield piece
        finally:
            answer.close()
            answer.release_conn()

    async def put_file(self, path: Path, sha256: str) -> ObjectRef:
        found, size = await asyncio.to_thread(file_digest, path)
        if found != sha256:
            raise Problem("objects.digest", expected=sha256, found=found)

        def send() -> None:
            with path.open("rb") as file:
                self._client.put_object(self._bucket, self._key(sha256), file, size, part_size=CHUNK)

        if await self.size(sha256) is None:
            await asyncio.to_thread(send)
        return ObjectRef(sha256=sha256, bytes=size)

    async def put(self, data: bytes, media_type: str = "application/octet-stream") -> ObjectRef:
        sha256 = hashlib.sha256(data).hexdigest()

        def send() -> None:
            self._client.put_object(self._bucket, self._key(sha256), io.BytesIO(data), len(data), content_type=media_type)

        if await self.size(sha256) is None:
            await asyncio.to_thread(send)
        return ObjectRef(sha256=sha256, bytes=len(data), media_type=media_type)

    async def delete(self, sha256: str) -> None:
        await asyncio.to_thread(self._client.remove_object, self._bucket, self._key(sha256))

    async def sweep(self, before: float, needed: Collection[str]) -> int:
        def sweep() -> int:
            stale = [found.name for found in self._blobs.names() if found.modified < before and found.name.rpartition("/")[2] not in needed]
            for name in stale:
                self._blobs.delete(name)
            return len(stale)

        return await asyncio.to_thread(sweep)

    async def ready(self) -> None:
        await asyncio.to_thread(self._client.bucket_exists, self._bucket)
