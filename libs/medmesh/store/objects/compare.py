"""Which pieces of an object are what an older one had at the same place: frozen layers need not travel again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from medmesh.errors import Problem
from medmesh.store.objects.directory import DirectoryStore
from medmesh.store.objects.port import CHUNK, ObjectStore

_MOST = 256


@dataclass
class Comparing:
    """Compares plain objects of one machine, each pair once for all who ask; of others it says that everything changed."""

    store: ObjectStore
    _known: OrderedDict[tuple[str, str], asyncio.Task[tuple[int, ...]]] = field(default_factory=OrderedDict)

    async def same(self, sha256: str, since: str) -> tuple[int, ...]:
        """The places, in pieces of `CHUNK`. Raises `Problem` (`objects.missing`)."""
        if not isinstance(self.store, DirectoryStore):
            return ()
        pair = (sha256, since)
        if pair not in self._known:
            self._known[pair] = asyncio.create_task(asyncio.to_thread(_compare, self.store, sha256, since))
            while len(self._known) > _MOST:
                self._known.popitem(last=False)
        try:
            return await asyncio.shield(self._known[pair])
        except Problem:
            self._known.pop(pair, None)
            raise


def _compare(store: DirectoryStore, sha256: str, since: str) -> tuple[int, ...]:
    try:
        with store.path(sha256).open("rb") as new, store.path(since).open("rb") as old:
            found, place = [], 0
            while (piece := new.read(_LOOK)) and (other := old.read(_LOOK)):
                # Most pieces differ in their first bytes: the rest is read only when they do not.
                if piece == other and piece + new.read(CHUNK - _LOOK) == other + old.read(CHUNK - _LOOK):
                    found.append(place)
                place += 1
                new.seek(place * CHUNK)
                old.seek(place * CHUNK)
            return tuple(found)
    except FileNotFoundError:
        raise Problem("objects.missing", sha256=since) from None


_LOOK = 4096
