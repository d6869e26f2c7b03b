"""What this process shows of itself: stored bytes are not readable, key material is not dumped, temporary space is overwritten."""

from __future__ import annotations

import ctypes
import os
import resource
import secrets
import tempfile
from pathlib import Path

from medmesh.security.residue import wipe
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
