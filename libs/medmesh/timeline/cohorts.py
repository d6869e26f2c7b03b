"""Cohorts by disease: a saved, versioned, hashed question over code sets, answered as (subject, index time, window, label).

What makes an answer free of leakage: an event that is known to the day alone counts from the day's end; what may be looked at ends with
`prediction_time`; an outcome counts only if it begins after that, and whoever had it before is out; and somebody counts as without the
outcome only who was still seen when the window of the outcome ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy import insert, or_, select

from medmesh.canonical import canonical, digest, parse
from medmesh.contracts.ingestion import SMALL_CELL
from medmesh.errors import Problem
from medmesh.store.unit import UnitOfWork
from medmesh.timeline.codes import spell
from medmesh.timeline.events import BIRTH, Event, end_of
from medmesh.timeline.identity import places
from medmesh.timeline.records import Usable, Vault, stream
from medmesh.timeline.tables import cohorts, events
from medmesh.timeline.terms import confirmed, meaning

YEAR = timedelta(days=365.25)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CodeSet(_Strict):
    """Codes of a kind (DIAGNOSIS, LAB, ...) and of systems, each with everything below it: `I21` is I21.0 and I21.900 also; `without` takes
    some out again. `events` are whole codes, for what has no system (MEDS_DEATH)."""

    kind: str = "DIAGNOSIS"
    systems: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    events: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _says_something(self) -> CodeSet:
        if not (self.events or (self.systems and self.codes)):
            raise ValueError("a code set has systems and codes, or events")
        return self

    def prefixes(self) -> list[str]:
        """What the codes of events begin with."""
        return [f"{self.kind}//{system}//{spell(code, system)}" for system in self.systems for code in self.codes]

    def has(self, code: str) -> bool:
        """Whether an event's code is in it."""
        if code in self.events:
            return True
        out = (f"{self.kind}//{system}//{spell(one, system)}" for system in self.systems for one in self.without)
        return code.startswith(tuple(self.prefixes())) and not code.startswith(tuple(out))


class Outcome(_Strict):
    """What is to be foretold: any of `codes` within so many days after the prediction."""

    codes: CodeSet
    within_days: int = Field(gt=0, le=36_500)
    prior: Literal["leave_out", "ignore"] = "leave_out"
    """What becomes of whoever had it before: out, or as if it had not been."""


class Definition(_Strict):
    """The question. Times in whole days and hours, so that one question has one hash."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    index: CodeSet
    occurrence: Literal["first", "all"] = "first"
    include: tuple[CodeSet, ...] = ()
    """Each must have happened by the time of prediction."""
    exclude: tuple[CodeSet, ...] = ()
    """None may have happened by then."""
    predict_after_hours: int = Field(default=0, ge=0)
    """How long after the index event the prediction is made."""
    observation_days: int | None = Field(default=None, gt=0)
    """How far back from then may be looked; everything by default."""
    history_days: int = Field(default=0, ge=0)
    """How long before the index event the patient must have been known."""
    minimum_age: int | None = Field(default=None, ge=0)
    maximum_age: int | None = Field(default=None, ge=0)
    """In years, at the index event; whose age is not known is out where one is given."""
    outcome: Outcome | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest(self.model_dump(mode="json"))


def read(text: bytes | str) -> Definition:
    """A definition from JSON. Raises `Problem` (`timeline.cohort_invalid`)."""
    try:
        return Definition.model_validate(parse(text))
    except ValidationError as error:
        reason = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False, include_url=False)
        )
        raise Problem("timeline.cohort_invalid", reason=reason) from None
    except ValueError:
        raise Problem("timeline.cohort_invalid", reason="no JSON") from None


class Member(NamedTuple):
    """A sample: what may be looked at is `start` <= time <= `prediction_time` (from the beginning where `start` is None), and static
    events. `label` is None where there is no outcome to foretell, or nobody knows (`Answer.unknown`)."""

    subject_id: int
    index_time: datetime
    start: datetime | None
    prediction_time: datetime
    label: bool | None
    label_time: datetime | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The members, and why others that had the index event are none."""

    definition: Definition
    version: int
    members: tuple[Member, ...]
    left_out: Counter[str]

    @property
    def digest(self) -> str:
        """SHA-256 over the members: the same answer is the same digest."""
        return digest([[str(part) for part in member] for member in self.members])

    def told(self) -> dict[str, Any]:
        """What may leave the hospital: counts, small ones hidden, and with one part all, since the others would tell it."""
        people = len({one.subject_id for one in self.members})
        positive = sum(one.label is True for one in self.members)
        parts = {"positive": positive, "negative": sum(one.label is False for one in self.members)}
        parts |= {f"without {reason}": count for reason, count in sorted(self.left_out.items())}
        small = any(0 < count < SMALL_CELL for count in (people, *parts.values()))
        hidden: dict[str, int | None] = dict.fromkeys(parts) if small else dict(parts)
        return {
            "cohort": self.definition.name,
            "version": self.version,
            "definition": self.definition.digest,
            "patients": None if people < SMALL_CELL else people,
            **hidden,
        }


def judged(definition: Definition, subject: int, timeline: Sequence[Event], left_out: Counter[str]) -> Iterator[Member]:
    """The samples of one person, whose events are in order; why there is none is counted."""
    timed = [(one, one.time, end_of(one.time, one.time_precision)) for one in timeline if one.time is not None and one.code != BIRTH]
    born = next((one.time for one in timeline if one.code == BIRTH and one.time), None)
    found = [(time, known) for one, time, known in timed if definition.index.has(one.code)]
    for time, known in found[:1] if definition.occurrence == "first" else found:
        at = known + timedelta(hours=definition.predict_after_hours)
        reason, label, label_time = _outcome(definition, timed, at)
        reason = _why_not(definition, timed, time, at, born) or reason
        if reason:
            left_out[reason] += 1
            continue
        start = None if definition.observation_days is None else at - timedelta(days=definition.observation_days)
        yield Member(subject, time, start, at, label, label_time)


_Timed = Sequence[tuple[Event, datetime, datetime]]


def _why_not(definition: Definition, timed: _Timed, index: datetime, at: datetime, born: datetime | None) -> str:
    """Why somebody is no member; empty for who is."""
    before = [one for one, _, known in timed if known <= at]
    if definition.minimum_age is not None or definition.maximum_age is not None:
        years = None if born is None else (index - born) / YEAR
        if years is None or not (definition.minimum_age or 0) <= years < (definition.maximum_age or 1000) + 1:
            return "age"
    if definition.history_days and (not timed or index - timed[0][1] < timedelta(days=definition.history_days)):
        return "history"
    if not all(any(wanted.has(one.code) for one in before) for wanted in definition.include):
        return "inclusion"
    # What may have happened by then, to the day, is taken to have.
    if any(unwanted.has(one.code) for unwanted in definition.exclude for one, time, _ in timed if time <= at):
        return "exclusion"
    return ""


def _outcome(definition: Definition, timed: _Timed, at: datetime) -> tuple[str, bool | None, datetime | None]:
    """(why the person is left out, label, when the outcome was)."""
    wanted = definition.outcome
    if wanted is None:
        return "", None, None
    happened = [time for one, time, _ in timed if wanted.codes.has(one.code)]
    if wanted.prior == "leave_out" and any(time <= at for time in happened):
        return "prior outcome", None, None
    until = at + timedelta(days=wanted.within_days)
    after = next((time for time in happened if time > at), None)
    if after is not None and after <= until:
        return "", True, after
    if not timed or timed[-1][1] < until:
        return "follow-up", None, None
    return "", False, None


async def save(uow: UnitOfWork[Any], project: str, definition: Definition) -> int:
    """Keep a definition; answers its version: the one it has already where it is the newest's, else the next."""
    newest = await _newest(uow, project, definition.name)
    if newest is not None and newest.digest == definition.digest:
        return int(newest.version)
    version = 1 if newest is None else int(newest.version) + 1
    values = {"definition": canonical(definition.model_dump(mode="json")).decode(), "digest": definition.digest, "at": uow.now}
    await uow.execute(insert(cohorts).values(project=project, name=definition.name, version=version, **values))
    return version


async def load(uow: UnitOfWork[Any], project: str, name: str, version: int | None = None) -> tuple[Definition, int]:
    """A definition and its version, the newest by default. Raises `Problem` (`timeline.no_cohort`)."""
    found = await _newest(uow, project, name, version)
    if found is None:
        raise Problem("timeline.no_cohort", name=name)
    return read(found.definition), int(found.version)


async def _newest(uow: UnitOfWork[Any], project: str, name: str, version: int | None = None) -> Any:
    asked = select(cohorts).where(cohorts.c.project == project, cohorts.c.name == name).order_by(cohorts.c.version.desc()).limit(1)
    return await uow.first(asked if version is None else asked.where(cohorts.c.version == version))


async def candidates(uow: UnitOfWork[Any], project: str, codes: CodeSet) -> list[int]:
    """Everybody with an event whose code may be in the set."""
    conditions = [events.c.code.startswith(prefix, autoescape=True) for prefix in codes.prefixes()]
    conditions += [events.c.code.in_(codes.events)] if codes.events else []
    known = await places(uow)
    if local := meaning(await confirmed(uow, project), [*codes.prefixes(), *codes.events]):
        conditions.append(events.c.code.in_(local))
    rows = await uow.all(select(events.c.subject_id).where(events.c.project == project, or_(*conditions)).distinct())
    return sorted({known[row.subject_id].subject_id if row.subject_id in known else row.subject_id for row in rows})


async def answer(
    uow: UnitOfWork[Any], project: str, definition: Definition, version: int, vault: Vault, usable: Usable = lambda patient, consent: True
) -> Answer:
    """Ask it, of what is usable today. No text is opened."""
    wanted = await candidates(uow, project, definition.index)
    members: list[Member] = []
    left_out: Counter[str] = Counter()
    people: AsyncIterator[tuple[int, list[Event]]] = stream(uow, project, vault, only=wanted, texts=False, usable=usable)
    async for subject, timeline in people:
        members += judged(definition, subject, timeline, left_out)
    return Answer(definition, version, tuple(members), left_out)
