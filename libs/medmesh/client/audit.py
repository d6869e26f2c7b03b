"""The auditor's side: searching, proofs, and a copy of the log that is verified offline."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medmesh.client.gateway import Gateway
from medmesh.errors import Problem
from medmesh.ledger import note, proof, tiles
from medmesh.ledger.leaf import commitment, decode

PAGE = 500


async def export_log(door: Gateway, folder: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Copy checkpoint, tiles, entries and bodies into `folder`; answers how many records. `door` is a client of the audit service."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = (await door.raw("GET", "/log/checkpoint")).text
    size = note.parse_checkpoint(checkpoint.split("\n\n")[0] + "\n").size
    wanted = [tiles.path(level, number, width) for level, number, width in tiles.shape(size)]
    full, rest = divmod(size, tiles.WIDTH)
    wanted += [tiles.path("entries", number) for number in range(full)] + ([tiles.path("entries", full, rest)] if rest else [])
    for where in wanted:
        target = folder / where
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((await door.raw("GET", f"/log/{where}")).content)
    with (folder / "bodies.jsonl").open("w") as file:
        first = 0
        while first < size:
            page = (await door.request("GET", "/v1/bodies", query={"first": first, "limit": PAGE}))["bodies"]
            for body in page:
                if body["seq"] < size:
                    file.write(json.dumps(body) + "\n")
            if not page:
                break
            first = page[-1]["seq"] + 1
            progress(min(first, size), size)
    (folder / "checkpoint").write_text(checkpoint)
    return size


def verify_evidence(evidence: dict[str, Any], vkey: str) -> dict[str, Any]:
    """The record in an answer of `/v1/records/{seq}/proof`, proven with nothing but the log's key. Raises `Problem`."""
    leaf, salt, body = (base64.b64decode(evidence[name]) for name in ("leaf", "salt", "body"))
    proof.verify(evidence["proof"], leaf, vkey)
    if decode(leaf).commit != commitment(salt, body):
        raise Problem("ledger.proof", reason="the record is not the one that was logged")
    record: dict[str, Any] = json.loads(body)
    return record
