"""A service, and a hospital's node, verifies the programs it has loaded, at its start, every hour and when a list was laid down:
`medmesh.security.programs`.

What is found becomes an audit record when it is found first and when it changes; the log's watcher makes an alert of a bad one. Where
nobody signed a list there is nothing to compare with, and nothing is recorded: the evidence for auditors says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medmesh.errors import Problem
from medmesh.security import programs
from medmesh.security.roster import Roster
from medmesh.store.unit import AuditEntry, Entity
from medmesh.telemetry import log

TICK_SECONDS, EVERY_SECONDS = 20.0, 3600.0
VERB = "program.verify"


class Verification:
    """`look` compares and tells; `admit` is for services that do not start with programs that nobody vouches for."""

    def __init__(self, trust: Path, roster: Callable[[], Roster], unit: Callable[[], Any], *, required: bool) -> None:
        self._path = trust.with_name(programs.NAME)
        self.state: AuditEntry | None = None
        """What the newest look found; None where there is no list, and before the first look."""
        self._roster = roster
        self._unit = unit
        self._required = required
        self._told: tuple[str, ...] = ()
        self._one = asyncio.Lock()
        self._looked: tuple[int, float] | None = None

    async def admit(self) -> None:
        """Before a service takes any message. Raises `Problem` where verified programs are required and these are not; the record of
        it is handed over at the next start at the latest."""
        if self._required and (problem := await self._tell()):
            raise problem

    async def tick(self) -> None:
        """Look when a list was laid down, and every hour."""
        try:
            stamp = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            stamp = 0
        if self._looked is None or stamp != self._looked[0] or time.monotonic() - self._looked[1] > EVERY_SECONDS:
            await self.look()
            self._looked = (stamp, time.monotonic())

    async def look(self) -> None:
        """Compare, and record what is new."""
        await self._tell()

    async def _tell(self) -> Problem | None:
        async with self._one:  # looks that come together tell once
            entry, problem = await asyncio.to_thread(self._compare)
            self.state = entry
            if entry is not None and (found := (entry.why, *(entity.digest for entity in entry.entities))) != self._told:
                async with self._unit() as uow:
                    uow.audit(entry)
                self._told = found
                log("programs.verified" if problem is None else "programs.changed", level=20 if problem is None else 40, code=entry.why)
            return problem

    def _compare(self) -> tuple[AuditEntry | None, Problem | None]:
        if not self._path.exists():
            return None, Problem("program.none")
        try:
            verdict = programs.verify(self._path, self._roster(), datetime.now(UTC), programs.loaded())
        except Problem as problem:
            told = problem if problem.code.startswith("program.") else Problem("program.unvouched")
            return AuditEntry(VERB, "E", 8, told.code), told
        about = (Entity("program", verdict.version, digest=verdict.digest),)
        detail: dict[str, str | int | bool] = {"signer": verdict.signer, "changed": len(verdict.changed)}
        if not verdict.changed:
            return AuditEntry(VERB, "E", entities=about, detail=detail), None
        changed = Problem("program.changed")
        return AuditEntry(VERB, "E", 8, changed.code, about, detail={**detail, "first": verdict.changed[0][:200]}), changed
