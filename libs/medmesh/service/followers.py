"""What every service keeps up to date by asking governance: at its start, every few seconds, and at once when a fact passes by that says
there is something new. What the fact says is not believed: it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

from medmesh.errors import Problem
from medmesh.telemetry import log

EVERY_SECONDS = 20.0
STALE_SECONDS = 60.0
"""What could not be asked for again for so long is said to be old: something may be unknown here."""


class Follower:
    """Calls `renew`, which asks and keeps. `name` is for the log."""

    def __init__(self, name: str, renew: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._renew = renew
        self._bell = asyncio.Event()
        self._asked = datetime.now(UTC)

    async def heard(self, _subject: str, _body: bytes) -> None:
        """There is something new."""
        self._bell.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._bell.clear()
            try:
                await self._renew()
                self._asked = datetime.now(UTC)
            except Problem as problem:
                age = (datetime.now(UTC) - self._asked).total_seconds()
                if age > STALE_SECONDS:
                    log(f"{self._name}.stale", level=30, error=problem, seconds=int(age))
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._bell.wait()
