"""The worker that runs a package's code for a federation: it stays for the next round while it is the right one. Another federation has
another: what code keeps in memory or in its folder would tell one initiator what it saw for the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from medmesh.client.gateway import Gateway
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.learning.host import Worker, worker
from medmesh_edge import code, environments, samples
from medmesh_edge.patients import HOSPITAL
from medmesh_edge.policy import Policy, worker_limits
from medmesh_edge.ports import Site
from medmesh_edge.tables import federations

SPARE_BYTES = 2**30
"""By how much data may grow before their worker is another: it has addresses for so many."""
IDLE_SECONDS = 300.0


@dataclass
class Kept:
    """One worker at most, which `start` starts."""

    site: Site
    gateway: Gateway
    start: Callable[..., AbstractAsyncContextManager[Worker]] = worker
    _stack: AsyncExitStack | None = None
    _worker: Worker | None = None
    environment: str = ""
    """What it runs in, by its digest."""
    _made: tuple[str, str, Policy, int] | None = None
    """The federation and its package, the rules under which it was started, and the mark of what is installed."""
    _believed: Any = None
    """The roster by which its code was found to be allowed."""
    _mapped: int = 0
    _generation: int = 0
    _used: float = 0.0

    async def of(self, package: ObjectRef, plan: Plan, federation: str) -> Worker:
        """The worker of a package for a round, with room for a plan's data. Raises `Problem` where its code may not run here."""
        needed, roster = await samples.size(self.site, plan.data), self.site.roster()
        made = (federation, package.sha256, self.site.policy(), self.site.interpreters.mark)
        fits = self._worker is not None and self._made == made and needed <= self._mapped
        # One whose processor time may end in the middle of this round has its successor do it.
        there = self._worker if fits and self._worker is not None and self._worker.begin() else None
        if there is not None and self._believed == roster:
            return there
        if there is None:
            await self.close()
        read = await code.fetch(self.site, self.gateway, package)
        async with self.site.unit() as uow:
            row = (await uow.execute(select(federations.c.reviews).where(federations.c.federation == federation))).one()
        await code.allowed(self.site, self.gateway, plan, read, row.reviews)
        settings, stack, mapped = self.site.settings, AsyncExitStack(), needed + SPARE_BYTES
        framework = read.manifest.framework(settings.frameworks)
        environment = await environments.allowed(self.site, federation, framework)
        if self.site.interpreters.mark != made[3]:
            return await self.of(package, plan, federation)  # another than when we looked: so is the worker
        self._believed = roster
        if there is not None:
            return there
        opened = await stack.enter_async_context(
            self.start(
                read,
                self.site.layout.work / "worker",
                framework=framework,
                python=settings.python.get(framework),
                silence=settings.worker_silence_seconds,
                # Twice: what it was given before may still be mapped.
                limits=worker_limits(made[2], settings.worker_memory_bytes, 2 * mapped),
                account=settings.worker_account,
                ranks=settings.worker_processes,
            )
        )
        opened.begin()  # what it took to start is no part of the round
        self._stack, self._worker, self._made, self._mapped = stack, opened, made, mapped
        self.environment = environment
        return opened

    def used(self) -> None:
        """It has just done something."""
        self._used = asyncio.get_running_loop().time()

    async def close(self) -> None:
        """End it."""
        stack, self._stack, self._worker = self._stack, None, None
        if stack is not None:
            await stack.aclose()
            await asyncio.to_thread(samples.forget_arrays, self.site)

    async def forget(self) -> None:
        """End it once a patient was forgotten: its arrays may still show the images."""
        if (generation := self.site.keys.versions(HOSPITAL)[-1]) != self._generation:
            await self.close()
            self._generation = generation

    async def rest(self) -> None:
        """One that nobody needed for a while gives its memory back."""
        if self._worker is not None and asyncio.get_running_loop().time() - self._used > IDLE_SECONDS:
            await self.close()
