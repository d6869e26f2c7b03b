"""C2SP tlog-cosignature v1: a witness states that it saw a log grow only by appending, up to this checkpoint, at this time."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medmesh.ledger.note import COSIGNATURE, VerifierKey, parse_checkpoint, public_bytes, signature_line


def witness_key(name: str, key: Ed25519PrivateKey) -> VerifierKey:
    """How others know this witness. A key signs for one witness only: what is signed does not hold the name."""
    return VerifierKey(name, COSIGNATURE, public_bytes(key.public_key()))


def cosign(text: str, name: str, key: Ed25519PrivateKey, time: int) -> str:
    """The signature line over a checkpoint's text at `time` (Unix seconds). Raises `Problem` when it is no checkpoint."""
    parse_checkpoint(text)
    if not 0 <= time < 1 << 63:
        raise ValueError("a cosignature's time is a POSIX timestamp")
    signature = key.sign(f"cosignature/v1\ntime {time}\n{text}".encode())
    return signature_line(witness_key(name, key), time.to_bytes(8, "big") + signature)
