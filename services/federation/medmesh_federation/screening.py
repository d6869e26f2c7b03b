"""Updates that look wrong: found while a round is aggregated, and what the plan says of them done in the transaction that commits it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update

from medmesh.contracts.federation import UpdateFlagged
from medmesh.contracts.plan import Plan
from medmesh.contracts.screening import Screening, Verdict
from medmesh.federated.plan import plan_of
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log
from medmesh_federation import quarantine
from medmesh_federation.answering import FLAGGED
from medmesh_federation.handlers import entity, invited
from medmesh_federation.tables import answers, flags

if TYPE_CHECKING:
    from medmesh.federated.screening import Finding

Updates = list[tuple[str, Path, int]]
"""(hospital, model, weight)."""


async def replayed(uow: UnitOfWork[Any], plan: Plan, given: Sequence[Any]) -> frozenset[str]:
    """Hospitals whose update was given before: by anybody to another round, or by another hospital to an earlier attempt at the same. The
    same hospital's for the same round is no replay: an attempt that was void is trained again to the same bytes."""
    marks = {a.fingerprint for a in given if a.fingerprint} if plan.screening is not None else set()
    if not marks:
        return frozenset()
    columns = (answers.c.round, answers.c.attempt, answers.c.hospital, answers.c.fingerprint, answers.c.at)
    wanted = select(*columns).where(answers.c.federation == given[0].federation, answers.c.fingerprint.in_(marks))
    seen = await uow.all(wanted)
    return frozenset(a.hospital for a in given if any(_before(a, other) for other in seen))


def _before(answer: Any, other: Any) -> bool:
    same_attempt = (answer.round, answer.attempt) == (other.round, other.attempt)
    own = (answer.round, answer.hospital) == (other.round, other.hospital)
    return answer.fingerprint == other.fingerprint and not same_attempt and not own and other.at <= answer.at


async def screened(
    plan: Plan, origin: Path, updates: Updates, given: Sequence[Any], seen: frozenset[str]
) -> tuple[Updates, Mapping[str, Finding]]:
    """The updates that count, and what is wrong with those that look wrong. The same answers give the same result."""
    if (rules := plan.screening) is None:
        return updates, {}
    found = await asyncio.to_thread(_findings, plan, rules, origin, updates, given, seen)
    out = found if rules.action != "note" else {}
    return [one for one in updates if one[0] not in out], found


def _findings(
    plan: Plan, rules: Screening, origin: Path, updates: Updates, given: Sequence[Any], seen: frozenset[str]
) -> Mapping[str, Finding]:
    from medmesh.federated.screening import judge, products  # numpy: not before the first round

    parties = [party for party, _, _ in updates]
    gram = products(origin, [path for _, path, _ in updates], frozenset(plan.local))
    arrivals = [a.hospital for a in sorted(given, key=lambda a: (a.at, a.hospital))]
    marks = {a.hospital: a.fingerprint or a.hospital for a in given}
    judged = judge(rules, parties, gram, arrivals=arrivals, marks=marks, replayed=seen)
    return {party: finding for party, finding in judged.items() if finding.flags}


async def record(uow: UnitOfWork[Any], row: Any, number: int, attempt: int, given: Sequence[Any], found: Mapping[str, Finding]) -> bool:
    """Write down what was found in the updates of this attempt, and take those out that do not count. Whether any were."""
    plan = plan_of(row)
    if not found or plan.screening is None:
        return False
    excluded = plan.screening.action != "note"
    for a in (a for a in given if a.hospital in found):
        finding = found[a.hospital]
        about = {"federation": row.federation, "round": number, "attempt": attempt, "hospital": a.hospital}
        values = {"flags": list(finding.flags), "excluded": excluded, "at": uow.now}
        await uow.execute(insert(flags).values(**about, **values, ratio=_two(finding.ratio), cosine=_two(finding.cosine)))
        if excluded:
            own = (answers.c.federation == row.federation) & (answers.c.round == a.round) & (answers.c.attempt == a.attempt)
            await uow.execute(update(answers).where(own, answers.c.hospital == a.hospital).values(failed=FLAGGED, results=None, metrics={}))
        uow.emit(UpdateFlagged(**about, flags=finding.flags, excluded=excluded, hospitals=invited(row)))
        why = ", ".join(finding.flags)
        detail: dict[str, str | int | bool] = {"round": number, "excluded": excluded}
        entities = (entity(row), Entity("hospital", a.hospital))
        uow.audit(AuditEntry("federation.flag", "E", outcome=4, why=why, entities=entities, hospitals=invited(row), detail=detail))
        if plan.screening.action == "quarantine":
            await quarantine.put(uow, row, a.hospital, why)
        log("federation.update.flagged", level=30, federation=row.federation, hospital=a.hospital, round=number, why=why)
    return excluded


async def weigh(uow: UnitOfWork[Any], given: Sequence[Any], verdicts: Mapping[str, Verdict]) -> None:
    """Write down what the round's algorithm made of these answers."""
    of: dict[tuple[int, int, Verdict], list[str]] = {}
    for a in (a for a in given if a.hospital in verdicts):
        of.setdefault((a.round, a.attempt, verdicts[a.hospital]), []).append(a.hospital)
    for (number, attempt, verdict), hospitals in of.items():
        theirs = (answers.c.federation == given[0].federation) & (answers.c.round == number) & (answers.c.attempt == attempt)
        await uow.execute(update(answers).where(theirs, answers.c.hospital.in_(hospitals)).values(verdict=verdict.value))


def _two(number: float) -> str:
    return f"{number:.2g}"
