"""This hospital's part in secure sums: the phases of a round as the platform passes them on, and the vector that goes instead of a model.

A phase's answer, what is remembered of it and its record are one transaction. What the platform says is believed as little as in
`medmesh.federated.secure.contributor`: only of a round of a plan that this hospital signed, and whose start is proven.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, insert, select, update

from medmesh.client.transfer import Held, Plain, Source
from medmesh.contracts.federation import RoundKind, RoundOpened, SecurePhase
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.plan import last_round
from medmesh.federated.secure import counts, vectors
from medmesh.federated.secure.contributor import Contributor, keys_of
from medmesh.federated.secure.session import Session
from medmesh.store.attempts import attempt, of_attempt
from medmesh.store.objects.encrypted import Window
from medmesh.store.objects.port import CHUNK, Digest, load
from medmesh.store.prepared import Look, Prepared, as_text
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log
from medmesh_edge import attempts, chain
from medmesh_edge.attempts import following
from medmesh_edge.outgoing import has_left, is_transient, queue
from medmesh_edge.ports import Site
from medmesh_edge.tables import given, secure_opened, secure_phases, tasks

if TYPE_CHECKING:
    from medmesh.security.statements import Keys
    from medmesh_edge.handing import Trained

SMALL = CHUNK // 4
"""Bytes of a model whose vector is made in memory, and goes with its message: of numbers four times as wide at the most."""
ASKED = frozenset((SecurePhase.KEYS, SecurePhase.SHARES, SecurePhase.SURVIVORS, SecurePhase.REVEAL))
"""The phases that are answered by a message. The shares that are passed on are answered by the vector under their masks."""
Plans = Callable[[RoundOpened], Awaitable[Plan]]
"""The plan this hospital signed for a round, proven. Raises `Problem`."""
Fails = Callable[[RoundOpened, Problem], Awaitable[None]]
_PASSED_ON = Prepared(select(secure_phases).where(secure_phases.c.state == "received").order_by(secure_phases.c.at).limit(1))
_TASK = Prepared(select(tasks.c.state, as_text(tasks.c.event)).where(of_attempt(tasks)))
_PHASES = Prepared(select(secure_phases.c.phase).where(of_attempt(secure_phases)))
_MESSAGES = Prepared(select(secure_phases.c.messages).where(of_attempt(secure_phases), secure_phases.c.phase == bindparam("one")))
_ANSWERED = Prepared(update(secure_phases).where(of_attempt(secure_phases), secure_phases.c.phase == bindparam("one")).values(state="done"))
_OURS = secure_opened.c.federation == bindparam("federation"), secure_opened.c.round == bindparam("round")
_CLAIMED = Prepared(select(secure_opened.c.list).where(*_OURS))
_CLAIM = Prepared(insert(secure_opened).values(given(secure_opened)))


def is_secure(plan: Plan, event: RoundOpened) -> bool:
    """Whether what leaves of this round goes masked: of every one, where the plan has only sums opened."""
    return plan.secure is not None and event.kind is not RoundKind.BASELINE


async def step(site: Site, plan_of: Plans, fail: Fails) -> bool:
    """Answer the oldest phase that was passed on; False when there is none. Raises transient problems."""
    look = site.database.look
    if not (found := await look(_PASSED_ON)):
        return False
    (phase,), (task, *_) = found, [*await look(_TASK, **attempt(found[0])), None]
    if task is None or task.state not in ("received", "trained", "sent"):
        async with site.unit() as uow:
            await uow.rows(_ANSWERED, **attempt(phase), one=phase.phase)
        return True
    event = chain.opened(task.event)
    try:
        plan = await plan_of(event)
        if not is_secure(plan, event):
            raise Problem("federation.plan_changed", federation=event.federation)
        async with site.unit() as uow:
            if not await has_left(uow.rows, event):
                await _answer(site, uow, event, plan, SecurePhase(phase.phase), phase.messages)
            await uow.rows(_ANSWERED, **attempt(phase), one=phase.phase)
    except Problem as problem:
        if is_transient(problem):
            raise
        await fail(event, problem)  # with which its phases go: killed before, it is looked at again
    site.changed.set("rounds")
    return True


async def _answer(site: Site, uow: UnitOfWork[Any], event: RoundOpened, plan: Plan, phase: SecurePhase, messages: dict[str, str]) -> None:
    roster, now, here = site.roster(), datetime.now(UTC), site.settings.hospital
    party = await _party(site, uow.rows, event)
    if phase is SecurePhase.KEYS and (party is None or not party.sealed):
        # Also where others came together than it was prepared with.
        party = Contributor(session_of(event, event.plan_hash, plan), here)
        await attempts.keep(uow, event, party)
    if party is None:
        raise Problem("secure.changed", what="round")
    ahead: dict[str, str] = {}
    of_round = {"federation": event.federation, "round": event.round}
    before, claimed = await uow.one(_CLAIMED, **of_round), list[str]()

    def claim(_federation: str, _round: int, wanted: str) -> str:
        claimed.append(wanted)
        return str(before.list) if before is not None else wanted

    match phase:
        case SecurePhase.KEYS:
            said = {here: party.advertise(site.organisation(), now)}
        case SecurePhase.SHARES:
            said = party.share(keys_of(party.session, roster, messages, now))
            await attempts.keep(uow, event, party)
        case SecurePhase.SURVIVORS:
            said = {here: party.survive(sorted(messages), site.organisation(), now, claim)}
        case SecurePhase.REVEAL:
            asked = await _passed_on(uow.rows, event, SecurePhase.SURVIVORS)  # of nobody where no vector was missing
            revealed = party.reveal(roster, None if asked is None else sorted(asked), messages, now, claim)
            if unopened := sorted(name for name, share in revealed.shares.items() if not share):
                log("edge.secure.not_opened", level=30, federation=event.federation, round=event.round, hospitals=",".join(unopened))
            said, ahead = revealed.shares, await _share_ahead(site, uow, event, revealed.following)
        case _:
            raise Problem("secure.changed", what="phase")
    if claimed and before is None:  # in the transaction that sends it: it cannot leave and be forgotten
        await uow.rows(_CLAIM, **of_round, list=claimed[0])
    body = {"round": event.round, "attempt": event.attempt, "phase": phase.value, "messages": said}
    await queue(uow, f"/v1/federations/{event.federation}/secure", body | ({"ahead": ahead} if ahead else {}))
    about = (Entity("federation", event.federation, digest=event.plan_hash),)
    detail: dict[str, str | int | bool] = {"round": event.round, "phase": phase.value}
    if ahead:
        detail["ahead"] = True
    uow.audit(AuditEntry("federation.secure", "E", entities=about, detail=detail))
    log("edge.secure.answered", federation=event.federation, round=event.round, phase=phase.value)


async def _party(site: Site, rows: Look, event: Any) -> Contributor | None:
    """This hospital's part in an attempt, with the shares that were passed on to it: others than those never take their place."""
    party = await attempts.find(site, rows, event)
    if party is not None and not party.sealed and (shares := await _passed_on(rows, event, SecurePhase.VECTORS)) is not None:
        party.take(shares)
        attempts.remember(site, event, party)
    return party


async def _passed_on(rows: Look, event: Any, phase: SecurePhase) -> dict[str, str] | None:
    found = await rows(_MESSAGES, **attempt(event), one=phase.value)
    return dict(found[0].messages) if found else None


async def _share_ahead(site: Site, uow: UnitOfWork[Any], event: RoundOpened, keys: dict[str, Keys]) -> dict[str, str]:
    """What is sealed for the others in the next round. Where their keys will not do, that round begins with its own."""
    place = following(event)
    if not keys or (party := await attempts.find(site, uow.rows, place)) is None:
        return {}
    try:
        shares = party.share(keys)
    except Problem as problem:
        log("edge.secure.not_ahead", level=30, error=problem, federation=event.federation, round=place.round)
        return {}
    await attempts.keep(uow, place, party)
    return shares


async def prepare(site: Site, uow: UnitOfWork[Any], event: RoundOpened, plan: Plan) -> bool:
    """Make this hospital's secrets for the next round, where there are none yet and there is one: in the commit that keeps what this
    round left. Whether the shares of its masks are here: then the vector waits for no other commit."""
    place = following(event)
    if place.round <= last_round(plan) and await attempts.find(site, uow.rows, place) is None:
        await attempts.keep(uow, place, Contributor(session_of(place, event.plan_hash, plan), site.settings.hospital))
    return bool(await uow.rows(_MESSAGES, **attempt(event), one=SecurePhase.VECTORS.value))


async def accompanying(site: Site, event: RoundOpened, plan: Plan) -> tuple[Contributor, str]:
    """This hospital's part in a round, and what goes with its vector: the list of those whose masks are in it and the keys for the next
    round, signed. The disk has both parts (`prepare`) before anything of this leaves."""
    look = site.database.look
    if (party := await _party(site, look, event)) is None:
        raise Problem("secure.changed", what="round")
    keys, place = None, following(event)
    if place.round <= last_round(plan):
        if (then := await attempts.find(site, look, place)) is None:
            return party, ""  # the others are asked whose vectors are there, and begin the next round with its keys
        keys = then.public()
    return party, party.whole(site.organisation(), datetime.now(UTC), keys)


def session_of(place: Any, plan_hash: str, plan: Plan) -> Session:
    """What the plan fixes for one attempt at one round."""
    assert plan.secure is not None
    return Session(place.federation, plan_hash, place.round, place.attempt, tuple(sorted(plan.participants)), plan.secure.threshold)


async def ready(site: Site, task: Any) -> bool:
    """Whether a trained model may go: at once where nothing is masked, else when the others' shares are here."""
    phases = {one.phase for one in await site.database.look(_PHASES, **attempt(task))}
    return not phases or SecurePhase.VECTORS in phases


async def vector(
    site: Site, event: RoundOpened, plan: Plan, party: Contributor, done: Trained, room: Callable[[], Path]
) -> tuple[ObjectRef, Source, list[str]]:
    """What goes instead of what a round left: the same bytes however often it is asked for, so it is made again rather than kept; and it
    may lie in the clear, which it is to nobody. With the marks of its bytes (`Digest`). A small one is made in memory, another in a
    file in the folder that `room` gives. Raises `Problem` (`secure.range`)."""
    assert plan.secure is not None
    settings: dict[str, Any] = {
        "bits": plan.secure.bits,
        "ring": plan.secure.ring,
        "parties": len(plan.participants),
        "without": frozenset(plan.local),
        "masks": party.masks(party.sealed),
    }
    if done.counts is not None:
        tables, loss = ([done.counts], done.metrics.get("loss")) if event.kind is RoundKind.TRAIN else (done.counts, None)
        settings["beside"] = counts.numbers(tables, loss=loss, samples=done.samples, bits=plan.secure.bits)
    digest, model = Digest(), done.update
    if model is None or model.bytes <= SMALL:
        data = done.data if model is None or done.data is not None else await load(site.objects, model)

        def pieces() -> Iterator[bytes]:
            for piece in vectors.masked(data, done.samples, **settings):
                digest.update(piece)
                yield piece

        held = Held(await asyncio.to_thread(lambda: tuple(pieces())))
        return ObjectRef(sha256=digest.hexdigest(), bytes=digest.size), held, digest.marks
    out = room() / "vector"
    ref = await asyncio.to_thread(vectors.encode, Window(site.objects, model), done.samples, out, digest=digest, **settings)
    return ref, Plain(out), digest.marks
