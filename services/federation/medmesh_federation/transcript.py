"""What hospitals say in the phases of a secure sum, as it is stored: of the round that is open, and ahead of the next one.

With a vector a hospital signs the list of all whose masks are in it, so that nobody need be asked when all arrive, and its keys for the
next round; with the shares that it reveals it seals those of the next round. That then begins with its vectors (decisions 0122, 0142).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, literal, select
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.federation import SecurePhase, SubmitUpdate
from medmesh.errors import Problem
from medmesh.federated.plan import last_round, plan_of
from medmesh.ledger import note
from medmesh.store.attempts import KEY, of_attempt
from medmesh.store.prepared import Prepared
from medmesh.store.unit import UnitOfWork
from medmesh_federation.domain import Round
from medmesh_federation.ports import Ports
from medmesh_federation.tables import secure_messages

if TYPE_CHECKING:
    from medmesh.federated.secure.session import Session
    from medmesh.security.statements import Keys

MOST_SIGNED, MOST_SEALED, MOST_REVEALED = 840, 512, 160
"""Bytes, in a message, of what a hospital says to one other, or to all: what 64 hospitals say is passed on in one."""
Said = Mapping[SecurePhase, Mapping[str, Mapping[str, str]]]
"""Phase to hospital to what it said."""
_THEIRS = of_attempt(secure_messages)
_ALL = Prepared(select(secure_messages).where(_THEIRS).order_by(secure_messages.c.hospital))
_WHO = Prepared(select(secure_messages.c.hospital).where(_THEIRS, secure_messages.c.phase == bindparam("phase")))
_ONE = {column.name: bindparam(column.name, type_=column.type) for column in secure_messages.c}
_SEALED = {"round": bindparam("next"), "attempt": literal(1), "phase": literal(SecurePhase.SHARES.value)}
_AHEAD = _ONE | _SEALED | {"messages": bindparam("ahead", type_=secure_messages.c.messages.type)}
_KEEP = Prepared(upsert(secure_messages).values(_ONE).on_conflict_do_nothing().returning(secure_messages.c.phase))
_KEEP_BOTH = Prepared(upsert(secure_messages).values([_ONE, _AHEAD]).on_conflict_do_nothing().returning(secure_messages.c.phase))
_LISTS = select(
    secure_messages.c.federation,
    secure_messages.c.round + 1,
    literal(1),
    literal(SecurePhase.KEYS.value),
    secure_messages.c.hospital,
    secure_messages.c.messages,
).where(_THEIRS, secure_messages.c.phase == literal(SecurePhase.VECTORS.value))
_TAKE_OVER = Prepared(
    upsert(secure_messages)
    .from_select([*KEY, "phase", "hospital", "messages"], _LISTS)
    .on_conflict_do_nothing()
    .returning(secure_messages.c.hospital)
)
_FORGET = Prepared(delete(secure_messages).where(_THEIRS).returning(secure_messages.c.hospital))


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
    uow: UnitOfWork[Any],
    federation: str,
    number: int,
    attempt: int,
    phase: SecurePhase,
    messages: Mapping[str, str],
    ahead: Mapping[str, str] | None = None,
) -> bool:
    """What the hospital that speaks says in a phase, and what it seals `ahead`. False where it said something before."""
    place = {"federation": federation, "round": number, "attempt": attempt, "phase": phase.value, "hospital": uow.actor.id}
    if ahead:
        kept = await uow.rows(_KEEP_BOTH, **place, messages=dict(messages), next=number + 1, ahead=dict(ahead))
    else:
        kept = await uow.rows(_KEEP, **place, messages=dict(messages))
    return phase.value in {one.phase for one in kept}


async def with_vector(uow: UnitOfWork[Ports], row: Any, given: SubmitUpdate, parties: Sequence[str] | None) -> None:
    """Keep what a hospital signed beside its vector; in a round without a secure sum it signs nothing.
    Raises `Problem` (`secure.changed`, `roster.*`, ...)."""
    if parties is None or not given.whole:
        return
    sizes({uow.actor.id: given.whole}, MOST_SIGNED)
    from medmesh.federated.secure.contributor import listed, statement_of
    from medmesh.security.statements import SecureWhole

    place, session = (row.federation, given.round, given.attempt), session_of(row, given.round, given.attempt)
    signed = statement_of(session, uow.ports.roster(), given.whole, SecureWhole, uow.actor.id, uow.now)
    if signed.survivors != listed(list(parties)):
        raise Problem("secure.changed", what="survivors")
    if signed.following is None and given.round < last_round(plan_of(row)):
        raise Problem("secure.changed", what="keys")
    if signed.following is not None:
        lists = (await said(uow, *place))[SecurePhase.VECTORS]
        distinct(uow.actor.id, signed.following, keys_of(lists))
    await keep(uow, *place, SecurePhase.VECTORS, {uow.actor.id: given.whole})


def keys_of(keys: Mapping[str, Mapping[str, str]]) -> dict[str, Keys]:
    """Hospital to its keys for a round, as they were said in it or ahead of it, with the list of the round before; they were verified when
    they came."""
    from medmesh.security.statements import SecureKeys, SecureWhole, read

    def one(signed: str) -> Keys:
        text = note.split(signed)[0]
        found = read(text, SecureWhole).following if text.startswith(SecureWhole.HEAD) else read(text, SecureKeys)
        assert found is not None, "as `with_vector` saw"
        return found

    return {name: one(said[name]) for name, said in keys.items()}


def distinct(hospital: str, keys: Keys, others: Mapping[str, Keys]) -> None:
    """Raise `Problem` (`secure.key`) for keys that no other hospital would use: nobody could take part, for one that lies."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    own, taken = {keys.cipher, keys.mask}, {key for name, one in others.items() if name != hospital for key in (one.cipher, one.mask)}
    try:
        for key in own:
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(key)))
    except ValueError:  # a point of small order
        own = set()
    if len(own) != 2 or own & taken:
        raise Problem("secure.key", hospital=hospital)


def sizes(messages: Mapping[str, str], most: int) -> None:
    """Raise `Problem` (`federation.update`) for what could not be passed on with what the others say, or not be stored."""
    for name, text in messages.items():
        if len(json.dumps(text, ensure_ascii=False).encode()) > most or "\0" in text:
            raise Problem("federation.update", reason=f"what is said to {name[:63]} has more than {most} bytes, or one that is 0")


async def prepared(
    uow: UnitOfWork[Any], row: Any, number: int, attempt: int, assigned: Sequence[str], before: Round | None
) -> dict[str, dict[str, str]]:
    """Hospital to what is sealed for it, where exactly these hospitals, and enough of them, have sealed theirs for a round ahead; else
    what was said ahead is forgotten, and the round begins with its keys."""
    if before is None or attempt != 1:
        return {}
    federation, threshold = row.federation, session_of(row, number, attempt).threshold
    shares = (await said(uow, federation, number, attempt))[SecurePhase.SHARES]
    if len(assigned) >= threshold and set(shares) == set(assigned) and all(set(assigned) <= set(given) for given in shares.values()):
        keys = await uow.rows(_TAKE_OVER, federation=federation, round=before.number, attempt=before.attempt)
        if set(assigned) <= {one.hospital for one in keys}:
            return {name: {sender: shares[sender][name] for sender in assigned} for name in assigned}
    await uow.rows(_FORGET, federation=federation, round=number, attempt=attempt)
    return {}
