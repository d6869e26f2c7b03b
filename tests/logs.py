"""The audit service alone on real servers: records to hand in, and a copy of its log for the offline verifier."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy.engine import make_url

from medmesh.auditing.vocabulary import coding
from medmesh.bus.port import Bus
from medmesh.contracts.audit import AuditBatch, AuditRecord, Receipt, Receipts, record_subject
from medmesh.contracts.message import new_id
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.ledger import note, tiles
from medmesh.ledger.record import VERSION, record_bytes
from medmesh.security.access import policy_digest
from medmesh.security.keys import Identity
from medmesh.service.runtime import Runtime
from medmesh_audit import queries, search
from medmesh_audit.service import SERVICE
from tests.platform import PASSWORD, Platform, platform


@asynccontextmanager
async def audit_service(servers: RunningServers, folder: Path, **settings: Any) -> AsyncIterator[Platform]:
    """The platform with nothing but the log."""
    key = Identity.ensure(folder / "log.nk")
    assert key.public
    async with platform(servers, folder, SERVICE, settings={"audit": {"log_key": folder / "log.nk", **settings}}) as p:
        yield p


def vkey(folder: Path) -> str:
    """The key auditors have."""
    return note.verifier_key("medmesh/log", Identity.load(folder / "log.nk").private_key.public_key())


def record(
    emitter: str, n: int, *, id: str | None = None, verb: str = "training.finish", detail: dict[str, Any] | None = None
) -> AuditRecord:
    """A record as an emitter makes it."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    document = {
        "v": VERSION,
        "id": id or new_id(),
        "t": now,
        "tr": now,
        "src": {"service": emitter, "instance": "i-1", "node": "", "org": "medmesh", "ver": "1"},
        "type": coding(verb),
        "sub": verb,
        "act": "E",
        "out": 0,
        "why": "",
        "agents": [{"who": "person:li", "role": "researcher", "org": "platform", "req": True, "method": ""}],
        "pou": "HRESCH",
        "entities": [{"type": "federation", "id": f"f-{n}", "ver": "", "digest": ""}],
        "orgs": ["platform"],
        "policy": {"decision": "permit", "rules": ["role:researcher"], "bundle": policy_digest()},
        "approval": {},
        "ctx": {"trace": "0" * 32, "correlation": "", "request": ""},
        "detail": detail or {"n": n},
        "prev": "",
        "n": n,
    }
    return AuditRecord(id=str(document["id"]), n=n, body=base64.b64encode(record_bytes(document)).decode())


def records(emitter: str, first: int, count: int) -> list[AuditRecord]:
    """That many, numbered on."""
    return [record(emitter, n) for n in range(first, first + count)]


async def hand_in(bus: Bus, emitter: str, made: Sequence[AuditRecord], timeout: float = 10) -> tuple[Receipt, ...]:
    """As a relay does. Raises the `Problem` of a refusal."""
    batch = AuditBatch(emitter=emitter, records=tuple(made))
    answer = Receipts.model_validate_json(await bus.request(record_subject(emitter), batch.model_dump_json().encode(), timeout=timeout))
    if answer.problem:
        raise Problem.from_document(dict(answer.problem))
    return answer.receipts


async def copied(runtime: Runtime, folder: Path) -> Path:
    """A copy of the log as an auditor exports it."""
    async with runtime.unit() as uow:
        checkpoint = await queries.checkpoint(uow)
        size = checkpoint.size
        for level, number, width in tiles.shape(size):
            _put(folder / tiles.path(level, number, width), await queries.tile_bytes(uow, level, number, width))
        for number in range((size + 255) // 256):
            width = min(256, size - number * 256)
            _put(folder / tiles.path("entries", number, width), await queries.entry_bundle(uow, number, width))
        lines: list[str] = []
        first: int | None = 0
        while first is not None and first < size:
            page = await search.bodies(uow, None, first, 500)
            lines += [json.dumps(body.model_dump()) for body in page.bodies if body.seq < size]
            first = page.next
    _put(folder / "bodies.jsonl", "\n".join(lines).encode())
    _put(folder / "checkpoint", checkpoint.note.encode())
    return folder


async def faults(folder: Path, key: str) -> list[dict[str, Any]]:
    """What `medmesh audit verify` finds in a copy."""
    command = (sys.executable, "-P", "-m", "medmesh", "audit", "verify", "export", "--key", key, "--json", str(folder))
    checked = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False, timeout=60)
    found: list[dict[str, Any]] = json.loads(checked.stdout)["faults"]
    assert checked.returncode == (1 if found else 0), checked.stderr
    return found


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@asynccontextmanager
async def connected(servers: RunningServers, p: Platform, *, superuser: bool) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the log's database, as the service's own role or as the superuser."""
    mine = make_url(p.runtimes["audit"].settings.database_url)
    wanted = make_url(servers.postgres_url).set(database=mine.database) if superuser else mine.set(password=PASSWORD)
    sql = await asyncpg.connect(wanted.set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        if superuser:
            await sql.execute("SET search_path TO audit")
        yield sql
    finally:
        await sql.close()
