"""This hospital's secrets of secure sums, of each attempt at a round: in the store under a key of the attempt's own, and in memory as they
stand there, because a round asks for them in each of its steps.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.canonical import canonical, parse
from medmesh.federated.secure.contributor import Contributor
from medmesh.security.keyring.file import FileKeys
from medmesh.store.attempts import KEY, attempt, of_attempt
from medmesh.store.prepared import Look, Prepared
from medmesh.store.unit import UnitOfWork
from medmesh_edge.tables import given, secure_attempts, secure_phases

if TYPE_CHECKING:
    from medmesh_edge.ports import Site

ATTEMPT = "attempt"
_ANY = Prepared(select(secure_attempts.c.round).limit(1))
_SECRETS = Prepared(select(secure_attempts.c.document).where(of_attempt(secure_attempts)))
_KEPT = upsert(secure_attempts).values(given(secure_attempts))
_KEEP = Prepared(_KEPT.on_conflict_do_update(index_elements=KEY, set_={"document": _KEPT.excluded.document}))
_FORGET = Prepared(delete(secure_attempts).where(of_attempt(secure_attempts)).returning(secure_attempts.c.round))
_FORGET_PHASES = Prepared(delete(secure_phases).where(of_attempt(secure_phases)))


@dataclass(frozen=True)
class Place:
    """One attempt at one round."""

    federation: str
    round: int
    attempt: int = 1


def _place(of: Any) -> Place:
    return Place(of.federation, of.round, of.attempt)


def following(of: Any) -> Place:
    """The first attempt at the round after."""
    return Place(of.federation, of.round + 1)


def _keys(site: Site, of: Any) -> tuple[FileKeys, str]:
    """(the node's keys, the label of the attempt's own): what is deleted of a store may be read from its pages for long, and from copies
    of it for ever; without the key it is noise."""
    name = hashlib.sha256(f"{of.federation}:{of.round}:{of.attempt}".encode()).hexdigest()[:24]
    return FileKeys(site.layout.keys), f"{ATTEMPT}-{name}"


def _bound(of: Any) -> bytes:
    return f"{of.federation}\0{of.round}\0{of.attempt}".encode()


def sealed(site: Site, of: Any, party: Contributor) -> str:
    """What is stored of an attempt."""
    keys, label = _keys(site, of)
    return keys.ensure(label).wrap(label, canonical(party.document()), _bound(of))


def restored(site: Site, of: Any, document: str) -> Contributor:
    """The attempt again. Raises `Problem` (`keyring.*`)."""
    keys, label = _keys(site, of)
    return Contributor.restore(parse(keys.unwrap(label, document, _bound(of))))


async def find(site: Site, rows: Look, of: Any) -> Contributor | None:
    """This hospital's part in an attempt as the last transaction kept it; what is done with it changes nothing of that."""
    if (known := site.attempts.get(_place(of))) is not None:
        return copy.copy(known)
    found = await rows(_SECRETS, **attempt(of))
    return restored(site, of, found[0].document) if found else None


async def keep(uow: UnitOfWork[Site], of: Any, party: Contributor) -> None:
    """Store it as it is now."""
    site, kept = uow.ports, copy.copy(party)
    await uow.rows(_KEEP, **attempt(of), document=sealed(site, of, party))
    uow.on_commit(lambda: site.attempts.update({_place(of): kept}))


def remember(site: Site, of: Any, party: Contributor) -> None:
    """With what other rows, which are committed and never change, make of it."""
    if _place(of) in site.attempts:
        site.attempts[_place(of)] = copy.copy(party)


async def any_left(site: Site) -> bool:
    """Whether this node takes part in any secure sum."""
    return bool(await site.database.look(_ANY))


async def forget(uow: UnitOfWork[Site], of: Any) -> bool:
    """A round is over, or this hospital's part in it: its secrets go; which list was signed stays. Whether there were any."""
    gone = await uow.rows(_FORGET, **attempt(of))
    await uow.rows(_FORGET_PHASES, **attempt(of))
    if gone:
        site, (keys, label) = uow.ports, _keys(uow.ports, of)

        def destroy() -> None:
            site.attempts.pop(_place(of), None)
            keys.destroy(label, 1)

        uow.on_commit(destroy)
    return bool(gone)


async def forget_all(uow: UnitOfWork[Site], federation: str) -> None:
    """A federation is over."""
    for row in await uow.all(select(secure_attempts).where(secure_attempts.c.federation == federation)):
        await forget(uow, row)
    await uow.execute(delete(secure_phases).where(secure_phases.c.federation == federation))


async def sweep(site: Site) -> None:
    """Destroy the keys of attempts that are over: what a kill left."""
    keys = FileKeys(site.layout.keys)
    async with site.unit() as uow:
        needed = {_keys(site, row)[1] for row in await uow.all(select(secure_attempts))}
    for label in {path.name.partition(".")[0] for path in site.layout.keys.glob(f"{ATTEMPT}-*.wrap")} - needed:
        keys.destroy(label, 1)
