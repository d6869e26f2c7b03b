"""What the log itself answers: checkpoints, tiles, entry bundles, proofs, coverage."""

from __future__ import annotations

import base64
from typing import Any

from sqlalchemy import select

from medmesh.contracts.audit import Evidence
from medmesh.errors import Problem
from medmesh.ledger import proof
from medmesh.ledger import tiles as tile
from medmesh.ledger.leaf import body_document
from medmesh.ledger.tree import consistency_proof, inclusion_proof
from medmesh.store.unit import UnitOfWork
from medmesh_audit.tables import checkpoints, emitters, entries, tiles
from medmesh_audit.witnesses import Shown


async def checkpoint(uow: UnitOfWork[Any], size: int | None = None) -> Any:
    """The newest checkpoint row, or that of a size. Raises `Problem`."""
    wanted = select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1)
    row = await uow.first(wanted if size is None else wanted.where(checkpoints.c.size == size))
    if row is None:
        raise Problem("request.not_found", kind="checkpoint", id=str(size or "newest"))
    return row


async def tile_bytes(uow: UnitOfWork[Any], level: int, number: int, width: int) -> bytes:
    """A tile's hashes. Raises `Problem` when the log is not that large."""
    found = (await uow.execute(select(tiles.c.hashes).where(tiles.c.level == level, tiles.c.number == number))).scalar_one_or_none() or b""
    if len(found) < width * 32:
        raise Problem("request.not_found", kind="tile", id=tile.path(level, number, width))
    return bytes(found[: width * 32])


async def entry_bundle(uow: UnitOfWork[Any], number: int, width: int) -> bytes:
    """The leaves of a bundle."""
    first = number * tile.WIDTH
    rows = await uow.all(select(entries.c.leaf).where(entries.c.seq >= first, entries.c.seq < first + width).order_by(entries.c.seq))
    if len(rows) != width:
        raise Problem("request.not_found", kind="entries", id=tile.path("entries", number, width))
    return tile.bundle([row.leaf for row in rows])


async def _node(uow: UnitOfWork[Any], size: int) -> Any:
    """Subtree hashes of the tree of `size` leaves, reading tiles as they are needed (synchronously from a cache)."""
    levels = list(tile.shape(size))
    rows = await uow.all(select(tiles.c.level, tiles.c.number, tiles.c.hashes)) if len(levels) < 5_000 else []
    cache = {(row.level, row.number): row.hashes for row in rows}
    return tile.nodes(lambda level, number, width: bytes(cache[level, number][: width * 32]), size)


async def evidence(uow: UnitOfWork[Any], row: Any, newest: Shown) -> Evidence:
    """Everything needed to verify one row of `entries` offline: leaf, salt, body and `.tlog-proof` under the checkpoint `newest`."""
    path = inclusion_proof(await _node(uow, newest.size), row.seq, newest.size)
    opened = body_document(row.salt, row.body)
    made = proof.encode(row.seq, path, newest.note)
    return Evidence(seq=row.seq, leaf=base64.b64encode(row.leaf).decode(), **opened, proof=made, witnesses=newest.state)


async def consistency(uow: UnitOfWork[Any], old: int, new: int) -> list[str]:
    """Proof that nothing before `old` changed."""
    return [base64.b64encode(p).decode() for p in consistency_proof(await _node(uow, new), old, new)]


async def log_file(uow: UnitOfWork[Any], path: str) -> bytes:
    """`tile/<level>/<number>` or `tile/entries/<number>`, as C2SP tlog-tiles names them. Raises `Problem`."""
    kind, _, rest = path.partition("/")
    level, *parts = rest.split("/")
    try:
        number, width = tile.parse(parts)
        chosen = int(level) if level != "entries" else -1
        if kind != "tile" or not -1 <= chosen < 8:
            raise ValueError
    except ValueError:
        raise Problem("request.not_found", kind="file of the log", id=path) from None
    return await entry_bundle(uow, number, width) if chosen < 0 else await tile_bytes(uow, chosen, number, width)


async def coverage(uow: UnitOfWork[Any]) -> list[dict[str, Any]]:
    """Each emitter, how many records it handed in and when the last."""
    rows = await uow.all(select(emitters).order_by(emitters.c.emitter))
    return [{"emitter": row.emitter, "records": row.n, "last": row.last_at.isoformat()} for row in rows]
