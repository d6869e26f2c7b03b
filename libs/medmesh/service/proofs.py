"""Each proof of possession counts once, at whichever instance of a service it is shown."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from sqlalchemy import String, bindparam, delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql import func

from medmesh.errors import Problem
from medmesh.security.possession import WINDOW, Proof
from medmesh.store.database import Database
from medmesh.store.prepared import Prepared
from medmesh.store.tables import add_door_table, service_metadata
from medmesh.store.types import Timestamp

_SEEN = add_door_table(service_metadata()).tables["proofs_seen"]
EVERY_SECONDS = 60.0
# Not flushed to the disk: what a crash of the database forgets is a fraction of a second of proofs.
_LAZILY = select(func.set_config("synchronous_commit", "off", True)).cte()
_ROW = select(bindparam("proof", type_=String), bindparam("until", type_=Timestamp)).select_from(_LAZILY)
_SEE = Prepared(insert(_SEEN).from_select(["proof", "until"], _ROW).on_conflict_do_nothing().returning(_SEEN.c.proof))
_FORGET = Prepared(delete(_SEEN).where(_SEEN.c.until < bindparam("now")))


class Proofs:
    """Kept in the service's own database, one statement a proof."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def once(self, proof: Proof) -> None:
        """Raises `Problem` (`security.possession`) the second time."""
        name, until = hashlib.sha256(f"{proof.key}:{proof.id}".encode()).hexdigest(), datetime.now(UTC) + 2 * WINDOW
        if not await self._database.look(_SEE, proof=name, until=until):
            raise Problem("security.possession", reason="used before")

    async def forget(self) -> None:
        """Those that are too old to be shown again."""
        await self._database.look(_FORGET, now=datetime.now(UTC))
