"""What this process shows of itself: stored bytes are not readable, key material is not dumped, temporary space is overwritten; and its
running rules refuse what they must."""

from __future__ import annotations

import ctypes
import os
import resource
import secrets
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from medmesh.contracts.audit import RequestExport
from medmesh.errors import Problem
from medmesh.security.access import Object, Rules, decide
from medmesh.security.labels import Label, Level
from medmesh.security.passwords import check_policy
from medmesh.security.residue import wipe
from medmesh.security.roles import ADMINISTRATORS, TABLE, check_roles
from medmesh.security.tokens import Actor
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.port import ObjectStore

_PR_GET_DUMPABLE = 3


def sealed_at_rest(store: ObjectStore) -> bool:
    """Store something new, look at the bytes that lie there, read it back, remove it. Blocks."""
    if not isinstance(store, EncryptedStore):
        return False
    mark = secrets.token_hex(16).encode()
    data = mark * 8
    sha256 = store.put_now(data)
    try:
        lying = b"".join(b"".join(store.blobs.get(blob.name) or ()) for blob in store.blobs.names(f"{sha256[:2]}/{sha256}"))
        return bool(lying) and mark not in lying and b"".join(store.open(sha256)) == data
    finally:
        store.remove(sha256)


def undumpable() -> bool:
    """Whether a crash of this process leaves no core, and others of its account cannot read its memory."""
    return resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) and ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 0


def overwritten(folder: Path) -> bool:
    """Whether what is wiped is gone for whoever still has it open."""
    descriptor, name = tempfile.mkstemp(dir=folder)
    try:
        os.write(descriptor, b"something to be wiped")
        wipe(Path(name))
        return not Path(name).exists() and set(os.pread(descriptor, 64, 0)) == {0}
    finally:
        os.close(descriptor)


def exclusive() -> bool:
    """Whether the running rules refuse every pair of the three administrators."""
    for first in ADMINISTRATORS:
        for second in ADMINISTRATORS:
            if first == second:
                continue
            try:
                check_roles((first, second))
            except Problem:
                continue
            return False
    return True


def weak_refused() -> bool:
    """Whether the running rules refuse short, simple and guessable passwords."""
    for weak in ("Ab1!", "aaaaaaaaaaaaaa", "somebody-Somebody1"):
        try:
            check_policy("somebody", weak)
        except Problem:
            continue
        return False
    return True


def strict() -> bool:
    """Whether a message with an unknown field or an impossible value is refused."""
    for wrong in ({"format": "exe"}, {"format": "csv", "unknown": 1}, {"format": "csv", "filter": {"since": "yesterday"}}):
        try:
            RequestExport.model_validate(wrong)
        except ValueError:
            continue
        return False
    return True


def mandatory_access(rules: Rules) -> bool:
    """Whether the running rules keep every level from the one below, and every compartment from who is in none, whatever their roles."""
    everything = frozenset(role for allowed in TABLE.values() for role in allowed)
    now = datetime.now(UTC)
    for level in list(Level)[1:]:
        thing = Object("dataset", "probe", Label(level, frozenset({"probe"})), True, "probe", frozenset({"probe"}), "person:probe@probe")
        for clearance in (Label(Level(level - 1), frozenset({"probe"})), Label(Level.CORE)):
            actor = Actor("person", "probe", "probe", everything, "", now, clearance=clearance)
            if any(decide(actor, action, now, thing, rules).allowed for action in TABLE):
                return False
    return True
