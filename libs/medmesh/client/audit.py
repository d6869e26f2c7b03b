"""The auditor's side: searching, proofs, and a copy of the log that is verified offline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from medmesh.client.gateway import Gateway
from medmesh.ledger import note, tiles

PAGE = 500


async def export_log(door: Gateway, folder: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Copy checkpoint, tiles, entries and bodies into `folder`; answers how many records. `door` is a client of the audit service."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = (await door.raw("GET", "/log/checkpoint")).text
    size = note.parse_checkpoint(note.split(checkpoint)[0]).size
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
