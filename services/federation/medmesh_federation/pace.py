"""Rounds that do not wait for the slow: who is still at work on an earlier one, and which late updates count in the present one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import bindparam, select, update

from medmesh.contracts.federation import RoundKind
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.federated.plan import plan_of
from medmesh.store.attempts import same_attempt
from medmesh.store.prepared import Prepared, as_text
from medmesh.store.unit import UnitOfWork
from medmesh_federation.answering import FLAGGED, LOST, MADE
from medmesh_federation.handlers import local
from medmesh_federation.ports import Ports
from medmesh_federation.steps import answers_of
from medmesh_federation.tables import answers, federations, participants, rounds

_PLAN = Prepared(select(federations.c.plan_hash, as_text(federations.c.plan)).where(federations.c.federation == bindparam("federation")))
_SAME = same_attempt(rounds, answers)

STALE = Prepared(select(answers).where(answers.c.federation == bindparam("federation"), answers.c.counted == bindparam("round")))
"""The late updates that are part of a round."""


def _trained(federation: str, plan: Plan, number: int) -> Any:
    """Committed rounds whose updates may count in round `number`."""
    least = number - (plan.pace.staleness if plan.pace else 0)
    return (rounds.c.federation == federation) & MADE & (rounds.c.round >= least) & (rounds.c.round < number)


async def goes_on(uow: UnitOfWork[Any], federation: str) -> bool:
    """Whether its rounds go on without the slow."""
    (row,) = await uow.rows(_PLAN, federation=federation)
    return plan_of(row).pace is not None


async def busy(uow: UnitOfWork[Any], federation: str, plan: Plan, number: int) -> frozenset[str]:
    """Hospitals that have not yet answered an earlier round and whose update would count in round `number`: they are let train on."""
    if plan.pace is None:
        return frozenset()
    where = _trained(federation, plan, number)
    asked = {(r.round, hospital) for r in await uow.all(select(rounds.c.round, rounds.c.assigned).where(where)) for hospital in r.assigned}
    given = {(a.round, a.hospital) for a in await uow.all(select(answers.c.round, answers.c.hospital).join(rounds, _SAME).where(where))}
    return frozenset(hospital for _, hospital in asked - given)


async def waiting(uow: UnitOfWork[Any], federation: str, plan: Plan, number: int, answered: frozenset[str]) -> Mapping[str, Any]:
    """By hospital the late update that counts in round `number`, its newest, with the model `base` it was trained from; of those that have
    not `answered` this round themselves, and have neither left nor are in quarantine."""
    if plan.pace is None:
        return {}
    gone = select(participants.c.hospital).where(
        participants.c.federation == federation, participants.c.state.in_(["withdrawn", "quarantined"])
    )
    usable = answers.c.late & answers.c.counted.is_(None) & answers.c.failed.is_(None) & answers.c.update.is_not(None)
    wanted = select(answers, rounds.c.base).join(rounds, _SAME).where(_trained(federation, plan, number), usable)
    found = await uow.all(wanted.where(answers.c.hospital.not_in(gone)).order_by(answers.c.round))
    return {a.hospital: a for a in found if a.hospital not in answered}


async def counting(uow: UnitOfWork[Any], federation: str, plan: Plan, number: int, attempt: int, kind: RoundKind) -> Sequence[Any]:
    """Every answer that a round is made of, by the hospitals' names."""
    fresh = await answers_of(uow, federation, number, attempt)
    if plan.pace is None or kind is not RoundKind.TRAIN:
        return fresh
    late = await waiting(uow, federation, plan, number, frozenset(a.hospital for a in fresh))
    return sorted([*fresh, *late.values()], key=lambda a: str(a.hospital))


async def settle(uow: UnitOfWork[Any], federation: str, given: Sequence[Any], number: int) -> None:
    """Note of late updates that they are part of round `number`."""
    for a in given:
        if a.round != number:
            key = (answers.c.federation == federation) & (answers.c.round == a.round) & (answers.c.attempt == a.attempt)
            await uow.execute(update(answers).where(key, answers.c.hospital == a.hospital).values(counted=number))


async def counted(
    uow: UnitOfWork[Any], federation: str, plan: Plan, number: int, attempt: int
) -> tuple[Sequence[Any], frozenset[str], bool]:
    """(the answers that a committed training round is made of, as `counting` gave them; whose are on their way again; whether a hospital
    that was asked for its own once more said that it cannot)."""
    fresh = await answers_of(uow, federation, number, attempt, all_of_them=True)
    late = select(answers, rounds.c.base).join(rounds, _SAME).where(answers.c.federation == federation, answers.c.counted == number)
    every = [*fresh, *(await uow.all(late) if plan.pace is not None else [])]
    given = sorted((a for a in every if a.failed is None), key=lambda a: str(a.hospital))
    unable = any(a.update is not None and a.failed not in (None, LOST, FLAGGED) for a in every)
    return given, frozenset(a.hospital for a in every if a.failed == LOST), unable


async def weighed(
    ports: Ports, plan: Plan, given: Sequence[Any], number: int, origin: Path, folder: Path, whole: Any
) -> list[tuple[str, Path, int]]:
    """(hospital, model, weight) of each answer: a late one as if it had been trained from `origin`, and lighter. `whole(base, encoded,
    target)` undoes the plan's codec. Raises `Problem`."""
    from medmesh.federated.staleness import carried, weight

    assert plan.pace is not None
    found = []
    for a in given:
        late = number - a.round
        base = await local(ports, ObjectRef.model_validate(a.base)) if late else origin
        path = await local(ports, ObjectRef.model_validate(a.update))
        if plan.codec != "none":
            path = await asyncio.to_thread(whole, plan, base, path, folder / a.hospital)
        if late:
            path = await asyncio.to_thread(carried, path, base, origin, folder / f"{a.hospital}-carried")
        found.append((a.hospital, path, weight(a.samples, late, plan.pace)))
    return found
