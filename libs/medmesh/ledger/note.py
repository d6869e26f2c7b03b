"""C2SP signed-note v1.0.0 and tlog-checkpoint v1.0.0; signatures are Ed25519 (type 0x01) or timestamped cosignatures (type 0x04)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from medmesh.errors import Problem

ED25519, COSIGNATURE = 0x01, 0x04
MOST_SIGNATURES = 64
"""The specification wants at least 16 to be accepted, and some limit."""
MOST_BYTES = 1 << 20
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
DASH = "—"


class Key(Protocol):
    """Whoever may have signed a note: `VerifierKey`, or a key of the second suite (`medmesh.ledger.sm`)."""

    @property
    def name(self) -> str:
        """The signer."""

    @property
    def id(self) -> bytes:
        """4 bytes."""

    def check(self, text: str, signature: bytes) -> int | None:
        """See `VerifierKey.check`."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """Whose signatures count: the signer's name, the type of signature, 32 bytes of Ed25519."""

    name: str
    kind: int
    public: bytes

    @property
    def id(self) -> bytes:
        """The first 4 bytes of SHA-256(name, newline, type, key)."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    def __str__(self) -> str:
        """The vkey `name+id+key` by which others know a signer."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(bytes([self.kind]) + self.public).decode()}"

    def check(self, text: str, signature: bytes) -> int | None:
        """Verify what follows the key id in a signature line; answers a cosignature's time. Raises `InvalidSignature`."""
        key, time = Ed25519PublicKey.from_public_bytes(self.public), None
        if self.kind == COSIGNATURE:
            time, signature = int.from_bytes(signature[:8], "big"), signature[8:]
            if time >= 1 << 63:
                raise InvalidSignature
            text = f"cosignature/v1\ntime {time}\n{text}"
        key.verify(signature, text.encode())
        return time


@dataclass(frozen=True, slots=True)
class Opened:
    """A note whose known signatures all verify: its text, and who signed it; the value is the time of a cosignature (Unix seconds)."""

    text: str
    signers: Mapping[Key, int | None]


def decode64(text: str) -> bytes:
    """The bytes of standard base64 in its one canonical spelling. Raises `ValueError`."""
    found = base64.b64decode(text, validate=True)
    if base64.b64encode(found).decode() != text:
        raise ValueError("not canonical base64")
    return found


def valid_name(name: str) -> bool:
    """Not empty, no white space, no control characters, no plus."""
    return bool(name) and "+" not in name and not any(c.isspace() or c < " " for c in name)


def public_bytes(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of RFC 8032."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def parse_key(vkey: str) -> VerifierKey:
    """Raises `Problem` (`ledger.key`) unless name, id and key belong together and the type is one of ours."""
    try:
        name, identifier, encoded = vkey.strip().split("+", 2)
        material = decode64(encoded)
        key = VerifierKey(name, material[0], material[1:])
        if key.kind not in (ED25519, COSIGNATURE) or len(key.public) != 32 or not valid_name(name) or key.id.hex() != identifier:
            raise ValueError
        Ed25519PublicKey.from_public_bytes(key.public)
    except (ValueError, IndexError, binascii.Error):
        raise Problem("ledger.key") from None
    return key


def verifier_key(name: str, key: Ed25519PublicKey) -> str:
    """The vkey of one who signs notes (a log)."""
    return str(VerifierKey(name, ED25519, public_bytes(key)))


def signature_line(key: Key, signature: bytes) -> str:
    """One line of a note's end."""
    return f"{DASH} {key.name} {base64.b64encode(key.id + signature).decode()}\n"


def sign(text: str, name: str, key: Ed25519PrivateKey) -> str:
    """The note: text, blank line, one signature line. Raises `ValueError` for a text or name that no note can have."""
    if not text.endswith("\n") or not valid_name(name) or _CONTROL.search(text):
        raise ValueError("the text of a note ends with a newline and has no control characters; a name has no spaces")
    return f"{text}\n{signature_line(VerifierKey(name, ED25519, public_bytes(key.public_key())), key.sign(text.encode()))}"


def split(note: str | bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """A note's text and its lines as (name, key id and signature), none verified yet. Raises `Problem` (`ledger.note`)."""
    try:
        text = note.decode() if isinstance(note, bytes) else note
        if len(note) > MOST_BYTES:
            raise ValueError("it is too large")
        if _CONTROL.search(text):
            raise ValueError("it has control characters")
        body, divider, tail = text.rpartition("\n\n")
        if not divider or not tail:
            raise ValueError("it has no signature")
        if not tail.endswith("\n"):
            raise ValueError("its last line is cut")
        lines = [_line(line) for line in tail[:-1].split("\n")]
        if len(lines) > MOST_SIGNATURES:
            raise ValueError(f"it has more than {MOST_SIGNATURES} signatures")
    except UnicodeDecodeError:
        raise Problem("ledger.note", reason="it is not UTF-8") from None
    except ValueError as error:
        raise Problem("ledger.note", reason=str(error)) from None
    return body + "\n", lines


def _line(line: str) -> tuple[str, bytes]:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != DASH or not valid_name(parts[1]):
        raise ValueError("a signature line is malformed")
    try:
        raw = decode64(parts[2])
    except ValueError:
        raise ValueError("a signature is not base64") from None
    if len(raw) < 5:
        raise ValueError("a signature is too short")
    return parts[1], raw


def open_note(note: str | bytes, needed: Collection[Key], more: Iterable[Key] = ()) -> Opened:
    """Verify every line of a known key; lines of unknown keys are ignored, whatever they claim.

    Raises `Problem`: malformed, a known key's signature is wrong, or none of the keys that are needed signed.
    """
    text, lines = split(note)
    wanted: dict[tuple[str, bytes], Key] = {(key.name, key.id): key for key in (*needed, *more)}
    signers: dict[Key, int | None] = {}
    for name, raw in lines:
        key = wanted.get((name, raw[:4]))
        if key is None:
            continue
        try:
            time = key.check(text, raw[4:])
        except InvalidSignature:
            raise Problem("ledger.signature", name=name) from None
        signers[key] = max(time, signers.get(key) or 0) if time is not None else None
    if not any(key in signers for key in needed):
        raise Problem("ledger.unsigned", wanted=", ".join(key.name for key in needed), got=", ".join(name for name, _ in lines))
    return Opened(text, signers)


def verify(note: str | bytes, vkey: str) -> str:
    """The text of a note whose signature by `vkey` verifies. Raises `Problem`."""
    return open_note(note, [parse_key(vkey)]).text


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log commits to: its origin, how many leaves, and the root over them (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The body that gets signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """Raises `Problem` (`ledger.checkpoint`). Further lines are extensions: allowed, signed, and not understood."""
    lines = text.split("\n")
    try:
        origin, size, root = lines[0], lines[1], decode64(lines[2])
        if not all(lines[:-1]) or lines[-1] or len(lines) < 4 or len(root) != 32:
            raise ValueError
        return Checkpoint(origin, decimal(size), root)
    except (ValueError, IndexError):
        raise Problem("ledger.checkpoint") from None


def decimal(text: str) -> int:
    """A count in ASCII digits without leading zeros, below 2^63. Raises `ValueError`."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 19 or str(int(text)) != text or int(text) >= 1 << 63:
        raise ValueError("not a decimal number")
    return int(text)
