"""The cold tier of the node's archive: where it is, as `edge.json` says, and the loop that moves objects there and back."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from sqlite3 import Connection
from threading import Lock
from typing import TYPE_CHECKING

from medmesh.archive import records
from medmesh.archive.records import Growing
from medmesh.archive.tables import open_archive, transaction
from medmesh.archive.tiers import Mover, Thresholds
from medmesh.contracts.message import new_id
from medmesh.errors import Problem
from medmesh.store.objects.blobs import Blobs
from medmesh.store.objects.tiered import Cold
from medmesh_edge.settings import ColdTier, Settings

if TYPE_CHECKING:
    from medmesh_edge.archiving import Archive

DAY = 86_400_000  # ms


def cold(settings: Settings) -> Cold:
    """The cold tier. Raises `Problem` (`archive.cold_away`) where none is named."""
    if settings.cold is None:
        raise Problem("archive.cold_away", reason="edge.json names none")
    return _opened(settings.cold)


@lru_cache(4)
def _opened(settings: ColdTier) -> Cold:
    if settings.folder is not None:
        return Cold.folder(settings.folder)

    def bucket() -> Blobs:
        from medmesh.store.objects.s3 import S3Blobs

        assert settings.s3_url is not None
        assert settings.s3_credentials is not None
        return S3Blobs.connected(settings.s3_url, settings.s3_bucket, settings.s3_credentials)

    return Cold(bucket)


def thresholds(settings: ColdTier) -> Thresholds:
    """As the archive counts: milliseconds and bytes."""
    most = None if settings.most_hot_gib is None else int(settings.most_hot_gib * 2**30)
    return Thresholds(int(settings.after_days * DAY), settings.least_kib * 2**10, most)


class Tiering:
    """Of a running node; what is moved without a pause is one audit record, which grows with it (`medmesh.archive.records`)."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._mover: Mover | None = None
        self._connection: Connection | None = None
        self._record: Growing | None = None
        self._stepping = Lock()

    async def step(self) -> bool:
        """Move an object by a state; whether there was one. Raises `Problem` (`archive.cold_*`)."""
        site = self._archive.site
        if site.settings.cold is None or not site.layout.archive.exists():
            return False
        moved = False
        try:
            moved = await asyncio.to_thread(self._step, site.settings.cold)
        finally:
            if not moved:
                await self._put_on_record()
        return moved

    def close(self) -> None:
        """Give up the archive, once the object that is being moved by a thread has arrived."""
        with self._stepping:
            if self._connection is not None:
                self._connection.close()

    def _step(self, settings: ColdTier) -> bool:
        with self._stepping:
            if self._mover is None:
                self._connection = open_archive(self._archive.site.layout.archive)
                self._mover = Mover(self._connection, self._archive.objects, thresholds(settings), self._told)
            return self._mover.step()

    def _told(self, connection: Connection, word: str, size: int) -> None:
        from medmesh_edge.archiving import record_body

        if self._record is None:
            self._record = Growing(new_id(), record_body("archive.move", "U", (), {"cooled": 0, "recalled": 0, "bytes": 0}))
        records.grow(connection, self._record, {word: 1, "bytes": size})

    async def _put_on_record(self) -> None:
        record, self._record = self._record, None
        if record is None:
            return

        def close(connection: Connection) -> None:
            with transaction(connection):
                records.close(connection, record, {})

        await self._archive.work(close)
        await self._archive.record(record.id)
