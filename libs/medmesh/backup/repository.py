"""Where backups lie: a folder of encrypted parts, each named by what it says, and one small file for each backup that names them.

    parts/ab/<sha256>.key …     see `medmesh.store.objects.encrypted`; what two backups have in common lies there once
    backups/<time>.json         the SHA-256 of the manifest, which is a part itself
    unfinished.jsonl            what an interrupted backup had copied

A part opens only with the holder's key; a part that was altered or exchanged does not open at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from medmesh.embedded import files
from medmesh.errors import Problem
from medmesh.security.keyring.file import FileKeys
from medmesh.store.objects.directory import DirectoryBlobs
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.envelope import Wrapping

LABEL = "backup"
PIECE = 8 * 2**20


@dataclass
class Manifest:
    """Everything a backup holds; lists of parts are SHA-256 in order."""

    at: str
    version: str
    log_size: int
    log_note: str
    revisions: dict[str, str]
    database: list[str] = field(default_factory=list)
    blobs: dict[str, list[str]] = field(default_factory=dict)
    public: dict[str, str] = field(default_factory=dict)

    def parts(self) -> Iterator[str]:
        """Every part, once."""
        yield from dict.fromkeys([*self.database, *(part for parts in self.blobs.values() for part in parts)])

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises `Problem` (`backup.unreadable`)."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            raise Problem("backup.unreadable", reason="not a manifest") from None


class Repository:
    """A folder of backups, opened with the holder's key. Calls block."""

    def __init__(self, folder: Path, holder: Path, suite: str = "intl-1") -> None:
        keys = FileKeys(holder)
        if not keys.versions(LABEL):
            raise Problem("backup.no_key", folder=holder)
        self.folder = folder
        self.store = EncryptedStore(DirectoryBlobs(folder / "parts"), Wrapping(keys, LABEL, suite))
        files.folder(folder / "backups")

    def put(self, data: bytes) -> str:
        """Keep a part; one that is there already costs nothing."""
        return self.store.put_now(data)

    def put_all(self, pieces: Iterable[bytes]) -> list[str]:
        """Keep a stream in parts."""
        return [self.put(piece) for piece in pieces]

    def part(self, sha256: str) -> bytes:
        """A part, verified. Raises `Problem`."""
        data = b"".join(self.store.open(sha256))
        if (found := hashlib.sha256(data).hexdigest()) != sha256:
            raise Problem("objects.digest", expected=sha256, found=found)
        return data

    def finish(self, manifest: Manifest) -> str:
        """Make it a backup; answers its name."""
        name = manifest.at.replace(":", "").replace("-", "")
        sha256 = self.put(json.dumps(asdict(manifest)).encode())
        files.write(self.folder / "backups" / f"{name}.json", json.dumps({"manifest": sha256}))
        return name

    def digest(self, name: str) -> str:
        """SHA-256 of a backup's manifest: everything in it follows from that."""
        return str(json.loads((self.folder / "backups" / f"{name}.json").read_bytes())["manifest"])

    def names(self) -> list[str]:
        """Backups, the newest last."""
        return sorted(path.stem for path in (self.folder / "backups").glob("*.json"))

    def manifest(self, name: str = "") -> Manifest:
        """Of one backup, or of the newest. Raises `Problem`."""
        names = self.names()
        if not names or (name and name not in names):
            raise Problem("backup.none", name=name or "?", folder=self.folder)
        try:
            sha256 = json.loads((self.folder / "backups" / f"{name or names[-1]}.json").read_bytes())["manifest"]
        except (ValueError, KeyError, TypeError):
            raise Problem("backup.unreadable", reason="its file under backups/") from None
        return Manifest.parse(self.part(sha256))
