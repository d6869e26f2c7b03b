"""What hospitals say in the phases of a secure sum, as it is stored: of the round that is open, and ahead of the next one.

With a vector a hospital signs the list of all whose masks are in it, so that nobody need be asked when all arrive, and its keys for the
next round; with the shares that it reveals it seals those of the next round. That then begins with its vectors (decision 0122).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, select
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.federation import SecurePhase, SubmitUpdate
from medmesh.errors import Problem
from medmesh.federated.plan import last_round, plan_of
from medmesh.store.prepared import Prepared
from medmesh.store.unit import UnitOfWork
from medmesh_federation.ports import Ports
from medmesh_federation.tables import secure_messages

if TYPE_CHECKING:
    from medmesh.federated.secure.session import Session

Said = Mapping[SecurePhase, Mapping[str, Mapping[str, str]]]
"""Phase to hospital to what it said."""
_THEIRS = [secure_messages.c[name] == bindparam(name) for name in ("federation", "round", "attempt")]
_ALL = Prepared(select(secure_messages).where(*_THEIRS).order_by(secure_messages.c.hospital))
_WHO = Prepared(select(secure_messages.c.hospital).where(*_THEIRS, secure_messages.c.phase == bindparam("phase")))
_KEEP = Prepared(
    upsert(secure_messages)
    .values({column.name: bindparam(column.name) for column in secure_messages.c})
    .on_conflict_do_nothing()
    .returning(secure_messages.c.hospital)
)
_FORGET = Prepared(delete(secure_messages).where(*_THEIRS).returning(secure_messages.c.hospital))


def session_of(row: Any, number: int, attempt: int) -> Session:
    """What the plan fixes for one attempt at one round."""
    from medmesh.federated.secure.session import Session

    plan = plan_of(row)
    assert plan.secure is not None
    return Session(row.federation, row.plan_hash, number, attempt, tuple(sorted(plan.participants)), plan.secure.threshold)


async def said(uow: UnitOfWork[Any], federation: str, number: int, attempt: int) -> Said:
    """All of an attempt."""
    found: dict[SecurePhase, dict[str, Mapping[str, str]]] = {phase: {} for phase in SecurePhase}
    for one in await uow.rows(_ALL, federation=federation, round=number, attempt=attempt):
        found[SecurePhase(one.phase)][one.hospital] = one.messages
    return found


async def who(uow: UnitOfWork[Any], federation: str, number: int, attempt: int, phase: SecurePhase) -> frozenset[str]:
    """Who spoke in a phase; of vectors, who signed the list of everybody with its own."""
    found = await uow.rows(_WHO, federation=federation, round=number, attempt=attempt, phase=phase.value)
    return frozenset(one.hospital for one in found)


async def keep(
    uow: UnitOfWork[Any], federation: str, number: int, attempt: int, phase: SecurePhase, hospital: str, messages: Mapping[str, str]
) -> bool:
    """False where it said something before."""
    place = {"federation": federation, "round": number, "attempt": attempt}
    return bool(await uow.rows(_KEEP, **place, phase=phase.value, hospital=hospital, messages=dict(messages)))


async def with_vector(uow: UnitOfWork[Ports], row: Any, given: SubmitUpdate, parties: Sequence[str] | None) -> None:
    """Keep what a hospital signed beside its vector; in a round without a secure sum it signs nothing.
    Raises `Problem` (`secure.changed`, `roster.*`, ...)."""
    if parties is None:
        return
    from medmesh.federated.secure.contributor import listed, statement_of
    from medmesh.security.statements import SecureKeys, SecureWhole

    hospital, place = uow.actor.id, (row.federation, given.round, given.attempt)
    if given.whole:
        signed = statement_of(session_of(row, given.round, given.attempt), uow.ports.roster(), given.whole, SecureWhole, hospital, uow.now)
        if signed.survivors != listed(list(parties)):
            raise Problem("secure.changed", what="survivors")
        await keep(uow, *place, SecurePhase.VECTORS, hospital, {hospital: given.whole})
    if given.ahead and given.round < last_round(plan_of(row)):
        statement_of(session_of(row, given.round + 1, 1), uow.ports.roster(), given.ahead, SecureKeys, hospital, uow.now)
        await keep(uow, row.federation, given.round + 1, 1, SecurePhase.KEYS, hospital, {hospital: given.ahead})


async def ahead(uow: UnitOfWork[Any], federation: str, number: int, parties: Sequence[str]) -> dict[str, str]:
    """The keys that these hospitals signed for a round that is not open yet; none unless all of them did."""
    keys = (await said(uow, federation, number, 1))[SecurePhase.KEYS]
    return {name: keys[name][name] for name in parties} if set(parties) <= set(keys) else {}


async def prepared(uow: UnitOfWork[Any], row: Any, number: int, attempt: int, assigned: Sequence[str]) -> dict[str, dict[str, str]]:
    """Hospital to what is sealed for it, where exactly these hospitals, and enough of them, have sealed theirs for a round ahead; else
    what was said ahead is forgotten, and the round begins with its keys."""
    federation, threshold = row.federation, session_of(row, number, attempt).threshold
    place = {"federation": federation, "round": number, "attempt": attempt}
    shares = (await said(uow, federation, number, attempt))[SecurePhase.SHARES]
    if len(assigned) >= threshold and set(shares) == set(assigned) and all(set(assigned) <= set(given) for given in shares.values()):
        return {name: {sender: shares[sender][name] for sender in assigned} for name in assigned}
    await uow.rows(_FORGET, **place)
    return {}
