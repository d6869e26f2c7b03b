"""A service's stores from its settings: what is kept is always encrypted, scratch is plain and short-lived."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from medmesh.errors import Problem
from medmesh.security.keyring.port import open_keys
from medmesh.service.settings import ObjectSettings
from medmesh.store.objects.blobs import Blobs
from medmesh.store.objects.directory import DirectoryBlobs, DirectoryStore
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.envelope import Wrapping
from medmesh.store.objects.port import ObjectStore, Scratch


@dataclass(frozen=True, slots=True)
class Stores:
    """`kept` for data sets, models and checkpoints; `scratch` for a round's updates and temporary artefacts."""

    kept: ObjectStore
    scratch: Scratch

    async def holding(self, sha256: str) -> ObjectStore:
        """The store that has an object. Raises `Problem` (`objects.missing`)."""
        for store in (self.scratch, self.kept):
            if await store.size(sha256) is not None:
                return store
        raise Problem("objects.missing", sha256=sha256)


LABEL = "objects"
"""Of the key that wraps those of kept objects."""


def kept(blobs: Blobs, settings: ObjectSettings) -> EncryptedStore:
    """The store of kept objects over where they lie. Raises `Problem` when no keys are named."""
    if not settings.keys:
        raise Problem("settings.invalid", file="objects", reason="give keys: a folder, or unix: and the socket of a keeper")
    return EncryptedStore(blobs, Wrapping(open_keys(settings.keys), LABEL, settings.suite, frozenset(settings.suites)))


@asynccontextmanager
async def stores(settings: ObjectSettings) -> AsyncIterator[Stores]:
    """Open both; S3 where a URL is set, folders otherwise."""
    if settings.s3_url and settings.s3_credentials:
        from medmesh.store.objects.s3 import S3Blobs, S3Store

        opened = kept(await S3Blobs.open(settings.s3_url, "kept", settings.s3_credentials), settings)
        shared = None if settings.spool else await S3Store.open(settings.s3_url, "scratch", settings.s3_credentials)
        try:
            yield Stores(opened, shared or DirectoryStore(settings.spool, durable=False))  # type: ignore[arg-type]
        finally:
            opened.close()
            if shared:
                shared.close()
    elif settings.folder:
        yield Stores(
            kept(DirectoryBlobs(settings.folder / "kept"), settings),
            DirectoryStore(settings.spool or settings.folder / "scratch", durable=False),
        )
    else:
        raise Problem("settings.invalid", file="objects", reason="give s3_url with s3_credentials, or folder")
