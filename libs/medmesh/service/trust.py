"""Whom this process believes: the trust bundle's file, and the node certificates that were revoked since it was written.

Governance keeps the list of revoked certificates. Every service asks for it at its start, every few seconds, and at once when
`NodeRevoked` passes by; what it knew last lies in its state folder, so that neither a restart nor an absent governance brings
a revoked node back.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from medmesh.contracts.governance import ListRevocations, Revocations
from medmesh.embedded import files
from medmesh.errors import Problem
from medmesh.security.tokens import TrustBundle
from medmesh.telemetry import log

EVERY_SECONDS = 20.0
STALE_SECONDS = 60.0
"""A list that could not be asked for again for so long is said to be old: a revocation may be unknown here."""


class Trust:
    """The bundle, read again when its file changes, with what was revoked meanwhile."""

    def __init__(self, path: Path, state: Path) -> None:
        self._path = path
        self._kept = state / "revoked.json"
        self._stamp = 0
        self._bundle: TrustBundle | None = None
        self._revoked: frozenset[str] = frozenset()
        with suppress(OSError, ValueError):
            self._revoked = frozenset(json.loads(self._kept.read_text(encoding="utf-8")))
        self.changed: list[Callable[[], None]] = []
        """Called when something more was revoked."""

    def __call__(self) -> TrustBundle:
        stamp = self._path.stat().st_mtime_ns
        if self._bundle is None or stamp != self._stamp:
            self._bundle, self._stamp = self._merged(TrustBundle.load(self._path)), stamp
        return self._bundle

    def _merged(self, bundle: TrustBundle) -> TrustBundle:
        return replace(bundle, revoked=sorted({*bundle.revoked, *self._revoked}))

    def revoke(self, serials: frozenset[str]) -> None:
        """Believe these node certificates no longer."""
        if serials <= self._revoked:
            return
        self._revoked |= serials
        self._bundle = None
        files.write(self._kept, json.dumps(sorted(self._revoked)))
        for call in self.changed:
            call()


class Follower:
    """Keeps the list of a `Trust` up to date. `ask` asks governance."""

    def __init__(self, trust: Trust, ask: Callable[[ListRevocations, type[Revocations]], Awaitable[Revocations]]) -> None:
        self._trust = trust
        self._ask = ask
        self._bell = asyncio.Event()
        self._asked = datetime.now(UTC)

    async def heard(self, _subject: str, _body: bytes) -> None:
        """A node was revoked. What the message says is not believed: governance is asked."""
        self._bell.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._bell.clear()
            try:
                self._trust.revoke(frozenset((await self._ask(ListRevocations(), Revocations)).serials))
                self._asked = datetime.now(UTC)
            except Problem as problem:
                age = (datetime.now(UTC) - self._asked).total_seconds()
                if age > STALE_SECONDS:
                    log("trust.stale", level=30, error=problem, seconds=int(age))
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._bell.wait()
