"""What a witness decides, in the specification's order, and what its answer means to the log."""

from __future__ import annotations

import random
from http import HTTPStatus

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger.cosignature import cosign, witness_key
from medmesh.ledger.note import Checkpoint, parse_key
from medmesh.ledger.tree import EMPTY, consistency_proof, fold, leaf_hash
from medmesh.ledger.witness import Accepted, Refusal, Request, cosignature_of, decide, parse_request

LOG, THIEF, WITNESS = (Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in range(1, 4))
ORIGIN = "log.example/1"
LOGS = {ORIGIN: [parse_key(note.verifier_key(ORIGIN, LOG.public_key()))]}
LEAVES = [leaf_hash(b"%d" % i) for i in range(20)]


def checkpoint(size: int, leaves: list[bytes] = LEAVES) -> Checkpoint:
    return Checkpoint(ORIGIN, size, fold(leaves[:size]))


def signed(found: Checkpoint, key: Ed25519PrivateKey = LOG) -> str:
    return note.sign(found.text(), ORIGIN, key)


def proof(old: int, new: int, leaves: list[bytes] = LEAVES) -> tuple[bytes, ...]:
    return tuple(consistency_proof(lambda level, index: fold(leaves[index << level : (index + 1) << level]), old, new))


def refused(request: Request, known: Checkpoint | None) -> Refusal:
    decided = decide(request, LOGS, known)
    assert isinstance(decided, Refusal)
    return decided


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 1), (0, 13), (1, 1), (7, 7), (7, 8), (8, 13), (13, 20)])
def test_a_log_that_only_grows_is_cosigned(old: int, new: int) -> None:
    known = checkpoint(old) if old else None
    request = Request(old, proof(old, new), signed(checkpoint(new)))
    assert parse_request(request.encode()) == request
    assert decide(request, LOGS, known) == Accepted(checkpoint(new), checkpoint(new).text())


def test_each_refusal_has_its_status() -> None:
    forked = [*LEAVES[:5], *(leaf_hash(b"x%d" % i) for i in range(15))]
    good = Request(7, proof(7, 13), signed(checkpoint(13)))
    known = checkpoint(7)
    stranger = Request(0, (), note.sign(Checkpoint("other.example", 1, LEAVES[0]).text(), "other.example", LOG))
    assert refused(stranger, None).status == HTTPStatus.NOT_FOUND
    assert refused(Request(7, proof(7, 13), signed(checkpoint(13), THIEF)), known).status == HTTPStatus.FORBIDDEN
    assert refused(Request(14, (), signed(checkpoint(13))), known).status == HTTPStatus.BAD_REQUEST
    for stale, at in ((known, 8), (None, 3)):
        conflict = refused(Request(at, proof(at, 13), signed(checkpoint(13))), stale)
        assert (conflict.status, conflict.body) == (
            HTTPStatus.CONFLICT,
            ("text/x.tlog.size", b"7\n" if stale else b"0\n"),
        )
    assert refused(Request(7, (), signed(checkpoint(7, forked))), known).status == HTTPStatus.CONFLICT
    for wrong in (
        Request(7, proof(7, 13, forked), signed(checkpoint(13, forked))),
        Request(7, proof(7, 13)[:-1], good.note),
        Request(7, (*proof(7, 13), bytes(32)), good.note),
        Request(7, (), good.note),
    ):
        assert refused(wrong, known).status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert refused(Request(0, (bytes(32),), good.note), None).status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert refused(Request(0, (), signed(Checkpoint(ORIGIN, 0, bytes(32)))), None).status == HTTPStatus.CONFLICT
    assert isinstance(decide(Request(0, (), signed(Checkpoint(ORIGIN, 0, EMPTY))), LOGS, None), Accepted)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.replace(b"old 7", b"old 07"), lambda body: body.replace(b"old 7", b"old -7"), lambda body: body[4:],
        lambda body: body.replace(b"\n\n", b"\n", 1), lambda body: body.replace(b"old 7\n", b"old 7\nAAAA\n"),
        lambda body: b"old 7\n" + b"%s\n" % (b"A" * 43 + b"=") * 64 + body[body.index(b"\n\n") + 1 :], lambda body: body + b"x" * 70_000,
        lambda body: body.replace(ORIGIN.encode(), b"\xff"), lambda body: b"",
    ],
)  # fmt: skip
def test_what_is_no_request(change: object) -> None:
    body = Request(7, proof(7, 13), signed(checkpoint(13))).encode()
    with pytest.raises(Problem) as caught:
        parse_request(change(body))  # type: ignore[operator]
    assert (caught.value.code, caught.value.status) == ("ledger.witness_request", 400)


def test_any_bytes_are_a_request_or_a_problem() -> None:
    body, chance = bytearray(Request(7, proof(7, 13), signed(checkpoint(13))).encode()), random.Random(1)
    for _ in range(2000):
        broken = bytearray(body)
        for _ in range(chance.randrange(1, 4)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        try:
            request = parse_request(bytes(broken))
        except Problem:
            continue
        decide(request, LOGS, checkpoint(7))


def test_the_answer_counts_only_with_the_witness_it_was_asked_of() -> None:
    key, text = witness_key("w.example", WITNESS), checkpoint(13).text()
    line, foreign = cosign(text, "w.example", WITNESS, 1_700_000_000), cosign(text, "thief.example", THIEF, 5)
    assert cosignature_of((foreign + line).encode(), signed(checkpoint(13)), key) == (line, 1_700_000_000)
    for answer, code in (
        (foreign, "ledger.unsigned"),
        (cosign(checkpoint(7).text(), "w.example", WITNESS, 5), "ledger.signature"),
        ("", "ledger.note"),
        ("ok", "ledger.note"),
    ):
        with pytest.raises(Problem) as caught:
            cosignature_of(answer.encode(), signed(checkpoint(13)), key)
        assert caught.value.code == code
