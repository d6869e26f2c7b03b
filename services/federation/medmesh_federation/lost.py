"""Updates that arrived and are gone. What hospitals hand in is scratch, which is nowhere twice, because each keeps its own until the
round is stored: it is asked for the very same bytes again, and nobody trains again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, update

from medmesh.contracts.federation import UpdateLost
from medmesh.federated.plan import plan_of
from medmesh.store.attempts import attempt, of_attempt
from medmesh.store.prepared import Prepared
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log
from medmesh_federation.answering import LOST
from medmesh_federation.handlers import entity, invited, there
from medmesh_federation.ports import Ports
from medmesh_federation.tables import answers, rounds

_LOSE = Prepared(
    update(answers)
    .where(of_attempt(answers), answers.c.hospital == bindparam("hospital"), answers.c.failed.is_(None))
    .values(failed=LOST)
    .returning(answers.c.hospital)
)


async def among(ports: Ports, given: Sequence[Any]) -> list[Any]:
    """Those of these answers whose update is in no store."""
    return [one for one in given if one.update and not await there(ports, one.update["sha256"])]


async def ask_again(uow: UnitOfWork[Any], row: Any, gone: Sequence[Any]) -> None:
    """The answers do not count until their hospitals have sent them again, for which an open round gets as much time as a lease."""
    of: dict[tuple[int, int], list[str]] = {}
    for one in gone:
        if not await uow.rows(_LOSE, **attempt(one), hospital=one.hospital):
            continue
        of.setdefault((one.round, one.attempt), []).append(one.hospital)
        about = (entity(row), Entity("hospital", one.hospital), Entity("update", f"{one.round}.{one.attempt}", digest=one.update["sha256"]))
        detail: dict[str, str | int | bool] = {"round": one.round}
        lost = AuditEntry("federation.update", "D", outcome=8, why="objects.missing", entities=about, hospitals=invited(row), detail=detail)
        uow.audit(lost)
        log("federation.update.lost", level=40, federation=row.federation, hospital=one.hospital, round=one.round)
    for (number, which), hospitals in of.items():
        theirs = (rounds.c.federation == row.federation) & (rounds.c.round == number) & (rounds.c.attempt == which)
        soon = uow.now + timedelta(seconds=2 * plan_of(row).lease_seconds)
        await uow.execute(update(rounds).where(theirs, rounds.c.state == "open", rounds.c.deadline < soon).values(deadline=soon))
        uow.emit(UpdateLost(federation=row.federation, round=number, attempt=which, hospitals=tuple(sorted(hospitals))))
