"""This hospital's part in secure sums: the phases of a round as the platform passes them on, and the vector that goes instead of a model.

A phase's answer, what is remembered of it and its record are one transaction. What the platform says is believed as little as in
`medmesh.federated.secure.contributor`: only of a round of a plan that this hospital signed, and whose start is proven.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.canonical import canonical, parse
from medmesh.client.transfer import Held, Plain, Source
from medmesh.contracts.federation import RoundKind, RoundOpened, SecurePhase
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.plan import last_round
from medmesh.federated.secure import counts, vectors
from medmesh.federated.secure.contributor import Contributor
from medmesh.federated.secure.session import Session
from medmesh.security.keyring.file import FileKeys
from medmesh.security.roster import Roster
from medmesh.store.objects.port import CHUNK, Digest, fetch, load
from medmesh.store.prepared import Prepared, as_text
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log
from medmesh_edge import chain
from medmesh_edge.outgoing import is_transient, queue
from medmesh_edge.ports import Site
from medmesh_edge.tables import KEY, attempt, given, of_attempt, secure_attempts, secure_opened, secure_phases, tasks

if TYPE_CHECKING:
    from medmesh_edge.handing import Trained

ATTEMPT = "attempt"
AHEAD = "ahead"
"""Beside the phases of a round: the keys that hospitals signed for the next one, as the platform passed them on."""
SMALL = CHUNK // 4
"""Bytes of a model whose vector is made in memory, and goes with its message: of numbers four times as wide at the most."""
Plans = Callable[[RoundOpened], Awaitable[Plan]]
"""The plan this hospital signed for a round, proven. Raises `Problem`."""
Fails = Callable[[RoundOpened, Problem], Awaitable[None]]
_PASSED_ON = Prepared(select(secure_phases).where(secure_phases.c.state == "received").order_by(secure_phases.c.at).limit(1))
_TASK = Prepared(select(tasks.c.state, as_text(tasks.c.event)).where(of_attempt(tasks)))
_PHASES = Prepared(select(secure_phases.c.phase, secure_phases.c.state).where(of_attempt(secure_phases)))
_ANY = Prepared(select(secure_attempts.c.round).limit(1))
_SECRETS = Prepared(select(secure_attempts.c.document).where(of_attempt(secure_attempts)))
_KEPT = upsert(secure_attempts).values(given(secure_attempts))
_KEEP = Prepared(_KEPT.on_conflict_do_update(index_elements=KEY, set_={"document": _KEPT.excluded.document}))
_MESSAGES = Prepared(select(secure_phases.c.messages).where(of_attempt(secure_phases), secure_phases.c.phase == bindparam("one")))
_ANSWERED = Prepared(update(secure_phases).where(of_attempt(secure_phases), secure_phases.c.phase == bindparam("one")).values(state="done"))
_OURS = secure_opened.c.federation == bindparam("federation"), secure_opened.c.round == bindparam("round")
_CLAIMED = Prepared(select(secure_opened.c.list).where(*_OURS))
_CLAIM = Prepared(insert(secure_opened).values(given(secure_opened)))
_FORGET_ATTEMPT = Prepared(delete(secure_attempts).where(of_attempt(secure_attempts)).returning(secure_attempts.c.round))
_FORGET_PHASES = Prepared(delete(secure_phases).where(of_attempt(secure_phases)))


@dataclass(frozen=True)
class Place:
    """One attempt at one round."""

    federation: str
    round: int
    attempt: int = 1


def _of(table: Any, event: Any) -> Any:
    return (table.c.federation == event.federation) & (table.c.round == event.round) & (table.c.attempt == event.attempt)


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
            await uow.execute(update(secure_phases).where(_of(secure_phases, phase)).values(state="done"))
        return True
    event = chain.opened(task.event)
    try:
        plan = await plan_of(event)
        if not is_secure(plan, event):
            raise Problem("federation.plan_changed", federation=event.federation)
        # Shares are taken without an answer: the disk has them before the vector under their masks leaves (`handing.send`).
        async with site.unit(durable=phase.phase != SecurePhase.VECTORS) as uow:
            await _answer(site, uow, event, plan, SecurePhase(phase.phase), phase.messages)
            await uow.rows(_ANSWERED, **attempt(phase), one=phase.phase)
    except Problem as problem:
        if is_transient(problem):
            raise
        async with site.unit() as uow:
            await uow.execute(update(secure_phases).where(_of(secure_phases, phase)).values(state="done"))
        await fail(event, problem)
    site.changed.set("rounds")
    return True


def _keys(site: Site, event: Any) -> tuple[FileKeys, str]:
    """(the node's keys, the label of the attempt's own): what is deleted of a store may be read from its pages for long, and from copies
    of it for ever; without the key it is noise."""
    name = hashlib.sha256(f"{event.federation}:{event.round}:{event.attempt}".encode()).hexdigest()[:24]
    return FileKeys(site.layout.keys), f"{ATTEMPT}-{name}"


def _bound(event: Any) -> bytes:
    return f"{event.federation}\0{event.round}\0{event.attempt}".encode()


def sealed(site: Site, event: Any, party: Contributor) -> str:
    """What is stored of an attempt."""
    keys, label = _keys(site, event)
    return keys.ensure(label).wrap(label, canonical(party.document()), _bound(event))


def restored(site: Site, event: Any, document: str) -> Contributor:
    """The attempt again. Raises `Problem` (`keyring.*`)."""
    keys, label = _keys(site, event)
    return Contributor.restore(parse(keys.unwrap(label, document, _bound(event))))


async def keeps_secrets(site: Site) -> bool:
    """Whether this node takes part in any secure sum."""
    return bool(await site.database.look(_ANY))


async def sweep(site: Site) -> None:
    """Destroy the keys of attempts that are over: what a kill left."""
    keys = FileKeys(site.layout.keys)
    async with site.unit() as uow:
        needed = {_keys(site, row)[1] for row in await uow.all(select(secure_attempts))}
    for label in {path.name.partition(".")[0] for path in site.layout.keys.glob(f"{ATTEMPT}-*.wrap")} - needed:
        keys.destroy(label, 1)


async def _answer(site: Site, uow: UnitOfWork[Any], event: RoundOpened, plan: Plan, phase: SecurePhase, messages: dict[str, str]) -> None:
    roster, now, here = site.roster(), datetime.now(UTC), site.settings.hospital
    party = await _party(site, uow, event)
    if phase is SecurePhase.KEYS and (party is None or not party.sealed):
        party = Contributor(session_of(event, event.plan_hash, plan), here)  # also where others came together than it was prepared with
    if party is None:
        raise Problem("secure.changed", what="round")
    said: dict[str, str] | None = None
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
            said = party.share(roster, messages, now)
        case SecurePhase.VECTORS:
            party.take(messages)
            await _following(site, uow, event, plan)  # now, beside the training, and in one commit
        case SecurePhase.SURVIVORS:
            said = {here: party.survive(sorted(messages), site.organisation(), now, claim)}
        case SecurePhase.REVEAL:
            said = party.reveal(roster, await _survivors(uow, event), messages, now, claim)
            ahead = await _share_ahead(site, uow, event, roster, now)
    if claimed and before is None:  # in the transaction that sends it: it cannot leave and be forgotten
        await uow.rows(_CLAIM, **of_round, list=claimed[0])
    if phase not in (SecurePhase.SURVIVORS, SecurePhase.REVEAL):  # which add nothing to what is kept
        await _keep(site, uow, event, party)
    if said is not None:
        body = {"round": event.round, "attempt": event.attempt, "phase": phase.value, "messages": said}
        await queue(uow, f"/v1/federations/{event.federation}/secure", body | ({"ahead": ahead} if ahead else {}))
    about = (Entity("federation", event.federation, digest=event.plan_hash),)
    detail: dict[str, str | int | bool] = {"round": event.round, "phase": phase.value} | ({"ahead": True} if ahead else {})
    uow.audit(AuditEntry("federation.secure", "E", entities=about, detail=detail))
    log("edge.secure.answered", federation=event.federation, round=event.round, phase=phase.value)


async def _party(site: Site, uow: UnitOfWork[Any], place: Any) -> Contributor | None:
    row = await uow.one(_SECRETS, **attempt(place))
    return restored(site, place, row.document) if row is not None else None


async def _keep(site: Site, uow: UnitOfWork[Any], place: Any, party: Contributor) -> None:
    await uow.rows(_KEEP, **attempt(place), document=sealed(site, place, party))


async def _passed_on(uow: UnitOfWork[Any], event: RoundOpened, phase: str) -> dict[str, str] | None:
    found = await uow.one(_MESSAGES, **attempt(event), one=phase)
    return None if found is None else dict(found.messages)


async def _survivors(uow: UnitOfWork[Any], event: RoundOpened) -> list[str] | None:
    """The list this hospital was asked to sign; None where nobody's vector was missing."""
    asked = await _passed_on(uow, event, SecurePhase.SURVIVORS.value)
    return None if asked is None else sorted(asked)


async def _share_ahead(site: Site, uow: UnitOfWork[Any], event: RoundOpened, roster: Roster, now: datetime) -> dict[str, str]:
    """What is sealed for the others in the next round. Where their keys will not do, that round begins with its own."""
    keys, place = await _passed_on(uow, event, AHEAD), Place(event.federation, event.round + 1)
    if not keys or (party := await _party(site, uow, place)) is None:
        return {}
    try:
        shares = party.share(roster, keys, now)
    except Problem as problem:
        log("edge.secure.not_ahead", level=30, error=problem, federation=event.federation, round=place.round)
        return {}
    await _keep(site, uow, place, party)
    return shares


async def accompanying(site: Site, event: RoundOpened, plan: Plan) -> tuple[Contributor, dict[str, str]]:
    """This hospital's part in a round, and what goes with its vector: the list of those whose masks are in it, and the keys for the next
    round, both signed."""
    signer, now = site.organisation(), datetime.now(UTC)
    async with site.unit() as uow:
        if (party := await _party(site, uow, event)) is None:
            raise Problem("secure.changed", what="round")
        said = {"whole": party.whole(signer, now)}
        if (following := await _following(site, uow, event, plan)) is not None:
            said["ahead"] = following.advertise(signer, now)
    return party, said


async def _following(site: Site, uow: UnitOfWork[Any], event: RoundOpened, plan: Plan) -> Contributor | None:
    """This hospital's part in the next round, made where there is none yet; None after the last."""
    place = Place(event.federation, event.round + 1)
    if place.round > last_round(plan):
        return None
    if (party := await _party(site, uow, place)) is None:
        party = Contributor(session_of(place, event.plan_hash, plan), site.settings.hospital)
        await _keep(site, uow, place, party)
    return party


def session_of(place: Any, plan_hash: str, plan: Plan) -> Session:
    """What the plan fixes for one attempt at one round."""
    assert plan.secure is not None
    return Session(place.federation, plan_hash, place.round, place.attempt, tuple(sorted(plan.participants)), plan.secure.threshold)


async def ready(site: Site, task: Any) -> bool:
    """Whether a trained model may go: at once where nothing is masked, else when the others' shares are here."""
    phases = {one.phase: one.state for one in await site.database.look(_PHASES, **attempt(task))}
    return not phases or phases.get(SecurePhase.VECTORS.value) == "done"


async def vector(
    site: Site, event: RoundOpened, plan: Plan, party: Contributor, done: Trained, room: Callable[[], Path]
) -> tuple[ObjectRef, Source, list[str]]:
    """What goes instead of what a round left: the same bytes however often it is asked for, so it is made again rather than kept; and it
    may lie in the clear, which it is to nobody. With the marks of its bytes (`Digest`). A small one is made in memory, another in the
    folder that `room` gives. Raises `Problem` (`secure.range`)."""
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
    folder = room()
    source, out = await fetch(site.objects, model, folder / "model"), folder / "vector"
    ref = await asyncio.to_thread(vectors.encode, source, done.samples, out, digest=digest, **settings)
    return ref, Plain(out), digest.marks


async def forget(uow: UnitOfWork[Any], event: Any) -> bool:
    """A round is over, or this hospital's part in it: its secrets go; which list was signed stays. Whether there were any."""
    gone = await uow.rows(_FORGET_ATTEMPT, **attempt(event))
    await uow.rows(_FORGET_PHASES, **attempt(event))
    if gone:
        keys, label = _keys(uow.ports, event)
        uow.on_commit(lambda: keys.destroy(label, 1))
    return bool(gone)


async def forget_all(uow: UnitOfWork[Any], federation: str) -> None:
    """A federation is over."""
    for row in await uow.all(select(secure_attempts).where(secure_attempts.c.federation == federation)):
        await forget(uow, row)
    await uow.execute(delete(secure_phases).where(secure_phases.c.federation == federation))
