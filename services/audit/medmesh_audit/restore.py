"""The log read back from the sealed store alone, when the database is gone: a folder that `medmesh audit verify` checks, and from there
into an empty database."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import Table

from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger import tiles as tile
from medmesh.ledger.copies import Folder
from medmesh.ledger.edge import Edge
from medmesh.ledger.leaf import decode
from medmesh.ledger.second import PREFIX
from medmesh.ledger.tree import leaf_hash
from medmesh.store.database import Database
from medmesh.store.objects.sealed import SealedStore
from medmesh.store.session import session
from medmesh_audit.domain import facts, parts_of
from medmesh_audit.sealing import HEADERS, Sealer, bundle_key
from medmesh_audit.tables import checkpoints, emitters, entries, tiles
from medmesh_audit.tables import facts as facts_table


async def restore(store: SealedStore, vkey: str, folder: Path) -> int:
    """Write a copy of the log up to its newest sealed checkpoint; answers its size. Raises `Problem` when nothing was sealed.

    Versions are taken from the sealed checkpoints; nothing here is believed: the copy is verified like any other.
    """
    newest, text, segments = await _manifest(store, vkey)
    lines: list[bytes] = []
    for number in range((newest.size + tile.WIDTH - 1) // tile.WIDTH):
        width = min(tile.WIDTH, newest.size - number * tile.WIDTH)
        key = bundle_key(number, width)
        headers = Sealer.key(HEADERS, tile.WIDTH, number)  # what is left of one whose bodies were pruned
        if headers in segments:
            key = headers
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
    bodies = (json.dumps({name: entry[name] for name in ("seq", "salt", "body")}) for entry in entries if "body" in entry)
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


# --- into an empty database -----------------------------------------------------------------------------------------


async def fill(database: Database, folder: Path) -> int:
    """Put a verified copy into an empty schema, all of it or nothing; answers how many entries. Raises `Problem` (`audit.not_empty`).

    The sequencer that starts on it computes the tree anew and goes on where the log ended, with the same key and the same counters.
    """
    text = (folder / "checkpoint").read_text(encoding="utf-8")
    signed = note.parse_checkpoint(note.split(text)[0])
    lines = iter(Folder(folder).bodies(0, signed.size) or ())
    body = next(lines, None)
    edge, last = Edge(), {"audit": (0, "")}
    async with session(database) as opened:
        await opened.execute("BEGIN")
        await opened.execute("INSERT INTO state (one, size) VALUES (1, 0) ON CONFLICT DO NOTHING")
        if await opened.fetch("SELECT 1 FROM entries LIMIT 1") or await opened.fetch("SELECT 1 FROM state WHERE size > 0 OR term > 0"):
            raise Problem("audit.not_empty")
        for number in range((signed.size + tile.WIDTH - 1) // tile.WIDTH):
            leaves = Folder(folder).entries(number, min(tile.WIDTH, signed.size - number * tile.WIDTH))
            rows: dict[Table, list[dict[str, Any]]] = {entries: [], facts_table: []}
            for place, leaf in enumerate(leaves):
                seq, header = number * tile.WIDTH + place, decode(leaf)
                salt, content = b"", b""
                if body is not None and body[0] == seq:
                    _, salt, content = body
                    body = next(lines, None)
                parts = parts_of(content) if content else None
                at = datetime.fromisoformat(parts.tr if parts else f"{header.hour}:00:00Z")
                id_ = parts.id if parts else f"pruned-{seq}"
                last[header.emitter] = (header.n, id_)
                row = {"seq": seq, "id": id_, "emitter": header.emitter, "n": header.n, "leaf": leaf, "hash": leaf_hash(leaf)}
                rows[entries].append({**row, "salt": salt, "body": content, "at": at})
                if parts:
                    rows[facts_table].append(facts(seq, parts))
            if full := edge.add([row["hash"] for row in rows[entries]]):
                rows[tiles] = [one._asdict() for one in full]
            now = datetime.now(UTC)
            names = {row["emitter"] for row in rows[entries]}
            rows[emitters] = [{"emitter": name, "n": last[name][0], "last_at": now} for name in names]
            if edge.size == signed.size:
                rows[checkpoints] = [{"size": signed.size, "root": signed.root, "note": text, "at": now}]
            moved = "UPDATE state SET size = $1 WHERE size = $2"
            await opened.write((moved, (edge.size, number * tile.WIDTH)), {table: some for table, some in rows.items() if some}, emitters)
        # The service's own records go on from its last one that is in the log.
        await opened.execute("UPDATE audit_counter SET n = $1, last_id = $2", *last["audit"])
        await opened.execute("COMMIT")
    return edge.size
