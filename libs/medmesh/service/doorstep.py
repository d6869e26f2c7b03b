"""Who is refused at a door by HTTP leaves a record, whoever it was.

Somebody whom the role table refuses is named in a record of every refusal. Of somebody who proves nothing, or whose proof is not
believed, one record a minute is kept for each address and reason: a log that anybody can fill from outside is no log. How many more
there were stands in the next one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, NoReturn

from medmesh.errors import Problem
from medmesh.security.access import denial
from medmesh.security.roles import ADMINISTRATORS, Decision
from medmesh.security.tokens import Actor
from medmesh.store.unit import AuditEntry, Context, UnitOfWork

if TYPE_CHECKING:  # a node does without it until somebody asks for its page
    from starlette.requests import Request

EVERY_SECONDS = 60.0
MOST_PAIRS = 10_000
"""Addresses and reasons that are told apart within a minute; those beyond count as one."""
_ELSEWHERE = "many"


@dataclass
class Doorstep:
    """`unit` opens a transaction of the service with a context, or with its own."""

    unit: Callable[..., AbstractAsyncContextManager[UnitOfWork[Any]]]
    networks: Sequence[IPv4Network | IPv6Network] = ()
    """From where administrators may come; everywhere when there is none."""
    refuse: bool = True
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    """(address, code) -> how often since it was recorded last."""
    _told: float = 0.0

    async def denied(self, context: Context, actor: Actor, action: str, decision: Decision) -> NoReturn:
        """Record that somebody was refused; raises what they are told."""
        problem = denial(decision, actor, action)
        async with self.unit(context) as uow:
            uow.audit(AuditEntry("access.denied", "E", outcome=8, why=problem.code, detail={"action": action, "rule": decision.rule}))
        raise problem

    @asynccontextmanager
    async def proving(self, request: Request) -> AsyncIterator[None]:
        """Around finding out who asks: what does not prove it is recorded."""
        try:
            yield
        except Problem as problem:
            await self.unproven(request, problem)
            raise

    async def unproven(self, request: Request, problem: Problem) -> None:
        """Record a request that nobody is known to stand behind, unless one like it was recorded within the minute."""
        if problem.status not in (401, 403) or problem.code == "security.request_replayed":  # that has a record of its own
            return
        address = request.client.host if request.client else ""
        if self._first((address, problem.code)):
            await self._record(address, problem.code, 1)

    async def placed(self, request: Request, context: Context, actor: Actor) -> None:
        """Refuse, or only record, an administrator who comes from an address that is not one of theirs. Raises `Problem`."""
        if not self.networks or not actor.roles & set(ADMINISTRATORS):
            return
        address = request.client.host if request.client else ""
        if any(ip_address(address) in network for network in self.networks):
            return
        problem = Problem("security.address", address=address)
        if self.refuse or self._first((address, actor.text)):
            detail: dict[str, str | int | bool] = {"address": address, "refused": self.refuse}
            async with self.unit(context) as uow:
                uow.audit(AuditEntry("access.elsewhere", "E", 8 if self.refuse else 4, problem.code, detail=detail))
        if self.refuse:
            raise problem

    def _first(self, key: tuple[str, str]) -> bool:
        """Whether it is the first of its kind since a minute; counted."""
        if key not in self._counts and len(self._counts) >= MOST_PAIRS:
            key = (_ELSEWHERE, key[1])
        if key in self._counts:
            self._counts[key] += 1
            return False
        self._counts[key] = 0
        return True

    async def tell(self) -> None:
        """How many more there were; to be called from time to time."""
        if time.monotonic() - self._told < EVERY_SECONDS:
            return
        self._told = time.monotonic()
        counts, self._counts = self._counts, {}
        for (address, code), more in counts.items():
            if more and ":" not in code:  # of an administrator elsewhere one is enough
                self._counts[address, code] = 0
                await self._record(address, code, more)

    async def _record(self, address: str, code: str, times: int) -> None:
        async with self.unit() as uow:
            uow.audit(AuditEntry("access.unproven", "E", outcome=8, why=code, detail={"address": address, "times": times}))
