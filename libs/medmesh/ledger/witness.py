"""C2SP tlog-witness v1.0.0 without its sockets: what is asked, what a witness decides, and what an answer means."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from medmesh.errors import Problem
from medmesh.ledger.note import Checkpoint, VerifierKey, decimal, decode64, open_note, parse_checkpoint, split
from medmesh.ledger.tree import EMPTY, verify_consistency

MOST_HASHES = 63
MOST_BYTES = 1 << 16
SIZE = "text/x.tlog.size"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """`POST /add-checkpoint`: the size the witness is thought to know, the proof from there, and the log's signed checkpoint."""

    old: int
    proof: tuple[bytes, ...]
    note: str

    def encode(self) -> bytes:
        """The body."""
        return "\n".join([f"old {self.old}", *(base64.b64encode(p).decode() for p in self.proof), "", self.note]).encode()


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is no cosignature. `size`: the one the witness knows; `signed`: by the log, so that it may prove misbehaviour."""

    status: HTTPStatus
    reason: str
    size: int | None = None
    signed: bool = False

    @property
    def body(self) -> tuple[str, bytes]:
        """Content type and body: a conflict tells the size the witness knows."""
        return (TEXT, f"{self.reason}\n".encode()) if self.size is None else (SIZE, f"{self.size}\n".encode())


@dataclass(frozen=True, slots=True)
class Accepted:
    """A checkpoint that may be cosigned, once it is durably stored in place of the one known before."""

    checkpoint: Checkpoint
    text: str


def parse_request(body: bytes) -> Request:
    """Raises `Problem` (`ledger.witness_request`)."""
    try:
        head, divider, note = body.decode().partition("\n\n")
        first, *lines = head.split("\n")
        if len(body) > MOST_BYTES or not divider or not first.startswith("old ") or len(lines) > MOST_HASHES:
            raise ValueError
        proof = tuple(decode64(line) for line in lines)
        if any(len(p) != 32 for p in proof):
            raise ValueError
        split(note)
        return Request(decimal(first.removeprefix("old ")), proof, note)
    except (ValueError, Problem):
        raise Problem("ledger.witness_request") from None


def origin_of(note: str) -> str:
    """The log a request speaks of, to look up what is known of it; nothing is verified yet."""
    return note.partition("\n")[0]


def decide(request: Request, logs: Mapping[str, Sequence[VerifierKey]], known: Checkpoint | None) -> Accepted | Refusal:
    """What a witness that trusts `logs` (keys by origin) and last cosigned `known` for this origin answers, in the specification's order.

    The caller holds a lock on what is known from before this until `Accepted` is stored: otherwise a slow request rolls a fast one back.
    """
    keys = logs.get(origin_of(request.note))
    if not keys:
        return Refusal(HTTPStatus.NOT_FOUND, "the log is unknown")
    try:
        text = open_note(request.note, keys).text
    except Problem as problem:
        return Refusal(HTTPStatus.FORBIDDEN, problem.detail())
    try:
        new = parse_checkpoint(text)
    except Problem as problem:
        return Refusal(HTTPStatus.BAD_REQUEST, problem.detail())
    if request.old > new.size:
        return Refusal(HTTPStatus.BAD_REQUEST, f"the old size {request.old} is beyond the checkpoint's {new.size}")
    size, root = (known.size, known.root) if known else (0, EMPTY)
    if request.old != size:
        return Refusal(HTTPStatus.CONFLICT, f"the old size {request.old} is not {size}", size)
    if new.size == size and new.root != root:
        return Refusal(HTTPStatus.CONFLICT, f"another root than the one that was cosigned at {size}", size, signed=True)
    if not verify_consistency(size, new.size, root, new.root, request.proof):
        return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"the proof from {size} to {new.size} does not hold", signed=True)
    return Accepted(new, text)


def cosignature_of(answer: bytes, note: str, witness: VerifierKey) -> tuple[str, int]:
    """The line by `witness` in its answer to a checkpoint, and its time (Unix seconds). Raises `Problem`: it is not there, or is wrong."""
    try:
        lines = answer.decode()
    except UnicodeDecodeError:
        raise Problem("ledger.note", reason="it is not UTF-8") from None
    text = split(note)[0]
    opened = open_note(f"{text}\n{lines}", [witness])
    for line in lines.splitlines(keepends=True):
        name, raw = split(f"{text}\n{line}")[1][0]
        if (name, raw[:4]) == (witness.name, witness.id):
            return line, opened.signers[witness] or 0
    raise AssertionError("a note that opens has a line of its signer")
