"""Where the demonstration plays: its folders, people and nodes, and what happened so far."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medmesh.client.approvals import decide
from medmesh.client.gateway import Gateway
from medmesh.contracts.federation import FederationView
from medmesh.demo import source
from medmesh.demo.keeping import Keepers
from medmesh.demo.processes import Process
from medmesh.errors import Problem
from medmesh.learning.package import pack
from medmesh.security.signing import Signer
from medmesh.security.statements import CodeReview, sign

PASSWORD = "Demo-only-Passw0rd!"  # noqa: S105 - of accounts that live for minutes
MODEL = "mri-tumour"
PACKAGE = Path(__file__).parent / "package"
ETHICS = "2026-LL-001"
"""What the invented ethics committee approved."""
ROUNDS, STEPS, BATCH, RATE = 8, 24, 32, "0.02"
LEASE = 6
Say = Callable[[str, str], None]


@dataclass
class Stage:
    """What happened, for the report."""

    folder: Path
    say: Say
    images: int = 1400
    seed: int = 7
    began: float = field(default_factory=time.monotonic)
    summary: dict[str, Any] = field(default_factory=dict)
    timeline: list[dict[str, Any]] = field(default_factory=list)
    people: dict[str, Gateway] = field(default_factory=dict)
    nodes: dict[str, Process] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    """What else runs beside the platform."""
    witnesses: dict[str, str] = field(default_factory=dict)
    """Where each answers."""
    view: FederationView | None = None
    proof: dict[str, Any] = field(default_factory=dict)
    canaries: source.Canaries = field(init=False)
    choice: dict[str, Any] = field(default_factory=dict)
    """What the checker drew: whom and when to kill, which record to alter."""
    urls: dict[str, str] = field(default_factory=dict)
    ca: Path = field(init=False)
    log_key: str = ""
    keepers: Keepers = field(init=False)
    approver: Signer = field(default_factory=lambda: Signer.create("person:wu@platform"))
    """Wu's own signing key."""
    reviewer: Signer = field(default_factory=lambda: Signer.create("person:han@platform"))
    """Of the second person who reads code, beside wu."""

    def reviews(self, package: Path) -> list[str]:
        """What both sign of a package's code, as `medmesh package review` does; nothing where there is none."""
        read = pack(package)
        said = CodeReview(made=datetime.now(UTC), package=read.digest)
        return [sign(said, one) for one in (self.approver, self.reviewer)] if read.manifest.custom else []

    @property
    def data(self) -> Path:
        """The platform's folder."""
        return self.folder / "platform"

    @property
    def policy(self) -> Path:
        """What the auditor demands of the log: its key, and witnesses (C2SP tlog-policy)."""
        return self.folder / "witnesses.policy"

    def happened(self, what: str, **more: Any) -> None:
        """Put something on the timeline."""
        self.timeline.append({"seconds": round(time.monotonic() - self.began, 1), "what": what, **more})

    async def until(self, what: str, ready: Callable[[], Awaitable[Any]], seconds: float = 180) -> Any:
        """Wait for something to become true. Raises `Problem` saying what did not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(Problem):
                if found := await ready():
                    return found
            await asyncio.sleep(0.25)
        raise Problem("demo.never", what=what, seconds=int(seconds))

    async def approve(self, action: str, count: int = 1) -> None:
        """A second person looks at what is open and approves it, signed with a key of her own."""

        async def open_ones() -> list[Any]:
            found = (await self.people["wu"].request("GET", "/v1/approvals", query={"state": "open"}))["approvals"]
            mine = [approval for approval in found if approval["action"] == action]
            return mine if len(mine) >= count else []

        for approval in await self.until(f"{count} open approvals of {action}", open_ones):
            await decide(self.people["wu"], approval["approval"], self.approver)
