"""The file of an export: a ZIP that is the same whoever builds it and whenever."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from medmesh.auditing import formats
from medmesh.auditing.completeness import OTHERS, STATEMENT, statement, undecided
from medmesh.auditing.package import BODIES, INSTRUCTIONS, counters, headers, numbers
from medmesh.canonical import canonical
from medmesh.contracts.message import ObjectRef
from medmesh.ledger import tiles
from medmesh.ledger.leaf import body_document
from medmesh.ledger.tree import inclusion_proof
from medmesh.store.objects.port import file_digest
from medmesh_audit import queries
from medmesh_audit.exports import restricted
from medmesh_audit.ports import Ports
from medmesh_audit.tables import entries, exports, facts
from medmesh_audit.witnesses import lines

PAGE = 1_000
_EPOCH = (1980, 1, 1, 0, 0, 0)


async def build(ports: Ports, row: Any) -> tuple[ObjectRef, int]:
    """The kept object of an approved export, and how many records it holds."""
    folder = ports.settings.state / "exports" / row.export
    shutil.rmtree(folder, ignore_errors=True)
    content = folder / "content"
    content.mkdir(parents=True)
    try:
        checkpoint = await _log(ports, row.size, content)
        records = await _records(ports, row, content)
        if row.complete:
            await _others(ports, row, content)
        await asyncio.to_thread(_about, ports, row, content, checkpoint)
        file = folder / "export.zip"
        await asyncio.to_thread(_pack, content, file)
        sha256, _ = await asyncio.to_thread(file_digest, file)
        made = await ports.stores.kept.put_file(file, sha256)
        return made.model_copy(update={"media_type": "application/zip"}), records
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _log(ports: Ports, size: int, content: Path) -> str:
    """Checkpoint, tiles and entry headers of the log of `size` entries: they prove that nothing is missing in between."""
    async with ports.runtime.unit() as uow:
        checkpoint = str((await queries.checkpoint(uow, size)).note) + await lines(uow, size)
    wanted = [tiles.path(*place) for place in tiles.shape(size)]
    full, rest = divmod(size, tiles.WIDTH)
    wanted += [tiles.path("entries", number) for number in range(full)] + ([tiles.path("entries", full, rest)] if rest else [])
    for path in wanted:
        async with ports.runtime.unit() as uow:
            data = await queries.log_file(uow, path)
        target = content / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (content / "checkpoint").write_text(checkpoint, encoding="utf-8")
    return checkpoint


async def _records(ports: Ports, row: Any, content: Path) -> int:
    """Every record that fits, with its proof and in the format that was asked for."""
    read = lru_cache(maxsize=512)(lambda level, number, width: (content / tiles.path(level, number, width)).read_bytes())
    node = tiles.nodes(read, row.size)
    after, count = -1, 0
    (content / BODIES).touch()
    formats.write(content, row.format, [])
    while True:
        wanted = select(entries).join(facts, facts.c.seq == entries.c.seq).where(facts.c.seq > after, facts.c.seq < row.size)
        async with ports.runtime.unit() as uow:
            found = await uow.all(restricted(wanted, row).order_by(facts.c.seq).limit(PAGE))
        if not found:
            return count

        def write(found: Any = found) -> None:
            with (content / BODIES).open("a", encoding="utf-8") as evidence:
                for entry in found:
                    path = [base64.b64encode(p).decode() for p in inclusion_proof(node, entry.seq, row.size)]
                    line = {"seq": entry.seq, "leaf": base64.b64encode(entry.leaf).decode(), "proof": path}
                    evidence.write(json.dumps({**line, **body_document(entry.salt, entry.body)}) + "\n")
            formats.write(content, row.format, [(entry.seq, json.loads(entry.body)) for entry in found])

        await asyncio.to_thread(write)
        after, count = found[-1].seq, count + len(found)
        async with ports.runtime.unit() as uow:
            await uow.execute(update(exports).where(exports.c.export == row.export).values(done=after + 1))


async def _others(ports: Ports, row: Any, content: Path) -> None:
    """Salt and body of what does not fit although its header leaves that open."""

    def missing() -> list[int]:
        return list(undecided(row.filters, row.scope, headers(content, row.size), numbers(content / BODIES)))

    wanted = await asyncio.to_thread(missing)
    with (content / OTHERS).open("w", encoding="utf-8") as file:
        for begin in range(0, len(wanted), PAGE):
            some = select(entries.c.seq, entries.c.salt, entries.c.body).where(entries.c.seq.in_(wanted[begin : begin + PAGE]))
            async with ports.runtime.unit() as uow:
                found = await uow.all(some.order_by(entries.c.seq))
            for entry in found:
                if entry.body:  # one that was pruned stays undecided
                    file.write(json.dumps({"seq": entry.seq, **body_document(entry.salt, entry.body)}) + "\n")


def _about(ports: Ports, row: Any, content: Path, checkpoint: str) -> None:
    """What was asked, by whom it was approved, the counters of every emitter, the keys, and how to verify it."""
    request = {"export": row.export, "requester": row.requester, "scope": row.scope, "format": row.format, "filter": row.filters}
    request["complete"] = row.complete
    asked = {"request": request, "digest": row.digest, "approval": row.approval, "written_by": version("medmesh")}
    (content / "request.json").write_bytes(canonical(asked) + b"\n")
    (content / "emitters.json").write_bytes(canonical(counters(content, row.size)) + b"\n")
    exported, opened = numbers(content / BODIES), numbers(content / OTHERS)
    said = statement(row.filters, row.scope, list(headers(content, row.size)), exported, opened)
    (content / STATEMENT).write_bytes(canonical(said) + b"\n")
    vkey = ports.sequencer.vkey
    (content / "vkeys").write_text(f"{vkey}\n", encoding="utf-8")
    (content / "policy").write_text(ports.witnesses.text or f"log {vkey}\nquorum none\n", encoding="utf-8")
    (content / "verify.txt").write_text(INSTRUCTIONS.format(origin=checkpoint.split("\n")[0], size=row.size), encoding="utf-8")


def _pack(content: Path, file: Path) -> None:
    """Files in the order of their names, all of one date: the same content is the same bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path in _files(content):
            info = zipfile.ZipInfo(path.relative_to(content).as_posix(), date_time=_EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o600 << 16
            with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _files(content: Path) -> Iterator[Path]:
    yield from sorted((path for path in content.rglob("*") if path.is_file()), key=lambda path: path.relative_to(content).as_posix())
