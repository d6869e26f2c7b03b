"""A federation in pages: hospitals, then rounds from the newest on with what each hospital answered, as many as fit into a message.

A page ends at a hospital or within a round, after one hospital's answer; its cursor names that place (keyset), so that rounds which are
opened meanwhile shift nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from sqlalchemy import select, tuple_

from medmesh.contracts.federation import AnswerView, EvaluationView, ParticipantView, RoundView, SumView
from medmesh.contracts.message import MAX_MESSAGE_BYTES
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.store.unit import UnitOfWork
from medmesh_federation.evaluation import GLOBAL
from medmesh_federation.ports import Ports
from medmesh_federation.quarantine import release_digest
from medmesh_federation.tables import answers, flags, links, participants, rounds

ROOM = MAX_MESSAGE_BYTES - 4096
"""Bytes for what is listed; the rest is the message's own."""
_MOST_ROUNDS, _MOST_ANSWERS = 120, 700
"""More of either than this do not fit, however little they say."""
_CURSOR = re.compile(r"p:([a-z0-9-]{1,63})|r:(\d{1,9})\.(\d{1,9}):([a-z0-9-]{0,63})")


Wrong = Mapping[tuple[int, int, str], Any]
"""(round, attempt, hospital) to what looked wrong with its answer."""


@dataclass
class Page:
    """What was put into it, and where the next begins."""

    room: int
    participants: list[ParticipantView] = field(default_factory=list)
    rounds: list[RoundView] = field(default_factory=list)
    evaluation: list[EvaluationView] = field(default_factory=list)
    more: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it: then the next goes in, so that every page gets on."""
        return not self.participants and not self.rounds

    def takes(self, *views: Any, forced: bool = False) -> bool:
        """Whether these fit, or have to."""
        size = sum(len(view.model_dump_json()) + 1 for view in views)
        if size > self.room and not forced:
            return False
        self.room -= size
        return True

    def listed(self) -> dict[str, Any]:
        """As it is told: rounds in their order."""
        return {
            "participants": tuple(self.participants),
            "rounds": tuple(reversed(self.rounds)),
            "evaluation": tuple(self.evaluation),
            "more": self.more,
        }


async def page(uow: UnitOfWork[Ports], row: Any, plan: Plan, *, after: str = "", room: int = ROOM) -> Page:
    """Of a federation's row. Raises `Problem` (`request.invalid`) for a cursor that is none."""
    found = _CURSOR.fullmatch(after)
    if after and found is None:
        raise Problem("request.invalid", reason="after: what a page before it ended with")
    made = Page(room)
    if found is None or found[1]:
        if not await _participants(uow, row, plan, made, found[1] if found else ""):
            return made
        await _rounds(uow, row, made, None, f"p:{made.participants[-1].hospital}" if made.participants else after)
    else:
        await _rounds(uow, row, made, (int(found[2]), int(found[3]), found[4]), after)
    return made


async def _participants(uow: UnitOfWork[Ports], row: Any, plan: Plan, made: Page, after: str) -> bool:
    """Whether all of them fitted."""
    where = (participants.c.federation == row.federation) & (participants.c.hospital > after)
    leases, progress = uow.ports.leases, uow.ports.progress
    given = select(links.c.hospital, links.c.state, links.c.expires).where(links.c.federation == row.federation, links.c.hospital > after)
    handed = {one.hospital: "expired" if one.state == "waiting" and one.expires < uow.now else one.state for one in await uow.all(given)}
    for p in await uow.all(select(participants).where(where).order_by(participants.c.hospital)):
        view = ParticipantView(
            hospital=p.hospital,
            state=p.state,
            online=leases.online(p.hospital, plan.lease_seconds),
            drops=p.drops,
            reason=p.reason,
            release=release_digest(row.federation, row.plan_hash, p.hospital, p.quarantines) if p.state == "quarantined" else None,
            progress=progress.of(row.federation, p.hospital),
            small_cell=p.small_cell if uow.actor.kind != "hospital" or uow.actor.id == p.hospital else 0,
            link=handed.get(p.hospital, "") if uow.actor.text == row.initiator or uow.actor.id == p.hospital else "",
        )
        if not made.takes(view, forced=made.empty):
            made.more = f"p:{made.participants[-1].hospital}"
            return False
        made.participants.append(view)
    return True


async def _rounds(uow: UnitOfWork[Ports], row: Any, made: Page, after: tuple[int, int, str] | None, before: str) -> None:
    theirs, place = rounds.c.federation == row.federation, tuple_(rounds.c.round, rounds.c.attempt)
    if after is not None:
        theirs &= place <= tuple_(*after[:2]) if after[2] else place < tuple_(*after[:2])
    newest: tuple[Any, ...] = (rounds.c.round.desc(), rounds.c.attempt.desc())
    found = await uow.all(select(rounds).where(theirs).order_by(*newest).limit(_MOST_ROUNDS))
    if not found:
        return
    given: dict[tuple[int, int], list[Any]] = {}
    spot = tuple_(answers.c.round, answers.c.attempt)
    within = (answers.c.federation == row.federation) & (spot <= tuple_(found[0].round, found[0].attempt))
    if after is not None and after[2]:
        within &= (spot < tuple_(*after[:2])) | (answers.c.hospital > after[2])
    newest = (answers.c.round.desc(), answers.c.attempt.desc(), answers.c.hospital)
    for a in await uow.all(select(answers).where(within).order_by(*newest).limit(_MOST_ANSWERS)):
        given.setdefault((a.round, a.attempt), []).append(a)
    hospital = uow.actor.id if uow.actor.kind == "hospital" else None
    theirs = (flags.c.federation == row.federation) & flags.c.round.between(found[-1].round, found[0].round)
    wrong = {(f.round, f.attempt, f.hospital): f for f in await uow.all(select(flags).where(theirs))}
    for r in found:
        if not _round(row, r, given.get((r.round, r.attempt), ()), wrong, hospital, made, before):
            return
        before = f"r:{r.round}.{r.attempt}:"
    # As many rounds as were looked up: what comes after is looked up with the next page.
    made.more = before if len(found) == _MOST_ROUNDS else ""


def _round(row: Any, r: Any, given: Sequence[Any], wrong: Wrong, hospital: str | None, made: Page, before: str) -> bool:
    """Put a round in with as many answers as fit; whether all did."""
    names = {m["weights"]["sha256"]: m["name"] for m in r.models}
    if row.state == "completed" and row.model["sha256"] in names:
        names[row.model["sha256"]] = GLOBAL  # of two the one that was kept
    # Of a sum, a hospital that takes its own part away learns what few others have.
    summed = r.summed if r.summed and hospital is None else None
    view = _round_view(r, summed)
    sums = summed["results"] if summed and before.endswith(":") | before.startswith("p") else {}  # once: not where a round goes on
    told = [EvaluationView(hospital="", name=names.get(m, m), counts=c) for m, c in sums.items() if m != "base"]
    if not made.takes(view, *told, forced=made.empty):
        made.more = before
        return False
    kept: list[AnswerView] = []
    for a in given:
        answer, results = _answer_view(a, wrong.get((a.round, a.attempt, a.hospital)), hospital in (None, a.hospital))
        if r.state in ("void", "skipped"):
            results = {}  # the next attempt asks again: what was counted for this one is no result
        theirs = [EvaluationView(hospital=a.hospital, name=names.get(m, m), counts=c) for m, c in sorted(results.items())]
        if not made.takes(answer, *theirs, forced=made.empty and not kept):
            made.more = f"r:{r.round}.{r.attempt}:{kept[-1].hospital}" if kept else before
            break
        kept.append(answer)
        told += theirs
    if kept or not given:
        made.rounds.append(view.model_copy(update={"answers": tuple(kept)}))
        made.evaluation += told
    return not made.more


def _answer_view(a: Any, wrong: Any, mine: bool) -> tuple[AnswerView, dict[str, Any]]:
    """An answer, and its counts by model; a hospital sees of the others' nothing but that they answered."""
    results = dict(a.results or {}) if mine and not a.late else {}
    view = AnswerView(
        hospital=a.hospital,
        samples=a.samples if mine else 0,
        late=a.late,
        counted=a.counted,
        bytes=a.update["bytes"] if a.update else 0,
        metrics=a.metrics if mine else {},
        counts=results.pop("base", None),
        milliseconds=a.milliseconds if mine else {},
        verdict=a.verdict,
        **_flagged(wrong, mine) if wrong is not None else {},
    )
    return view, results


def _flagged(row: Any, mine: bool) -> dict[str, Any]:
    """What was found wrong with an answer; in figures for those who may see its own."""
    figures = {name: float(getattr(row, name)) for name in ("ratio", "cosine")} if mine else {}
    return {"flags": row.flags, "excluded": row.excluded, **{name: value for name, value in figures.items() if isfinite(value)}}


def _round_view(row: Any, summed: dict[str, Any] | None) -> RoundView:
    return RoundView(
        round=row.round,
        attempt=row.attempt,
        kind=row.kind,
        state=row.state,
        opened=row.opened_at,
        deadline=row.deadline,
        closed=row.closed_at,
        base=row.base,
        model=row.model,
        chain=row.chain,
        answers=(),
        why=row.why,
        aggregate_milliseconds=row.aggregate_milliseconds,
        undone=row.undone,
        sum=SumView(samples=summed["samples"], loss=summed["loss"], counts=summed["results"].get("base")) if summed else None,
    )
