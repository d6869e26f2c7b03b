"""Logs to verify, made in no time: a copy as `medmesh audit export` writes it, whose records differ in all that a verifier looks at.

made = ledger(folder, 1000)
made.verify().code == 0
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medmesh.ledger import note, tiles
from medmesh.ledger.copies import Folder
from medmesh.ledger.cosignature import cosign, witness_key
from medmesh.ledger.edge import Edge
from medmesh.ledger.policy import Policy, demanding
from medmesh.ledger.report import Report
from medmesh.ledger.verify import Wanted, verify_log

ORIGIN, WITNESSES = "test.example/log", ("renji.example/witness", "regulator.example/witness")
EMITTERS = ("federation", "governance", "gateway", "registry", "edge:renji")
BEGAN = 1_795_000_000
KEY = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"log").digest())
WITNESS_KEYS = tuple(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()) for name in WITNESSES)

_BODY = (
    '{"act":"C","agents":[{"method":"pw","org":"platform","req":true,"role":"researcher","who":"person:li"}],"approval":{},'
    '"ctx":{"correlation":"","request":"%(id)s","trace":"4bf92f3577b34da6a3ce929d0e0e4736"},"detail":{"rounds":%(n)d},"entities":[{"digest":"","id":"f-%(seq)d",'
    '"type":"federation","ver":""}],"id":"%(id)s","n":%(n)d,"orgs":["%(org)s"],"out":0,'
    '"policy":{"bundle":"","decision":"permit","rules":["role:researcher"]},'
    '"pou":"HRESCH","prev":"","src":{"instance":"%(emitter)s-1","node":"",'
    '"org":"platform","service":"%(emitter)s","ver":"0.1.0"},"sub":"federation.create","t":"%(t)s","tr":"%(t)s","type":{"code":"rest",'
    '"subcode":"create","subsystem":"http://hl7.org/fhir/restful-interaction",'
    '"system":"http://terminology.hl7.org/CodeSystem/audit-event-type"},"v":2,"why":""}'
)


def instant(tick: int) -> str:
    """The time of the tick-th hundredth of a second, in one day."""
    seconds, hundredths = divmod(tick, 100)
    day, rest = divmod(seconds, 86_400)
    return f"2026-11-{1 + day:02d}T{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}.{hundredths * 10_000:06d}Z"


@dataclass(frozen=True)
class Entry:
    """What a log keeps of one record."""

    leaf: bytes
    salt: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        """Of `bodies.jsonl`, without its number."""
        return b'"salt": "%s", "body": "%s"}\n' % (base64.b64encode(self.salt), base64.b64encode(self.body))


def entry(seq: int, *, n: int | None = None, emitter: str | None = None, tick: int | None = None, salt: bytes | None = None) -> Entry:
    """The record of a place in the log."""
    name = emitter or EMITTERS[seq % len(EMITTERS)]
    number = seq // len(EMITTERS) + 1 if n is None else n
    org = name.removeprefix("edge:") if name.startswith("edge:") else "platform"
    t = instant(seq if tick is None else tick)
    body = (_BODY % {"id": f"0192f0c2-0000-7000-8000-{seq:012d}", "n": number, "seq": seq, "emitter": name, "t": t, "org": org}).encode()
    salt = hashlib.md5(b"%d" % seq).digest() if salt is None else salt
    commit = hashlib.sha256(salt + body).hexdigest()
    leaf = f'{{"c":"{org}","commit":"{commit}","e":"{name}","h":"{t[:13]}","k":"security","n":{number},"v":2}}'.encode()
    return Entry(leaf, salt, body)


def entries(count: int, first: int = 0) -> Iterator[Entry]:
    """Records in order."""
    return (entry(seq) for seq in range(first, count))


def write(folder: Path, content: Any, *, key: Ed25519PrivateKey = KEY, witnesses: bool = True, origin: str = ORIGIN) -> note.Checkpoint:
    """A copy of the log of these entries, hashed, signed and cosigned; answers what was signed."""
    edge, size = Edge(), 0
    folder.mkdir(parents=True, exist_ok=True)
    bundle: list[Entry] = []
    with (folder / "bodies.jsonl").open("wb") as bodies:

        def flush() -> None:
            place(tiles.path("entries", (size - 1) // 256, len(bundle)), tiles.bundle([e.leaf for e in bundle]))
            bodies.writelines(b'{"seq": %d, %s' % (size - len(bundle) + i, e.line) for i, e in enumerate(bundle))
            for level, number, hashes, _ in edge.add([hashlib.sha256(b"\0" + e.leaf).digest() for e in bundle]):
                place(tiles.path(level, number), hashes)
            bundle.clear()

        def place(path: str, data: bytes) -> None:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

        for made in content:
            bundle.append(made)
            size += 1
            if len(bundle) == 256:
                flush()
        if bundle:
            flush()
        for level, number, hashes in edge.partial():
            place(tiles.path(level, number, len(hashes) // tiles.HASH), hashes)
    checkpoint = note.Checkpoint(origin, size, edge.root())
    (folder / "checkpoint").write_text(signed(checkpoint, key=key, witnesses=witnesses))
    return checkpoint


def signed(checkpoint: note.Checkpoint, *, key: Ed25519PrivateKey = KEY, witnesses: bool = True) -> str:
    """The note."""
    text = note.sign(checkpoint.text(), checkpoint.origin, key)
    for name, of in zip(WITNESSES, WITNESS_KEYS, strict=True) if witnesses else ():
        text += cosign(checkpoint.text(), name, of, BEGAN)
    return text


def policy(*, witnesses: bool = True) -> Policy:
    """The log's key, and that both witnesses saw it."""
    keys = (str(witness_key(name, key)) for name, key in zip(WITNESSES, WITNESS_KEYS, strict=True))
    return demanding(note.verifier_key(ORIGIN, KEY.public_key()), *(keys if witnesses else ()))


@dataclass(frozen=True)
class Ledger:
    """A copy."""

    folder: Path
    checkpoint: note.Checkpoint

    def verify(self, **wanted: Any) -> Report:
        """Against log key and witnesses unless another policy is given."""
        return verify_log(Folder(self.folder), Wanted(**({"policy": policy()} | wanted)))

    def note(self) -> str:
        """The signed checkpoint."""
        return (self.folder / "checkpoint").read_text()


def ledger(folder: Path, count: int) -> Ledger:
    """A clean one."""
    return Ledger(folder, write(folder, entries(count)))


def flip(path: Path, random_: random.Random) -> int:
    """One bit of a file; answers which byte."""
    data = bytearray(path.read_bytes())
    at = random_.randrange(len(data))
    data[at] ^= 1 << random_.randrange(8)
    path.write_bytes(bytes(data))
    return at
