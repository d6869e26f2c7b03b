"""Updates of which no model can be made, though nothing was wrong with them when they came: whose they are, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import update

from medmesh.contracts.federation import RoundKind
from medmesh.errors import Problem
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log
from medmesh_federation import results
from medmesh_federation.domain import Situation
from medmesh_federation.handlers import entity, invited
from medmesh_federation.ports import Ports
from medmesh_federation.tables import answers


def is_transient(problem: Problem) -> bool:
    """Whether making a round's model again may go otherwise with the same updates: something it needs is away, or its disk is full."""
    return problem.status >= 500 or problem.code.startswith("objects.")


async def among(ports: Ports, row: Any, situation: Situation, given: Sequence[Any], code: str) -> list[Any]:
    """Those of a training round's answers whose update makes no model by itself either, for the same reason; none where that holds for all,
    because then it is nobody's alone. Raises what is transient."""
    assert situation.round is not None
    if situation.round.kind is not RoundKind.TRAIN:
        return []
    found = []
    for one in given:
        try:
            with ports.holding() as held:
                await results.result(held, row, situation, [one])
        except Problem as problem:
            if is_transient(problem):
                raise
            found += [one] if problem.code == code else []
    return found if len(found) < len(given) else []


async def leave_out(uow: UnitOfWork[Any], row: Any, number: int, those: Sequence[Any], code: str) -> None:
    """As if their hospitals had said that they cannot: they leave round `number`, and the others go on."""
    for one in those:
        own = (answers.c.federation == row.federation) & (answers.c.round == one.round) & (answers.c.attempt == one.attempt)
        await uow.execute(update(answers).where(own, answers.c.hospital == one.hospital).values(failed=code, results=None, metrics={}))
        about, detail = (entity(row), Entity("hospital", one.hospital)), {"round": number}
        uow.audit(AuditEntry("federation.failure", "E", outcome=8, why=code, entities=about, hospitals=invited(row), detail=detail))
        log("federation.update.unfit", level=40, federation=row.federation, hospital=one.hospital, round=number, why=code)
