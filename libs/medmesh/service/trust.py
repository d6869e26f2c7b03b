"""Whom this process believes: the trust bundle's file, and the node certificates that were revoked since it was written.

Governance keeps the list of revoked certificates; every service follows it (`followers`). What it knew last lies in its state folder, so
that neither a restart nor an absent governance brings a revoked node back.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from medmesh.contracts.governance import ListRevocations, Revocations
from medmesh.embedded import files
from medmesh.security.tokens import TrustBundle


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

    async def renew(self, ask: Callable[[ListRevocations, type[Revocations]], Awaitable[Revocations]]) -> None:
        """Ask governance what was revoked."""
        self.revoke(frozenset((await ask(ListRevocations(), Revocations)).serials))
