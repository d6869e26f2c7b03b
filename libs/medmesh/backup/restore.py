"""From a backup to a data folder on which `medmesh up` starts: verified first, then put into empty servers, or not at all.

The keys of the platform are not in a backup: each domain's own holder brings them before (`medmesh vault import`). What the bus held is
sent again: every row of the outboxes that is still kept; whoever handled it before the snapshot knows it.
"""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

from medmesh.backup.create import Progress, program, query
from medmesh.backup.repository import Manifest, Repository
from medmesh.embedded import files, maintenance, material, servers
from medmesh.embedded.layout import Together
from medmesh.embedded.ports import HOST
from medmesh.embedded.supervisor import Supervisor
from medmesh.embedded.vault import missing
from medmesh.errors import Problem
from medmesh.security.keys import read_secret
from medmesh.store import migrate
from medmesh.store.objects.s3 import S3Blobs


def verify(repository: Repository, name: str, progress: Progress) -> Manifest:
    """Read every part. Raises `Problem` at the first that is not what it was."""
    manifest = repository.manifest(name)
    parts = list(manifest.parts())
    for done, part in enumerate(parts, start=1):
        repository.part(part)
        progress("parts", done, len(parts))
    return manifest


async def restore(repository: Repository, name: str, folder: Path, progress: Progress) -> Manifest:
    """Fill `folder`, in which nothing but imported keys may lie. Raises `Problem`; then throw the folder away."""
    if absent := missing(folder):
        raise Problem("backup.keys_missing", domains=", ".join(absent))
    if any(path.name not in ("secrets", maintenance.FOLDER) for path in folder.iterdir()):
        raise Problem("backup.not_empty", folder=folder)
    manifest = await asyncio.to_thread(verify, repository, name, progress)
    for public, content in manifest.public.items():
        files.write(folder / public, content, 0o644 if public != "ports.json" else 0o600)
    async with Supervisor(folder) as supervisor:
        prepared = await asyncio.to_thread(material.prepare, Together(folder), lambda _: (HOST, "localhost"))
        started = await servers.start(supervisor, nats=False)
        assert started.postgres is not None
        assert started.seaweedfs is not None
        database, password = started.postgres.address, read_secret(started.postgres.password).decode().strip()
        schemas = [migrate.Schema(spec.name, spec.metadata, spec.migrations) for spec in prepared.specs.values()]
        for schema in schemas:
            if manifest.revisions.get(schema.service, "") > (newest := migrate.newest(schema)):
                raise Problem("backup.newer", service=schema.service, theirs=manifest.revisions[schema.service], ours=newest)
        await migrate.roles(database.replace("@", f":{password}@", 1), schemas, prepared.passwords)
        await asyncio.to_thread(_database, repository, manifest, database, password, progress)
        blobs = await S3Blobs.open(started.seaweedfs.url, "kept", started.seaweedfs.credentials)
        await asyncio.to_thread(_objects, repository, manifest, blobs, progress)
        blobs.close()
    return manifest


def _database(repository: Repository, manifest: Manifest, database: str, password: str, progress: Progress) -> None:
    with program("pg_restore", database, password, "--exit-on-error", "--single-transaction") as process:
        assert process.stdin is not None
        for done, part in enumerate(manifest.database, start=1):
            process.stdin.write(repository.part(part))
            progress("database", done, len(manifest.database))
        process.stdin.close()
    tables = query(database, password, "SELECT schemaname FROM pg_tables WHERE tablename = 'outbox' ORDER BY 1;").split()
    again = (f'UPDATE "{name}".outbox SET sent_at = NULL WHERE sent_at IS NOT NULL;\n' for name in tables)  # noqa: S608 - names of schemas
    query(database, password, "".join(again))


def _objects(repository: Repository, manifest: Manifest, blobs: S3Blobs, progress: Progress) -> None:
    # Headers last: a body nobody points to does not count.
    ordered = sorted(manifest.blobs.items(), key=lambda item: item[0].endswith(".key"))
    for done, (name, parts) in enumerate(ordered, start=1):
        data = b"".join(repository.part(part) for part in parts) if len(parts) < 2 else None
        if data is not None:
            blobs.put(name, io.BytesIO(data), len(data))
        else:
            blobs.put(name, _Joined(repository, parts), sum(len(repository.part(part)) for part in parts))
        progress("objects", done, len(ordered))


class _Joined:
    """Parts one after the other, without holding them all."""

    def __init__(self, repository: Repository, parts: list[str]) -> None:
        self._parts = iter(parts)
        self._repository = repository
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        """See `Source`."""
        while size < 0 or len(self._rest) < size:
            part = next(self._parts, None)
            if part is None:
                break
            self._rest += self._repository.part(part)
        found = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(found) :]
        return found


def told(manifest: Manifest) -> str:
    """For people and programs."""
    shown = {"at": manifest.at, "version": manifest.version, "log_size": manifest.log_size, "objects": len(manifest.blobs)}
    return json.dumps(shown)
