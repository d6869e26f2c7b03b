"""Chapter 5: nothing has left."""

from __future__ import annotations

from medmesh.demo.evidence import dump_database
from medmesh.demo.processes import checker, medmesh
from medmesh.demo.stage import Stage


async def scan(stage: Stage) -> None:
    stage.say("scanning everything on the platform's side for every canary", "在平台侧全面扫描金丝雀标记")
    await dump_database(stage.data, stage.folder / "dump")
    await medmesh("down", "--data", str(stage.data))
    _, found = await checker(
        "scan",
        "--canaries",
        str(stage.folder / "canaries.txt"),
        "--prefix",
        stage.canaries.prefix,
        "--plant",
        str(stage.folder / "planted"),
        "--manifest",
        str(stage.data),
        str(stage.folder / "dump"),
        str(stage.folder / "log"),
        codes=(0, 1),
    )
    stage.summary |= {
        "canary_hits": found["canary_hits"],
        "canaries": len(stage.canaries.names),
        "canaries_planted": found["planted"],
        "canaries_planted_found": found["found_planted"],
        "bytes_scanned": found["bytes"],
    }
    stage.happened("scan finished", hits=found["canary_hits"])
