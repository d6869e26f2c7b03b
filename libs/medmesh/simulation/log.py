"""The log as far as a simulated hospital asks it: records are counted and forgotten, but for the start of the federation, which is proven
as the log would prove it, under a checkpoint that the simulation's own log key signed."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

from medmesh.canonical import parse
from medmesh.contracts.audit import AuditBatch, Receipt, Receipts
from medmesh.ledger import note, proof
from medmesh.ledger.leaf import SALT_BYTES, Leaf, commitment
from medmesh.ledger.note import Checkpoint
from medmesh.ledger.tree import leaf_hash
from medmesh.security.keys import Identity

ORIGIN = "medmesh/log"


@dataclass
class Log:
    """`records` counts those that were handed in, by the service and by hospitals."""

    key: Identity
    records: int = 0
    _start: tuple[dict[str, Any], bytes] | None = field(default=None, repr=False)

    @property
    def vkey(self) -> str:
        """For the roster."""
        return note.verifier_key(ORIGIN, self.key.private_key.public_key())

    def take(self, batch: AuditBatch) -> Receipts:
        """What the log would answer."""
        first, self.records = self.records, self.records + len(batch.records)
        if self._start is None and batch.emitter == "federation":
            for one in batch.records:
                body = base64.b64decode(one.body)
                record = parse(body)
                if record["sub"] == "federation.move" and record["detail"].get("to") == "running":
                    self._start = record, body
        return Receipts(receipts=tuple(Receipt(id=one.id, seq=first + n, leaf="0" * 64) for n, one in enumerate(batch.records)))

    def find(self) -> dict[str, Any]:
        """The start, if there is one: what a search for it answers."""
        return {"events": [] if self._start is None else [{"seq": 0, "record": self._start[0]}]}

    def prove(self) -> dict[str, Any]:
        """Its proof, in a tree that holds nothing else."""
        assert self._start is not None
        record, body = self._start
        salt = bytes(SALT_BYTES)
        leaf = Leaf(record["tr"][:13], "federation", max(1, record["n"]), "", commitment(salt, body)).encode()
        checkpoint = note.sign(Checkpoint(ORIGIN, 1, leaf_hash(leaf)).text(), ORIGIN, self.key.private_key)
        parts = {name: base64.b64encode(data).decode() for name, data in (("leaf", leaf), ("salt", salt), ("body", body))}
        return {**parts, "seq": 0, "proof": proof.encode(0, [], checkpoint), "witnesses": "unwitnessed"}
