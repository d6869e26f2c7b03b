"""The key of pseudonyms in shares for several people; making, trying and using them is recorded, without names of holders' keys."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medmesh.errors import Problem
from medmesh.security import escrow
from medmesh.security.keys import read_secret, write_secret
from medmesh.store.unit import AuditEntry, Entity
from medmesh_edge.ports import Site


def _key(site: Site) -> bytes:
    return bytes.fromhex(read_secret(site.layout.site_key).decode().strip())


async def create(site: Site, target: Path, holders: Sequence[str], needed: int) -> list[Path]:
    """A file for each holder in `target`. Raises `Problem` `escrow.*` and leaves none."""
    shares = escrow.split(_key(site), key=f"pseudonyms of {site.settings.hospital}", holders=holders, needed=needed)
    there = [path.name for path in (target / f"{share.holder}.share.json" for share in shares) if path.exists()]
    if there:
        raise Problem("escrow.exists", file=there[0])
    paths = [await asyncio.to_thread(share.save, target) for share in shares]
    await _escrowed(site, "escrow.create", shares[0])
    return paths


async def drill(site: Site, files: Sequence[Path]) -> dict[str, Any]:
    """Join the shares in memory and compare with the key in use; answers what may be told. Raises `Problem` `escrow.*`."""
    shares = [escrow.Share.load(path) for path in files]
    if escrow.join(shares) != _key(site):
        raise Problem("escrow.other_key")
    await _escrowed(site, "escrow.drill", shares[0])
    return _told(shares)


async def restore(site: Site, files: Sequence[Path]) -> dict[str, Any]:
    """Write the key where there is none. Raises `Problem` `escrow.*`."""
    shares = [escrow.Share.load(path) for path in files]
    secret = escrow.join(shares)
    try:
        write_secret(site.layout.site_key, secret.hex().encode())
    except FileExistsError:
        if _key(site) != secret:
            raise Problem("escrow.other_key") from None
    await _escrowed(site, "escrow.restore", shares[0])
    return _told(shares)


def _told(shares: Sequence[escrow.Share]) -> dict[str, Any]:
    first = shares[0]
    return {"key": first.key, "fingerprint": first.fingerprint, "needed": first.needed, "holders": sorted({s.holder for s in shares})}


async def _escrowed(site: Site, verb: str, share: escrow.Share) -> None:
    async with site.unit() as uow:
        about = (Entity("key", "pseudonyms", digest=share.fingerprint),)
        uow.audit(AuditEntry(verb, "E", entities=about, detail={"needed": share.needed, "shares": share.shares}))
