"""The log read back from the sealed store alone, when the database is gone: a folder that `medmesh audit verify` checks."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger import tiles as tile
from medmesh.ledger.edge import Edge
from medmesh.ledger.second import PREFIX
from medmesh.ledger.tree import leaf_hash
from medmesh.store.objects.sealed import SealedStore
from medmesh_audit.sealing import bundle_key


async def restore(store: SealedStore, vkey: str, folder: Path) -> int:
    """Write a copy of the log up to its newest sealed checkpoint; answers its size. Raises `Problem` when nothing was sealed.

    Versions are taken from the sealed checkpoints; nothing here is believed: the copy is verified like any other.
    """
    newest, text, segments = await _manifest(store, vkey)
    lines: list[bytes] = []
    for number in range((newest.size + tile.WIDTH - 1) // tile.WIDTH):
        width = min(tile.WIDTH, newest.size - number * tile.WIDTH)
        key = bundle_key(number, width)
        if key not in segments:
            raise Problem("objects.missing", sha256=key)
        lines += (await store.read(key, segments[key])).splitlines()
    entries = [json.loads(line) for line in lines]
    leaves = [base64.b64decode(entry["leaf"]) for entry in entries]
    _tiles(folder, leaves, Edge(), leaf_hash)
    for number in range((len(leaves) + tile.WIDTH - 1) // tile.WIDTH):
        part = leaves[number * tile.WIDTH : (number + 1) * tile.WIDTH]
        _put(folder / tile.path("entries", number, len(part)), tile.bundle(part))
    await _second(store, segments, newest.size, leaves, folder)
    bodies = (json.dumps({name: entry[name] for name in ("seq", "salt", "body")}) for entry in entries)
    _put(folder / "bodies.jsonl", "".join(f"{line}\n" for line in bodies).encode())
    _put(folder / "checkpoint", text.encode())
    return newest.size


async def _manifest(store: SealedStore, vkey: str) -> tuple[note.Checkpoint, str, dict[str, str]]:
    """The newest checkpoint under our key, its note, and the first version of each segment."""
    newest, text, segments = note.Checkpoint("", 0, b""), "", dict[str, str]()
    for version in await store.versions("checkpoint/"):
        if version.marker:
            continue
        try:
            content = json.loads(await store.read(version.key, version.id))
            found = note.parse_checkpoint(note.verify(content["note"], vkey))
            some = {str(key): str(id_) for key, id_ in content["segments"].items()}
        except (Problem, ValueError, KeyError, TypeError, AttributeError):
            continue
        segments = {**some, **segments}
        if found.size > newest.size:
            newest, text = found, content["note"]
    if not newest.size:
        raise Problem("ledger.no_copy", folder="the sealed store")
    return newest, text, segments


async def _second(store: SealedStore, segments: dict[str, str], size: int, leaves: list[bytes], folder: Path) -> None:
    """The second tree as it was sealed last, where there is one and its extra is installed."""
    notes = sorted(key for key in segments if key.startswith(f"{PREFIX}/checkpoint/") and int(key.rpartition("/")[2]) <= size)
    if not notes or find_spec("gmssl_pyx") is None:
        return
    from medmesh.ledger import sm

    covered = leaves[: int(notes[-1].rpartition("/")[2])]
    _tiles(folder / PREFIX, covered, sm.edge(), sm.leaf_hash)
    _put(folder / PREFIX / "checkpoint", await store.read(notes[-1], segments[notes[-1]]))


def _tiles(folder: Path, leaves: list[bytes], edge: Edge, hashed: Callable[[bytes], bytes]) -> None:
    """Full tiles as they were filled, and what the right edge is left with."""
    for full in edge.add([hashed(leaf) for leaf in leaves]):
        _put(folder / tile.path(full.level, full.number), full.hashes)
    for level, number, hashes in edge.partial():
        _put(folder / tile.path(level, number, len(hashes) // tile.HASH), hashes)


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
