"""Patients who were forgotten and stay away: a PACS that sends them again, or a folder that still has them, brings nobody back.

Of each there is a token, HMAC of the pseudonym under the hospital's key: whoever has the patient ID can ask about one, and the tokens tell
nobody who they are. They lie beside the hospital's keys and not in the store: a store that is restored from an older copy opens with the
newest keys only, and with them come the newest tokens.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from medmesh.imaging.pseudonyms import mac
from medmesh.security.keys import read_secret
from medmesh_edge.ports import Site

_LINE = re.compile(r"([+-])([0-9a-f]{64})")


def add(site: Site, patient: str) -> None:
    """From now on the patient of this pseudonym is taken in no more; durable when it returns."""
    _append(site.layout.withdrawn, f"+{_token(site, patient)}")


def remove(site: Site, patient: str) -> bool:
    """May be taken in again; whether that had to be said."""
    if not away(site, {patient}):
        return False
    _append(site.layout.withdrawn, f"-{_token(site, patient)}")
    return True


def away(site: Site, patients: frozenset[str] | set[str]) -> frozenset[str]:
    """Who among these pseudonyms is not taken in."""
    tokens = _read(site.layout.withdrawn)
    return frozenset(one for one in patients if _token(site, one) in tokens) if tokens else frozenset()


def _token(site: Site, patient: str) -> str:
    return mac(read_secret(site.layout.site_key).strip(), "withdrawn", patient).hex()


def _append(path: Path, line: str) -> None:
    """A line of its own, whatever a kill left of the one before."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, f"\n{line}\n".encode())
        os.fsync(file)
    finally:
        os.close(file)


def _read(path: Path) -> set[str]:
    found: set[str] = set()
    for line in path.read_text("ascii").splitlines() if path.exists() else ():
        if said := _LINE.fullmatch(line):
            (found.add if said[1] == "+" else found.discard)(said[2])
    return found
