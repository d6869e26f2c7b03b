"""The rules this process decides by: the platform's own, and those of the site, which governance distributes.

The site's text is what was approved last (`policy.change`). What was known last lies in the state folder, so that neither a restart nor an
absent governance takes a rule away; a file that does not fit is no reason to decide without it, and the service does not start.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from medmesh.contracts.governance import GetPolicy, PolicyView
from medmesh.embedded import files
from medmesh.security.access import Rules, check_site
from medmesh.telemetry import log


class Policies:
    """The rules in force here. `state` is the service's folder."""

    def __init__(self, state: Path) -> None:
        self._kept = state / "policy.json"
        self._number = 0
        self.rules = Rules()
        with suppress(FileNotFoundError):
            kept = json.loads(self._kept.read_text(encoding="utf-8"))
            self._adopt(int(kept["number"]), str(kept["text"]))

    def digest(self) -> str:
        """Of the rules in force."""
        return self.rules.digest

    async def renew(self, ask: Callable[[GetPolicy, type[PolicyView]], Awaitable[PolicyView]]) -> None:
        """Ask governance which policy is in force."""
        found = await ask(GetPolicy(), PolicyView)
        if found.number > self._number:
            self._adopt(found.number, found.text)
            files.write(self._kept, json.dumps({"number": found.number, "text": found.text}))
            log("policy.adopted", number=found.number, digest=self.rules.digest)

    def _adopt(self, number: int, text: str) -> None:
        check_site(text)
        self._number, self.rules = number, Rules(text)
