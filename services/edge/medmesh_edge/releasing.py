"""Updates that nobody has more need of are deleted: they are this hospital's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import bindparam, null, update

from medmesh.store.attempts import attempt, of_attempt
from medmesh.store.prepared import Prepared
from medmesh.tasks import aside
from medmesh_edge import training
from medmesh_edge.ports import Site
from medmesh_edge.tables import among, tasks

LEAST_SECONDS = 0.01
"""Less than this is left to wait when a timer rings, which counts in milliseconds."""
DISPENSABLE = among(tasks.c.state, "releasable", "failed", "superseded") & tasks.c.update.is_not(None)
"""One that is still here and that the platform has no more need of."""
_RELEASE = Prepared(update(tasks).where(of_attempt(tasks)).values(state=bindparam("now"), update=null()))


@dataclass
class Releases:
    """Of a node's rounds."""

    site: Site
    linger: float = 0.0
    """For how many seconds they may wait for the next round."""
    _woken: asyncio.TimerHandle | None = None
    """Who looks at what lingers."""

    def wait(self, rows: Sequence[Any]) -> bool:
        """Whether these wait for a round that comes soon: its own commit has the disk wait for theirs."""
        if not rows or not self.linger:
            return False
        loop = asyncio.get_running_loop()
        if self._woken is None:
            self._woken = loop.call_later(self.linger, self.site.changed.set, "rounds")
        return loop.time() < self._woken.when() - LEAST_SECONDS

    async def release(self, rows: Sequence[Any], mark: int) -> None:
        """Delete these. What says that they are needed no more was committed by `mark`."""
        if not rows:
            return
        if self._woken is not None:
            self._woken.cancel()
            self._woken = None
        await self.site.database.settle(mark)
        kept = await training.held(self.site)
        for row in rows:
            if row.update["sha256"] not in kept:  # some algorithms keep just what they sent
                await aside(row.update["bytes"], partial(self.site.objects.remove, row.update["sha256"]))
        async with self.site.unit(durable=False) as uow:  # else they are deleted once more
            for row in rows:
                await uow.rows(_RELEASE, **attempt(row), now="released" if row.state == "releasable" else row.state)
