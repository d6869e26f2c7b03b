"""What the platform tells this hospital: each fact is taken into the store together with the cursor, once, in order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import JSON, BindParameter, Text, bindparam, func, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.contracts import federation as fed
from medmesh.contracts.governance import EmergencyEnded, EmergencyOpened, EmergencyOverdue, EmergencyReviewed
from medmesh.contracts.message import Envelope, Event, understood
from medmesh.contracts.plan import plan_hash
from medmesh.contracts.registry import ContributorsWithdrew, ModelReleased, ModelWithdrawn
from medmesh.errors import Problem
from medmesh.federated.plan import plan_of
from medmesh.store.attempts import KEY, attempt, of_attempt
from medmesh.store.prepared import Prepared, as_text
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log
from medmesh_edge import attempts, chain, secure
from medmesh_edge.ports import Site
from medmesh_edge.tables import among, federations, given, inbox_cursor, releases, secure_phases, tasks

Handler = Callable[[Any, UnitOfWork[Any]], Awaitable[None]]
Read = Callable[[dict[str, Any], type[Event]], Envelope[Any]]
_CURSOR = Prepared(select(inbox_cursor.c.cursor))
_PLACE: BindParameter[int] = bindparam("place")
# Answers nothing where it stands there already, or further on.
_MOVE = Prepared(
    upsert(inbox_cursor)
    .values(one=1, cursor=_PLACE)
    .on_conflict_do_update(index_elements=["one"], set_={"cursor": _PLACE}, where=inbox_cursor.c.cursor < _PLACE)
    .returning(inbox_cursor.c.cursor)
)
_FEDERATION: BindParameter[str] = bindparam("federation")
_KNOWN = Prepared(
    select(federations.c.plan_hash, federations.c.state, federations.c.reason, as_text(federations.c.plan)).where(
        federations.c.federation == _FEDERATION
    )
)
_SUPERSEDE = Prepared(update(tasks).where(tasks.c.federation == _FEDERATION, tasks.c.state == "received").values(state="superseded"))
_RECEIVE = Prepared(
    upsert(tasks)
    .values(
        {name: bindparam(name) for name in (*KEY, "kind", "at")}
        | {"event": bindparam("event", type_=Text)}
        | {"state": "received", "samples": 0, "metrics": {}, "trained": 0, "code": ""}
    )
    .on_conflict_do_nothing()
)
_PHASE = Prepared(upsert(secure_phases).values(given(secure_phases)).on_conflict_do_nothing())
_NUMBERS = func.json_each(bindparam("rounds", type_=JSON)).table_valued("value")
# Also what this node has not yet heard the answer to: a round is over soon after its last update came.
_STORED = Prepared(
    update(tasks)
    .where(tasks.c.federation == _FEDERATION, tasks.c.round.in_(select(_NUMBERS.c.value)), among(tasks.c.state, "trained", "sent"))
    .values(state="releasable")
)


# Only what was made here can go again: an evaluation in the clear left nothing.
_MADE = tasks.c.update.is_not(None) | tasks.c.counts.is_not(None)
_AGAIN = Prepared(
    update(tasks).where(of_attempt(tasks), among(tasks.c.state, "trained", "sent"), _MADE).values(state="trained", code=bindparam("asked"))
)


GONE = "federation.waits"
"""The reason of a federation that runs and waits for people."""
QUORUM = "federation.waiting"
"""Of one that runs and waits for hospitals: until the next round."""
_WAITS_NO_MORE = Prepared(
    update(federations).where(federations.c.federation == _FEDERATION, federations.c.reason == GONE).values(reason="")
)


async def cursor(site: Site) -> int:
    """Where to go on."""
    found = await site.database.look(_CURSOR)
    return int(found[0].cursor) if found else 0


async def take(site: Site, place: int, document: dict[str, Any], read: Read = understood) -> None:
    """Take one fact; one of an unknown type (a newer platform) is passed over and said."""
    handled = HANDLERS.get(kind := str(document.get("type")))
    destroys = kind == _STORED_FACT and await attempts.any_left(site)  # which is not undone
    async with site.unit(durable=destroys or kind not in TOLD_AGAIN) as uow:
        if not await uow.rows(_MOVE, place=place):
            return
        if handled is None:
            log("edge.unknown_fact", level=30, type=kind[:120])
        else:
            message, handler = handled
            try:
                event = read(document, message)
            except Problem as problem:
                log("edge.malformed_fact", level=40, error=problem)
            else:
                await handler(event, uow)
    if ".registry." in kind:
        site.changed.set("models")
    elif handled and handled[0] is fed.FederationInvited:
        site.changed.set("consent")
    else:
        site.changed.set("rounds")


async def _invited(event: Envelope[fed.FederationInvited], uow: UnitOfWork[Any]) -> None:
    wanted = event.data
    # The hash is computed here: what gets signed is the hash of what is shown.
    if plan_hash(wanted.plan) != wanted.plan_hash or wanted.package.sha256 != wanted.plan.package:
        uow.audit(AuditEntry("federation.invitation", "C", outcome=8, why="federation.plan_changed"))
        return
    values = {
        "federation": wanted.federation,
        "plan": wanted.plan.model_dump(mode="json"),
        "plan_hash": wanted.plan_hash,
        "package": wanted.package.model_dump(),
        "reviews": list(wanted.reviews),
        "state": "invited",
        "reason": "",
        "at": uow.now,
    }
    await uow.execute(upsert(federations).values(values).on_conflict_do_nothing())
    uow.audit(AuditEntry("federation.invitation", "C", entities=(Entity("federation", wanted.federation, digest=wanted.plan_hash),)))


async def _state(uow: UnitOfWork[Any], federation: str, state: str, reason: str = "", said: str = "") -> None:
    known = (federations.c.federation == federation) & federations.c.state.not_in(["declined", "expired", "withdrawn"])
    await uow.execute(update(federations).where(known).values(state=state, reason=reason, said=said))


async def _expired(event: Envelope[fed.InvitationExpired], uow: UnitOfWork[Any]) -> None:
    """Nobody here answered in time; an answer that is still on its way comes too late."""
    waits = (federations.c.federation == event.data.federation) & federations.c.state.in_(["invited", "accepted"])
    await uow.execute(update(federations).where(waits).values(state="expired", reason=""))
    log("edge.invitation.expired", level=30, federation=event.data.federation)


async def _started(event: Envelope[fed.FederationStarted], uow: UnitOfWork[Any]) -> None:
    await _state(uow, event.data.federation, "running")
    # Kept as it came: what it proves is looked at before every round (`proofs.Proofs`).
    known = federations.c.federation == event.data.federation
    await uow.execute(update(federations).where(known).values(start=event.data.model_dump(mode="json")))


async def _opened(event: Envelope[fed.RoundOpened], uow: UnitOfWork[Any]) -> None:
    wanted = event.data
    known = await uow.one(_KNOWN, federation=wanted.federation)
    # Only what this hospital signed is worked on: another plan hash, or a federation it never accepted, is refused.
    if known is None or known.plan_hash != wanted.plan_hash or known.state not in ("accepted", "running"):
        uow.audit(AuditEntry("federation.round", "E", outcome=8, why="federation.not_assigned"))
        return
    plan = plan_of(known)
    if known.reason == QUORUM:
        await _state(uow, wanted.federation, known.state)
    await uow.rows(_SUPERSEDE, federation=wanted.federation)
    await uow.rows(_RECEIVE, **attempt(wanted), kind=wanted.kind.value, event=chain.written(wanted), at=uow.now)
    await chain.note(uow, plan, wanted)
    if plan.secure is not None and wanted.kind is not fed.RoundKind.BASELINE:
        await _phase(uow, wanted, fed.SecurePhase.VECTORS if wanted.shares else fed.SecurePhase.KEYS, wanted.shares)


async def _phase(uow: UnitOfWork[Any], event: Any, phase: fed.SecurePhase, messages: dict[str, str]) -> None:
    state = "received" if phase in secure.ASKED else "kept"
    await uow.rows(_PHASE, **attempt(event), phase=phase.value, messages=messages, state=state, at=uow.now)
    uow.on_commit(lambda: uow.ports.changed.set("secure"))


async def _secured(event: Envelope[fed.SecureAdvanced], uow: UnitOfWork[Any]) -> None:
    # Kept as it came: what it may lead to is decided in `secure.step`.
    await _phase(uow, event.data, event.data.phase, event.data.messages)


async def _gone(event: Envelope[fed.ModelGone], uow: UnitOfWork[Any]) -> None:
    """People at the platform decide: those here see what it waits for."""
    known = (federations.c.federation == event.data.federation) & federations.c.state.in_(["running", "paused"])
    await uow.execute(update(federations).where(known).values(reason=GONE))
    log("edge.model.gone", level=30, federation=event.data.federation, round=event.data.round, why=event.data.why)


async def _back(federation: str, uow: UnitOfWork[Any]) -> None:
    """It waits no more, if it did."""
    await uow.rows(_WAITS_NO_MORE, federation=federation)


async def _waiting(event: Envelope[fed.FederationWaiting], uow: UnitOfWork[Any]) -> None:
    """Nothing comes until enough hospitals are there: those here see that it is not for them."""
    known = (federations.c.federation == event.data.federation) & (federations.c.state == "running") & (federations.c.reason == "")
    await uow.execute(update(federations).where(known).values(reason=QUORUM))


async def _rolled_back(event: Envelope[fed.FederationRolledBack], uow: UnitOfWork[Any]) -> None:
    await _back(event.data.federation, uow)


async def _stored(event: Envelope[fed.RoundStored], uow: UnitOfWork[Any]) -> None:
    done = event.data
    # Of an earlier round where that is what counted in this one.
    mine = [done.round, *([done.stale[hospital]] if (hospital := uow.ports.settings.hospital) in done.stale else [])]
    await uow.rows(_STORED, federation=done.federation, rounds=mine)
    await _back(done.federation, uow)
    await attempts.forget(uow, done)


async def _voided(event: Envelope[fed.RoundVoided], uow: UnitOfWork[Any]) -> None:
    done = event.data
    log("edge.round.void", level=30, federation=done.federation, round=done.round, attempt=done.attempt, why=done.why)
    where = (tasks.c.federation == done.federation) & (tasks.c.round == done.round) & (tasks.c.attempt == done.attempt)
    # A model that waits for its masks gets none any more.
    over = ["received", "sent", *(["trained"] if await attempts.forget(uow, done) else [])]
    await uow.execute(update(tasks).where(where, tasks.c.state.in_(over)).values(state="superseded"))


async def _extended(event: Envelope[fed.RoundExtended], uow: UnitOfWork[Any]) -> None:
    done = event.data
    where = (tasks.c.federation == done.federation) & (tasks.c.round == done.round) & (tasks.c.attempt == done.attempt)
    row = await uow.first(select(tasks.c.event).where(where))
    if row is not None:
        await uow.execute(update(tasks).where(where).values(event={**row.event, "deadline": done.model_dump(mode="json")["deadline"]}))


async def _paused(event: Envelope[fed.FederationPaused], uow: UnitOfWork[Any]) -> None:
    await _state(uow, event.data.federation, "paused", said=event.data.reason)


async def _resumed(event: Envelope[fed.FederationResumed], uow: UnitOfWork[Any]) -> None:
    await _state(uow, event.data.federation, "running")


async def _dropped(event: Envelope[fed.ParticipantDropped], uow: UnitOfWork[Any]) -> None:
    return None


async def _left(event: Envelope[fed.ParticipantWithdrew], uow: UnitOfWork[Any]) -> None:
    """This hospital left: those here see in how many rounds its part stays."""
    said = event.data
    if said.hospital == uow.ports.settings.hospital:
        await uow.execute(update(federations).where(federations.c.federation == said.federation).values(part=said.rounds))


async def _quarantined(event: Envelope[fed.ParticipantQuarantined | fed.ParticipantReleased], uow: UnitOfWork[Any]) -> None:
    said = event.data
    if said.hospital == uow.ports.settings.hospital:
        over = isinstance(said, fed.ParticipantReleased)
        log("edge.released" if over else "edge.quarantined", level=30, federation=said.federation)


async def _flagged(event: Envelope[fed.UpdateFlagged], uow: UnitOfWork[Any]) -> None:
    """The platform finds this hospital's update wrong: said here too, because a node may send what nobody here meant to."""
    said = event.data
    if said.hospital == uow.ports.settings.hospital:
        why = ", ".join(said.flags)
        log("edge.update.flagged", level=40, federation=said.federation, round=said.round, why=why)
        about, detail = (Entity("federation", said.federation),), {"round": said.round, "excluded": said.excluded}
        uow.audit(AuditEntry("federation.flag", "E", outcome=4, why=why, entities=about, detail=detail))


async def _lost(event: Envelope[fed.UpdateLost], uow: UnitOfWork[Any]) -> None:
    """The platform has this hospital's update no more: it goes again as it was, and nothing is trained again."""
    await uow.rows(_AGAIN, **attempt(event.data), asked=event.id)
    log("edge.update.lost", level=30, federation=event.data.federation, round=event.data.round)


async def _completed(event: Envelope[fed.FederationCompleted], uow: UnitOfWork[Any]) -> None:
    await _state(uow, event.data.federation, "completed")
    # What came too late for any round is of no more use to anybody.
    left = (tasks.c.federation == event.data.federation) & tasks.c.state.in_(["trained", "sent"])
    await uow.execute(update(tasks).where(left).values(state="releasable"))
    await attempts.forget_all(uow, event.data.federation)


async def _failed(event: Envelope[fed.FederationFailed], uow: UnitOfWork[Any]) -> None:
    await _state(uow, event.data.federation, "failed", event.data.code, event.data.reason)
    where = (tasks.c.federation == event.data.federation) & (tasks.c.state == "received")
    await uow.execute(update(tasks).where(where).values(state="superseded"))
    await attempts.forget_all(uow, event.data.federation)


async def _released(event: Envelope[ModelReleased], uow: UnitOfWork[Any]) -> None:
    release = event.data
    values = {
        "release": release.release,
        "model": release.model,
        "version": release.version,
        "event": release.model_dump(mode="json"),
        "state": "received",
        "code": "",
        "at": uow.now,
    }
    await uow.execute(upsert(releases).values(values).on_conflict_do_nothing())


async def _withdrawn(event: Envelope[ModelWithdrawn], uow: UnitOfWork[Any]) -> None:
    where = (releases.c.model == event.data.model) & (releases.c.version == event.data.version)
    await uow.execute(update(releases).where(where).values(state="withdrawn"))


async def _contributors(event: Envelope[ContributorsWithdrew], uow: UnitOfWork[Any]) -> None:
    """Who left only grows, in whatever order it is told."""
    said = event.data
    where = (releases.c.model == said.model) & (releases.c.version == said.version)
    for row in await uow.all(select(releases.c.release, releases.c.withdrawn).where(where)):
        left = sorted({*(row.withdrawn or ()), *said.withdrawn})
        await uow.execute(update(releases).where(releases.c.release == row.release).values(withdrawn=left))
    log("edge.model.contributors_withdrew", level=30, model=said.model, version=said.version)


async def _emergency(event: Envelope[Any], uow: UnitOfWork[Any]) -> None:
    """Somebody has, or had, emergency access to this hospital's data at the platform: said here too, and recorded for its own auditors."""
    said = event.data
    kind = type(said).__name__.removeprefix("Emergency").lower()
    log(f"edge.emergency_{kind}", level=50, emergency=said.emergency)
    detail: dict[str, str | int | bool] = {"state": kind}
    if isinstance(said, EmergencyOpened):
        detail |= {"reason": said.reason, "person": said.person, "expires": said.expires.isoformat()}
    elif isinstance(said, EmergencyReviewed):
        detail["justified"] = said.justified
    uow.audit(AuditEntry("emergency.heard", "E", entities=(Entity("emergency", said.emergency),), detail=detail))


_TABLE: tuple[tuple[type[Event], Handler], ...] = (
    (fed.FederationInvited, _invited),
    (fed.InvitationExpired, _expired),
    (fed.FederationStarted, _started),
    (fed.RoundOpened, _opened),
    (fed.SecureAdvanced, _secured),
    (fed.RoundStored, _stored),
    (fed.RoundVoided, _voided),
    (fed.RoundExtended, _extended),
    (fed.UpdateFlagged, _flagged),
    (fed.UpdateLost, _lost),
    (fed.ModelGone, _gone),
    (fed.FederationWaiting, _waiting),
    (fed.FederationPaused, _paused),
    (fed.FederationResumed, _resumed),
    (fed.FederationRolledBack, _rolled_back),
    (fed.ParticipantWithdrew, _left),
    (fed.ParticipantDropped, _dropped),
    (fed.ParticipantQuarantined, _quarantined),
    (fed.ParticipantReleased, _quarantined),
    (fed.FederationCompleted, _completed),
    (fed.FederationFailed, _failed),
    (ModelReleased, _released),
    (ModelWithdrawn, _withdrawn),
    (ContributorsWithdrew, _contributors),
    (EmergencyOpened, _emergency),
    (EmergencyEnded, _emergency),
    (EmergencyOverdue, _emergency),
    (EmergencyReviewed, _emergency),
)
_STORED_FACT = fed.RoundStored.subject()
TOLD_AGAIN = frozenset((fed.RoundOpened.subject(), fed.SecureAdvanced.subject(), _STORED_FACT))
"""What is taken in without waiting for the disk: the cursor would be lost with it, and nothing leaves for it, and no update is deleted, but
after a durable commit."""
HANDLERS: dict[str, tuple[type[Event], Handler]] = {message.subject(): (message, handler) for message, handler in _TABLE}
