"""Each proof of possession counts once, at whichever instance of a service it is shown."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from sqlalchemy import delete, text
from sqlalchemy.dialects.postgresql import insert

from medmesh.errors import Problem
from medmesh.security.possession import WINDOW, Proof
from medmesh.store.tables import add_door_table, service_metadata
from medmesh.store.unit import UnitOfWork

_SEEN = add_door_table(service_metadata()).tables["proofs_seen"]
EVERY_SECONDS = 60.0


class Proofs:
    """Kept in the service's own database; `unit` opens a transaction of it."""

    def __init__(self, unit: Callable[[], AbstractAsyncContextManager[UnitOfWork[Any]]]) -> None:
        self._unit = unit

    async def once(self, proof: Proof) -> None:
        """Raises `Problem` (`security.possession`) the second time."""
        name = hashlib.sha256(f"{proof.key}:{proof.id}".encode()).hexdigest()
        async with self._unit() as uow:
            # Not flushed to the disk: what a crash of the database forgets is a fraction of a second of proofs.
            await uow.execute(text("SET LOCAL synchronous_commit = off"))
            row = insert(_SEEN).values(proof=name, until=uow.now + 2 * WINDOW).on_conflict_do_nothing().returning(_SEEN.c.proof)
            fresh = (await uow.execute(row)).first() is not None
        if not fresh:
            raise Problem("security.possession", reason="used before")

    async def forget(self) -> None:
        """Those that are too old to be shown again."""
        async with self._unit() as uow:
            await uow.execute(delete(_SEEN).where(_SEEN.c.until < uow.now))
