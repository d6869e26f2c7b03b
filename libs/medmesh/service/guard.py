"""Who gets at which object: one guard in front of every handler of commands and queries, and of the doors of HTTP.

A message says which objects it is about (`Message.OBJECTS`). The guard looks each one up, here or at the service that owns it, and decides
(`medmesh.security.access.decide`) before the handler runs and in the handler's own transaction. An object that is not there and one that
the actor may not know of are answered alike. Lists go through `Access.visible`; what a command makes gets a label (`labels.made`). A
handler that forgets either is stopped.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Row, Select

from medmesh.bus.declarations import Handlers
from medmesh.contracts.labels import FILES, OWNERS, DescribeObject, FindFile, ObjectView
from medmesh.contracts.message import Message, Names, Query
from medmesh.errors import Problem
from medmesh.security.access import HIDDEN, NO_OBJECT, Object, Rules, decide, denial
from medmesh.security.labels import INTERNAL, read
from medmesh.security.roles import Decision
from medmesh.security.roster import Roster
from medmesh.security.tokens import Actor, TrustBundle
from medmesh.service import files, labels
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork

_FIELD = re.compile(r"{([\w.]+)}")
PAGE = 500
FILE = "file"
"""The kind of what is stored under a SHA-256, whatever it is a part of."""

Ask = Callable[[Query], Awaitable[Any]]
"""Another service's answer."""


class Refusal(Problem):
    """Refused by the guard: what is told may say less than what is recorded."""

    def __init__(self, told: Problem, decision: Decision, action: str, thing: Object) -> None:
        super().__init__(told.code, **told.params)
        self.decision = decision
        self.entry = refusal(decision, told.code, action, thing)


def refusal(decision: Decision, why: str, action: str, thing: Object = NO_OBJECT) -> AuditEntry:
    """The record of a refused access."""
    entities = () if thing is NO_OBJECT else (Entity(thing.kind, thing.id[:200]),)
    return AuditEntry("access.denied", "E", outcome=8, why=why, entities=entities, detail={"action": action, "rule": decision.rule})


@dataclass
class Access:
    """What a message may see, and what was found of it. A handler has it as `uow.access`."""

    guard: Guard
    actor: Actor | None
    action: str
    at: datetime
    things: list[Object] = field(default_factory=list)
    """The objects the message is about."""
    sources: list[Object] = field(default_factory=list)
    """Those among them from which something is made."""
    made: set[str] = field(default_factory=set)
    listed: bool = False

    def trust(self) -> TrustBundle:
        """Whom this service believes."""
        return self.guard.trust()

    def roster(self) -> Roster:
        """Whose own signatures count. Raises `Problem`."""
        return self.guard.roster()

    def may(self, thing: Object, action: str = "") -> Decision:
        """What is decided about an object."""
        assert self.actor is not None
        return decide(self.actor, action or self.action, self.at, thing, self.guard.rules())

    async def enter(self, uow: UnitOfWork[Any], kind: str, id_: str) -> Decision:
        """Let the actor at one object, for a door that learns of it only now. Raises `Refusal`, or what is told of an unknown one."""
        thing = await self.guard.find(uow, kind, id_)
        if thing is None:
            raise Object(kind, id_).unknown
        return self.let_in(thing, kind, id_, self.action)

    def let_in(self, thing: Object, kind: str, id_: str, action: str) -> Decision:
        """The decision about an object that was asked for as `kind` and `id_`. Raises `Refusal`."""
        assert self.actor is not None
        decision = self.may(thing, action)
        if decision.allowed:
            return decision
        asked = Object(kind, id_) if decision.problem == HIDDEN else thing
        raise Refusal(denial(decision, self.actor, action, asked), decision, action, thing)

    async def read_file(self, uow: UnitOfWork[Any], sha256: str, action: str) -> list[Object]:
        """The objects a stored file is of that the actor may see; none for one that is of no labelled object. Raises `Refusal` when it is
        only of others."""
        things = await self.guard.files(uow, sha256)
        allowed = [thing for thing in things if self.may(thing, action).allowed]
        if things and not allowed:
            decision = self.may(things[0], action)
            told = Problem("objects.missing", sha256=sha256)  # as of one that is not there
            raise Refusal(told, replace(decision, problem=HIDDEN), action, things[0])
        return allowed

    async def visible(
        self, uow: UnitOfWork[Any], kind: str, wanted: Select[Any], key: Callable[[Row[Any]], str], limit: int
    ) -> list[tuple[Row[Any], Object]]:
        """The first `limit` rows whose object the actor may see, each with it. `wanted` has an order; `key` tells a row's object."""
        self.listed = True
        found: list[tuple[Row[Any], Object]] = []
        offset = 0
        while len(found) < limit:
            rows = await uow.all(wanted.offset(offset).limit(PAGE))
            things = await labels.several(uow, kind, {key(row) for row in rows})
            found += [(row, things[key(row)]) for row in rows if key(row) in things and self.may(things[key(row)]).allowed]
            if len(rows) < PAGE:
                break
            offset += PAGE
        return found[:limit]


def nobody() -> Roster:
    """The roster of a process that has none. Raises `Problem`."""
    raise Problem("roster.none")


class Guard:
    """See the module. `rules` are those in force now; `ask` asks another service on this service's behalf."""

    def __init__(
        self,
        handlers: Handlers,
        rules: Callable[[], Rules],
        trust: Callable[[], TrustBundle],
        ask: Ask,
        roster: Callable[[], Roster] = nobody,
    ) -> None:
        self.handlers = handlers
        self.rules = rules
        self.trust = trust
        self.roster = roster
        self._ask = ask

    def open(self, actor: Actor | None, action: str | None, at: datetime) -> Access:
        """The access of a message, before anything was looked up."""
        return Access(self, actor, action or "", at)

    async def admit(self, access: Access, message: Message, uow: UnitOfWork[Any]) -> Decision | None:
        """Let a message in, or raise `Refusal`. Answers the decision that is recorded: the one about its own object, or
        else about its first source."""
        if access.actor is None or not message.OBJECTS:
            return None
        counts: Decision | None = None
        for names, id_ in named(message):
            if names.kind == FILE:
                access.sources += await access.read_file(uow, id_, names.action)
                continue
            # Those that share a transaction are mostly about the same.
            thing = await uow.once(self.find, names.kind, id_)
            if thing is None:
                if names.new:
                    continue
                raise Object(names.kind, id_).unknown
            action = names.action or access.action
            decision = access.let_in(thing, names.kind, id_, action)
            access.things.append(thing)
            if names.action or message.MAKES:
                access.sources.append(thing)
            if counts is None or (not names.action and thing.labelled):
                counts = decision
        return counts

    async def files(self, uow: UnitOfWork[Any], sha256: str) -> list[Object]:
        """The labelled objects that a stored file is a part of, at every service that has such."""
        if self.handlers.service in FILES:
            here = await files.whose(uow, sha256)
        else:
            here = []
        asked = [FindFile(service=service, sha256=sha256) for service in FILES if service != self.handlers.service]
        answers = await asyncio.gather(*map(self._ask, asked))
        return [*here, *(thing_of(view) for answer in answers for view in answer.things)]

    async def find(self, uow: UnitOfWork[Any], kind: str, id_: str) -> Object | None:
        """An object, here or at its owner."""
        here, service, owners = self.handlers, self.handlers.service, OWNERS[kind]
        mine = kind in here.labelled | here.copied
        if (mine or service in owners) and (found := await labels.find(uow, here, kind, id_)) is not None:
            return found
        for owner in () if mine else owners:
            if owner == service:
                continue
            view = await self._ask(DescribeObject(service=owner, kind=kind, id=id_))
            if view.known:
                return thing_of(view)
        return None


def thing_of(view: ObjectView) -> Object:
    """From another service's answer."""
    label = INTERNAL if view.label is None else read(view.label)
    return Object(view.kind, view.id, label, view.label is not None, view.owner, frozenset(view.organisations), view.maker)


def named(message: Message) -> Iterator[tuple[Names, str]]:
    """The objects a message names, by their ids."""
    for names in message.OBJECTS:
        found = [_value(message, path) for path in _FIELD.findall(names.id)]
        if any(value is None for value in found):
            continue
        if len(found) == 1 and isinstance(found[0], tuple):
            yield from ((names, str(one)) for one in found[0])
        else:
            values = iter(found)
            yield names, _FIELD.sub(lambda _: str(next(values)), names.id)  # noqa: B023 - used at once


def _value(message: BaseModel, path: str) -> Any:
    value: Any = message
    for name in path.split("."):
        value = getattr(value, name)
    return value


def finished(message: Message, access: Access, same: bool) -> None:
    """A handler that made something without a label, or listed past the guard, has done nothing."""
    if message.MAKES and message.MAKES not in access.made and not same:
        raise TypeError(f"{message.TYPE} makes a {message.MAKES} and gave it no label")
    if message.LISTS and not access.listed:
        raise TypeError(f"{message.TYPE} lists a {message.LISTS} past the guard")


def with_label(reply: Any, access: Access) -> Any:
    """The reply with its object's label, where it has a place for one."""
    if isinstance(reply, BaseModel) and "label" in type(reply).model_fields and getattr(reply, "label", None) is None:
        thing = next((one for one in access.things if one.labelled), None)
        return reply if thing is None else reply.model_copy(update={"label": thing.label.record})
    return reply
