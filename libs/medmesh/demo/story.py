"""The whole story on real data: hospitals that keep their data train one model together, and everybody can check it."""

from __future__ import annotations

import shutil
import time
from typing import Any

from medmesh.demo.chapters import auditing, delivering, joining, pooled, scanning, training, witnessing
from medmesh.demo.stage import Stage


async def tell(stage: Stage) -> dict[str, Any]:
    """Everything, in order; answers the summary."""
    shutil.rmtree(stage.folder, ignore_errors=True)
    stage.folder.mkdir(parents=True)
    stage.folder.chmod(0o711)
    try:
        slices = await joining.prepare(stage)
        await joining.up(stage)
        await joining.enrol(stage)
        await witnessing.watch(stage)
        await joining.ingest(stage)
        federation = await training.federate(stage)
        await delivering.release(stage, slices)
        await pooled.pooled(stage, slices)
        await auditing.audit(stage, federation)
    finally:
        if (anybody := stage.people.get("anybody")) is not None:
            await anybody.close()
        for process in (*stage.nodes.values(), *stage.processes):
            process.stop()
    await scanning.scan(stage)
    stage.summary["seconds"] = round(time.monotonic() - stage.began, 1)
    return stage.summary
