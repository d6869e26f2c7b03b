"""Secure sums at the coordinator: collects what hospitals say in each phase, passes it on, and opens one sum a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import update

from medmesh.contracts.federation import RoundKind, SecureAdvanced, SecurePhase, SubmitSecure
from medmesh.contracts.message import Envelope
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.plan import last_round, plan_of
from medmesh.store.unit import AuditEntry, UnitOfWork
from medmesh.telemetry import log
from medmesh_federation.answering import ACCEPTED, answering
from medmesh_federation.domain import Advance, Round, Situation
from medmesh_federation.handlers import entity, invited
from medmesh_federation.ports import HANDLERS, Ports
from medmesh_federation.tables import rounds
from medmesh_federation.transcript import (
    MOST_REVEALED,
    MOST_SEALED,
    MOST_SIGNED,
    Said,
    distinct,
    keep,
    keys_of,
    said,
    session_of,
    sizes,
    who,
)

if TYPE_CHECKING:
    from medmesh.federated.secure.session import Session
    from medmesh.federated.secure.vectors import Sum

_MOST = {
    SecurePhase.KEYS: MOST_SIGNED,
    SecurePhase.SHARES: MOST_SEALED,
    SecurePhase.SURVIVORS: MOST_SIGNED,
    SecurePhase.REVEAL: MOST_REVEALED,
}


@HANDLERS.on(SubmitSecure, batch=16)
async def submit_secure(command: Envelope[SubmitSecure], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """What a hospital says in a phase; checked before the others get it, so that one that lies does not spoil the round for all."""
    given, hospital = command.data, uow.actor.id
    asked, late = await answering(uow, given.federation, given.round, given.attempt)
    current = asked.round
    late = late or current.phase != given.phase or hospital not in (current.parties or ())
    if late or given.phase is SecurePhase.VECTORS:
        uow.unchanged()
        return {"late": True}
    place = (given.federation, given.round, given.attempt)
    spoken = await uow.once(_spoken, *place, given.phase)
    _check(uow, current, await uow.once(_spoken, *place, SecurePhase.SHARES), given, current.parties)
    plan = plan_of(current)
    if given.phase is SecurePhase.KEYS:
        own = keys_of({hospital: given.messages})[hospital]
        distinct(hospital, own, keys_of((await said(uow, *place))[SecurePhase.KEYS]))
    ahead = given.ahead if given.phase is SecurePhase.REVEAL and given.round < last_round(plan) else {}
    if ahead and not set(current.parties) <= set(ahead) <= set(plan.participants):
        raise Problem("federation.update", reason="ahead: not for those it is asked for")
    sizes(ahead, MOST_SEALED)
    if not await keep(uow, *place, given.phase, given.messages, ahead):
        uow.unchanged()
    else:
        spoken.add(hospital)
        detail: dict[str, str | int | bool] = {"round": given.round, "phase": given.phase.value}
        if ahead:
            detail["ahead"] = True
        uow.audit(AuditEntry("federation.secure", "C", entities=(entity(current),), detail=detail))
    # There is something to do when nobody is waited for any more; deadlines and leases are looked at in any case.
    if all(one in spoken for one in current.parties if asked.state(one) == ACCEPTED):
        uow.on_commit(uow.ports.wake.set)
    return {"late": False}


async def _spoken(uow: UnitOfWork[Ports], federation: str, number: int, attempt: int, phase: SecurePhase) -> set[str]:
    return set(await who(uow, federation, number, attempt, phase))


def _check(uow: UnitOfWork[Ports], row: Any, sharers: AbstractSet[str], given: SubmitSecure, parties: Sequence[str]) -> None:
    from medmesh.federated.secure.contributor import listed, statement_of
    from medmesh.security.statements import SecureKeys, SecureSurvivors

    hospital = uow.actor.id
    if given.phase in (SecurePhase.KEYS, SecurePhase.SURVIVORS):
        wanted = {hospital}
    else:
        wanted = set(parties) if given.phase is SecurePhase.SHARES else set(sharers)
    if set(given.messages) != wanted:
        raise Problem("federation.update", reason=f"{given.phase}: not for those it is asked for")
    sizes(given.messages, _MOST[given.phase])
    session, roster = session_of(row, given.round, given.attempt), uow.ports.roster()
    if given.phase is SecurePhase.KEYS:
        statement_of(session, roster, given.messages[hospital], SecureKeys, hospital, uow.now)
    elif given.phase is SecurePhase.SURVIVORS:
        signed = statement_of(session, roster, given.messages[hospital], SecureSurvivors, hospital, uow.now)
        if signed.survivors != listed(list(parties)):
            raise Problem("secure.changed", what="survivors")


async def advance(uow: UnitOfWork[Any], row: Any, situation: Situation, step: Advance) -> None:
    """Tell those who are still in it what the next phase needs."""
    current = situation.round
    assert current is not None
    found = await said(uow, row.federation, current.number, current.attempt)
    parties = tuple(sorted(step.parties))
    where = (rounds.c.federation == row.federation) & (rounds.c.round == current.number) & (rounds.c.attempt == current.attempt)
    # What comes after the vectors needs no training: a lease's time is enough, also when the vectors took all there was.
    opening = step.to in (SecurePhase.SURVIVORS, SecurePhase.REVEAL)
    deadline = max(current.deadline, uow.now + timedelta(seconds=2 * situation.plan.lease_seconds)) if opening else current.deadline
    await uow.execute(update(rounds).where(where).values(phase=step.to.value, parties=list(parties), deadline=deadline))
    for told, messages in _needs(current, step.to, parties, found):
        uow.emit(
            SecureAdvanced(
                federation=row.federation,
                round=current.number,
                attempt=current.attempt,
                plan_hash=row.plan_hash,
                phase=step.to,
                messages=messages,
                hospitals=told,
            )
        )
    detail: dict[str, str | int | bool] = {"round": current.number, "phase": step.to.value, "parties": len(parties)}
    uow.audit(AuditEntry("federation.secure", "U", entities=(entity(row),), hospitals=invited(row), detail=detail))
    log("federation.secure.advanced", federation=row.federation, round=current.number, phase=step.to.value, parties=len(parties))


def _needs(current: Round, phase: SecurePhase, parties: tuple[str, ...], found: Said) -> list[tuple[tuple[str, ...], dict[str, str]]]:
    match phase:
        case SecurePhase.SHARES:
            return [(parties, {name: found[SecurePhase.KEYS][name][name] for name in parties})]
        case SecurePhase.VECTORS:
            return [((name,), {sender: found[SecurePhase.SHARES][sender][name] for sender in parties}) for name in parties]
        case SecurePhase.SURVIVORS:
            return [(parties, dict.fromkeys(parties, ""))]
        case _:
            signed = found[SecurePhase.VECTORS if current.phase is SecurePhase.VECTORS else SecurePhase.SURVIVORS]
            return [(parties, {name: signed[name][name] for name in parties})]


@dataclass(frozen=True)
class Opening:
    """All it takes to open a round's sum."""

    session: Session
    said: Said

    def sum(self, vectors_of: Mapping[str, Path]) -> Sum:
        """The sum of the vectors that arrived. Raises `Problem` (`secure.*`)."""
        from medmesh.federated.secure import collector, vectors

        keys = keys_of(self.said[SecurePhase.KEYS])
        sharers, survivors = sorted(self.said[SecurePhase.SHARES]), sorted(vectors_of)
        masks = collector.corrections(self.session, keys, sharers, survivors, self.said[SecurePhase.REVEAL])
        return vectors.Sum([vectors_of[name] for name in survivors], masks)


def mean(plan: Plan, current: Round, total: Sum, base: Path, folder: Path) -> tuple[Path, int]:
    """The mean model of a sum, without the tensors that stay in hospitals, and on how many samples. Raises `Problem` (`secure.*`)."""
    from medmesh.federated.secure import vectors

    assert plan.secure is not None
    if plan.privacy is not None and plan.privacy.adaptive:
        base = _with_count(base, folder)
    settings: dict[str, Any] = {"bits": plan.secure.bits, "without": frozenset(plan.local), "beside": _width(plan, current)}
    made = folder / "mean"
    return made, vectors.decode(total, base, made, **settings)


def evaluated(plan: Plan, current: Round, total: Sum, samples: int) -> dict[str, Any] | None:
    """What a sum says of evaluations, for its round's row; None where it carries none. Raises `Problem` (`secure.sum`, ...)."""
    from medmesh.federated.secure import counts

    if not (count := _width(plan, current)):
        return None
    found = counts.summed(plan, current.kind, total.last(count), samples)
    names = ["base"] if current.kind is RoundKind.TRAIN else [*(model.weights.sha256 for model in current.models), "personal"]
    return {"results": dict(zip(names, found.tables, strict=False)), "samples": samples, "loss": found.loss}


def _width(plan: Plan, current: Round) -> int:
    from medmesh.federated.secure import counts

    return counts.width(plan, current.kind, current.number, len(current.models))


def _with_count(base: Path, folder: Path) -> Path:
    """A model like those whose vectors were summed, which carry a number beside (`clipping.WITHIN`)."""
    from medmesh.federated.privacy.clipping import WITHIN
    from medmesh.federated.streams import Writer, merge
    from medmesh.learning.weights import header

    with Writer(folder / "count", {WITHIN.name: WITHIN}):
        pass
    return merge(folder / "like", {**dict.fromkeys(header(base), base), WITHIN.name: folder / "count"})
