"""A node's interpreters, and what is installed for them as they say themselves: remembered until something of that may have changed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

from medmesh.embedded.files import SETTLED_NS
from medmesh.learning.environment import Environment, measure
from medmesh_edge.settings import Layout, Settings

LOOK_SECONDS = 10.0
"""How often a running node looks whether anything was installed."""

_Stamps = tuple[tuple[int, ...], ...]


def _stamps(places: Iterable[str]) -> _Stamps:
    return tuple(_stamp(place) for place in places)


def _stamp(place: str) -> tuple[int, ...]:
    try:
        found = os.stat(place)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@dataclass
class Interpreters:
    """Of a node's interpreters, each asked when it is needed first, and again once something of it has another time of change."""

    layout: Layout
    settings: Settings
    ask: Callable[[Path | None, Path, str | None], Awaitable[Environment]] = measure
    mark: int = 0
    """Another one since an interpreter that was asked before answered something else: what a worker was started with may be gone."""
    _known: dict[Path | None, tuple[Environment, _Stamps]] = field(default_factory=dict)
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _look_at: float = 0.0

    async def of(self, framework: str) -> Environment:
        """What a package for a framework would run in now. Raises `Problem`."""
        python = self.settings.python.get(framework)
        async with self._asking:
            before, stamps = self._known.get(python, (None, ()))
            if before is not None and stamps == _stamps(before.places):
                return before
            began = time.time_ns()
            found = await self.ask(python, self.layout.work / f"environment-{token_hex(4)}", self.settings.worker_account)
            stamps = _stamps(found.places)
            # What changed a moment ago, or meanwhile, may be changing still: what was found is not kept.
            settled = all(began - SETTLED_NS > max(stamp[2:], default=0) for stamp in stamps)
            self._known[python] = found, stamps if settled else ((),)
            self.mark += before is not None and before.digest != found.digest
            return found

    async def look(self) -> None:
        """Ask those that may be needed, in turn and from time to time. Raises `Problem`."""
        if (now := time.monotonic()) >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            for framework in self.frameworks():
                await self.of(framework)

    def frameworks(self) -> tuple[str, ...]:
        """Those that the hospital's settings name; one without a name, for our own interpreter, where they name none."""
        return tuple(dict.fromkeys((*self.settings.frameworks, *self.settings.python))) or ("",)
