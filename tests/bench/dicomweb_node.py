"""`python -m tests.bench.dicomweb_node FOLDER`: a node's local page on its own, whose port and token are printed; until its input ends."""

from __future__ import annotations

import asyncio
import secrets
import sys
from pathlib import Path

from medmesh.service.asgi import serve
from medmesh_edge import clients
from medmesh_edge.node import Node, page
from medmesh_edge.ports import site
from medmesh_edge.settings import Settings


async def main(folder: Path) -> None:
    """Entry point."""
    folder.mkdir(mode=0o700)
    Settings(hospital="bench", node="node-1", gateway="https://127.0.0.1:1").save(folder)
    async with site(folder) as opened:
        for path in (opened.layout.local_token, opened.layout.site_key):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.write_text(secrets.token_hex(32))
            path.chmod(0o600)
        opened.layout.dicom.write_text("reserve_mib = 64\n")
        node = Node(opened, None)  # type: ignore[arg-type] # nothing here dials out
        token = await clients.create(opened, "bench", "bench", "original", ("read", "write"), 1)
        async with serve(page(node), host="127.0.0.1", port=0) as port:
            print(f"{port} {token}", flush=True)
            await asyncio.to_thread(sys.stdin.read)
        node.archive.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
