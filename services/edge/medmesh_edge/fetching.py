"""What a round needs of the platform, fetched and kept while it is of use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medmesh.client import download
from medmesh.client.gateway import Gateway
from medmesh.contracts.federation import RoundOpened
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.embedded import files
from medmesh.errors import Problem
from medmesh.tasks import aside
from medmesh_edge.ports import Site

Tell = Callable[[int, int], None]
"""How many bytes of how many are here."""


def check(plan: Plan, event: RoundOpened) -> None:
    """Raise a `Problem` (`federation.round`) where a round shows more than its plan's models and states have: nothing of it is fetched."""
    from medmesh.federated.aggregation import download_signature  # numpy: not before there is a plan
    from medmesh.federated.codecs import wire_bytes
    from medmesh.learning.weights import MAX_HEADER

    most = MAX_HEADER + max(wire_bytes(plan.signature), wire_bytes(download_signature(plan)))
    if any(ref.bytes > most for ref in _shown(event)):
        raise Problem("federation.round", federation=event.federation, round=event.round, what="bytes")


def _shown(event: RoundOpened) -> list[ObjectRef]:
    shown = (event.base, event.state, event.personal, *(model.weights for model in event.models))
    return [ref for ref in shown if ref is not None]


@dataclass
class Fetched:
    """The model that a round begins with, and what belongs to it beside."""

    site: Site
    gateway: Gateway
    _enclosed: tuple[str, bytes] = ("", b"")

    def enclosed(self, data: bytes) -> None:
        """The model that came with the newest round, until that is worked on: what has not its digest is no round's."""
        self._enclosed = (hashlib.sha256(data).hexdigest(), data)

    async def model(self, event: RoundOpened, tell: Tell) -> Path:
        """The round's model. The one before is kept until then: what did not change since is not fetched again."""
        folder = self.site.layout.cached("models")
        others = sorted((path for path in folder.iterdir() if path.stem != event.base.sha256), key=lambda path: path.stat().st_mtime)
        since = next((path for path in reversed(others) if not path.suffix), None)
        found = folder / event.base.sha256
        (name, data), self._enclosed = self._enclosed, ("", b"")
        if name == event.base.sha256:  # one that is only half written, after a power cut, is fetched
            if since is not None:
                os.replace(since, found)
            await aside(len(data), partial(files.write_over, found, data))
        else:
            await self._download(event.base, folder, since=since, progress=tell)
        for path in others:
            path.unlink(missing_ok=True)
        return found

    async def beside(self, ref: ObjectRef) -> Path:
        """What a round shows beside its model: what the algorithm remembers, the models to evaluate."""
        return await self._download(ref, self.site.layout.cached("round"))

    def forget(self, event: RoundOpened) -> None:
        """What rounds before this one showed beside their models goes: each is as large as a model."""
        needed = {ref.sha256 for ref in _shown(event)}
        for path in self.site.layout.cached("round").iterdir():
            if path.stem not in needed:
                path.unlink(missing_ok=True)

    async def _download(self, ref: ObjectRef, folder: Path, **how: Any) -> Path:
        try:
            return await download(self.gateway, ref, folder / ref.sha256, **how)
        except Problem as problem:
            if problem.code != "objects.missing":
                raise
            # What the platform names and has lost it makes again (decision 0130): tried until the round is over, and nobody's failure.
            raise Problem("request.failed") from problem
