"""Making a backup while the platform works.

The database is dumped in one snapshot of all schemas. Kept objects never change; they are copied before the dump (some are erased once
they were used) and again after it (some are put meanwhile), so that what the snapshot names is there. They are copied as they lie,
encrypted under the platform's own key, which is not in the backup.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from medmesh.backup.repository import PIECE, Manifest, Repository
from medmesh.embedded import binaries, files
from medmesh.errors import Problem
from medmesh.security.keys import write_secret
from medmesh.store.objects.blobs import Blobs

Progress = Callable[[str, int, int], None]
"""(step, done, of how many); 0 when nobody knows."""
PUBLIC = ("trust.json", "ca.pem", "ports.json")
WITHOUT_ROWS = ("audit.seals",)
"""Which versions lie in the sealed store: another copy of the log, in another place, which a backup is not. A restored log seals anew."""


def create(folder: Path, database: str, password: str, blobs: Blobs, repository: Repository, progress: Progress) -> str:
    """Back up the platform of the data folder `folder`; answers the backup's name. Interrupted, it goes on. Raises `Problem`."""
    checkpoint, revisions = _before(database, password)
    journal = _Journal(repository.folder / "unfinished.jsonl")
    copied = _copy(blobs, repository, journal, progress)
    manifest = Manifest(
        at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        version=version("medmesh"),
        log_size=checkpoint[0],
        log_note=checkpoint[1],
        revisions=revisions,
        database=repository.put_all(_dump(database, password, progress)),
        public={name: (folder / name).read_text(encoding="utf-8") for name in PUBLIC if (folder / name).exists()},
    )
    manifest.blobs = {**copied, **_copy(blobs, repository, journal, progress)}
    name = repository.finish(manifest)
    journal.done()
    return name


def _copy(blobs: Blobs, repository: Repository, journal: _Journal, progress: Progress) -> dict[str, list[str]]:
    there = sorted(blobs.names())
    copied: dict[str, list[str]] = {}
    for done, blob in enumerate(there, start=1):
        # Bodies never change. Headers do when keys are turned over, and they are small.
        key = f"{blob.name} {blob.bytes} {blob.modified}"
        parts = journal.known.get(key)
        if parts is None:
            pieces = blobs.get(blob.name)
            if pieces is None:  # erased since it was listed
                continue
            parts = repository.put_all(_pieces(pieces))
            journal.note(key, parts)
        copied[blob.name] = parts
        progress("objects", done, len(there))
    return copied


def _pieces(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Of one size, so that the same blob gives the same parts."""
    rest = b""
    for piece in pieces:
        rest += piece
        while len(rest) >= PIECE:
            yield rest[:PIECE]
            rest = rest[PIECE:]
    if rest:
        yield rest


def _dump(database: str, password: str, progress: Progress) -> Iterator[bytes]:
    without = [f"--exclude-table-data={table}" for table in WITHOUT_ROWS]
    with program("pg_dump", database, password, "--format=custom", "--compress=none", *without) as process:
        assert process.stdout is not None
        done = 0
        while piece := process.stdout.read(PIECE):
            done += len(piece)
            progress("database", done, 0)
            yield piece


@contextmanager
def program(name: str, database: str, password: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of PostgreSQL on a database; its password is in a file, where neither arguments nor environment tell it.

    Raises `Problem` (`backup.failed`) when it did not end well.
    """
    where = urlsplit(database)
    with tempfile.TemporaryDirectory(prefix="medmesh-backup-") as private:
        passfile = Path(private, "pgpass")
        escaped = password.replace("\\", "\\\\").replace(":", "\\:")
        write_secret(passfile, f"*:*:*:*:{escaped}\n".encode())
        argv = [str(binaries.postgres_installation() / "bin" / name), "--no-password", f"--dbname={where.geturl()}", *options]
        environment = {"PGPASSFILE": str(passfile), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment)
            with process:
                try:
                    yield process
                except BrokenPipeError:
                    pass
                except BaseException:
                    process.kill()
                    raise
            if process.returncode:
                errors.seek(0)
                reason = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise Problem("backup.failed", program=name, reason=reason or str(process.returncode))


def query(database: str, password: str, statement: str) -> str:
    """What psql answers to one statement, unaligned. Raises `Problem`."""
    with program("psql", database, password, "--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "--set=ON_ERROR_STOP=1") as psql:
        assert psql.stdin is not None
        assert psql.stdout is not None
        psql.stdin.write(statement.encode())
        psql.stdin.close()
        return psql.stdout.read().decode()


def _before(database: str, password: str) -> tuple[tuple[int, str], dict[str, str]]:
    """The newest checkpoint of the log, and how far each schema was migrated."""
    found = query(
        database,
        password,
        "SELECT json_build_object('size', size, 'note', convert_to(note, 'UTF8')) FROM audit.checkpoints ORDER BY size DESC LIMIT 1;",
    ).strip()
    size, note = 0, ""
    if found:
        document = json.loads(found)
        size, note = int(document["size"]), bytes.fromhex(document["note"].removeprefix("\\x")).decode()
    tables = query(database, password, "SELECT schemaname FROM pg_tables WHERE tablename = 'alembic_version' ORDER BY 1;").split()
    wanted = "".join(f"SELECT '{name} ' || version_num FROM \"{name}\".alembic_version;\n" for name in tables)  # noqa: S608 - names of schemas
    return (size, note), dict(line.split() for line in query(database, password, wanted).splitlines())


class _Journal:
    """What was copied so far, for whoever goes on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[str, list[str]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                found = json.loads(line)
                self.known[found["blob"]] = found["parts"]
            except (ValueError, KeyError):
                break  # the line it was killed at
        files.write(path, "".join(f"{json.dumps({'blob': blob, 'parts': parts})}\n" for blob, parts in self.known.items()))

    def note(self, blob: str, parts: list[str]) -> None:
        """After its parts were kept."""
        self.known[blob] = parts
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"blob": blob, "parts": parts}) + "\n")

    def done(self) -> None:
        """The backup is whole."""
        self._path.unlink(missing_ok=True)
