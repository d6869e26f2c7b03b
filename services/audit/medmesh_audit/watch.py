"""Whether the tables are still protected, and who changed them: the database tells, the service raises the alarm."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import select, update

from medmesh.service.runtime import Runtime
from medmesh.store.guard import weaknesses
from medmesh_audit.alarms import alarm
from medmesh_audit.tables import METADATA, ddl, state


@dataclass
class Watch:
    """Looks now and then; a weakness is told when it appears, a change of the schema once."""

    runtime: Runtime
    _known: set[str] = field(default_factory=set)

    async def look(self) -> None:
        """Once."""
        await self._changes()
        async with self.runtime.database.engine.connect() as sql:
            found = set(await weaknesses(sql, METADATA))
        for weakness in sorted(found - self._known):
            await alarm(self.runtime, "weakened", what=weakness)
        self._known = found

    async def _changes(self) -> None:
        async with self.runtime.unit() as uow:
            seen = (await uow.execute(select(state.c.ddl_seen))).scalar_one()
            rows = await uow.all(select(ddl).where(ddl.c.id > seen).order_by(ddl.c.id).limit(100))
            if not rows:
                return
            # Two instances look: whoever moves the mark tells.
            moved = await uow.execute(update(state).where(state.c.ddl_seen == seen).values(ddl_seen=rows[-1].id))
        for row in rows if moved.rowcount else ():
            await alarm(self.runtime, "ddl", who=row.who, command=row.command, object=row.object)
