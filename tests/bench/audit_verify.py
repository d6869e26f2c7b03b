"""Verifying a log: how many entries a second one core hashes and reads, how many proofs it verifies, and how soon a tree is rebuilt.

Floors are the same hashes without any checking: SHA-256 of each leaf, each body and each node, in one loop over what lies in memory.
Called by the area `audit`; by itself `python -m tests.bench.audit_verify`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter

from medmesh.ledger import tiles
from medmesh.ledger.copies import read_line
from medmesh.ledger.edge import Edge
from medmesh.ledger.proof import believe, encode, parse
from medmesh.ledger.tree import inclusion_proof, leaf_hash, verify_inclusion
from tests import ledgers
from tests.bench.common import Measure, medians, report
from tests.ledgers import Entry, Ledger, entry, ledger

ENTRIES, PROOFS = 200_000, 20_000
REBUILT = 10_000_000 if os.environ.get("MEDMESH_BENCH_FULL") else 1_000_000

Run = Callable[[], Awaitable[float]]


def timed(work: Callable[[], object], count: int) -> Run:
    """`count` divided by the seconds of `work`."""

    async def run() -> float:
        began = perf_counter()
        work()
        return count / (perf_counter() - began)

    return run


async def verify(made: Ledger, content: list[Entry]) -> list[Measure]:
    """`audit.verify`: everything, each record read and checked against its form; `audit.verify_bodies`: each record hashed and not read;
    `audit.verify_hash`: entries, tiles and roots alone.
    """
    bodies = [(e.leaf, e.salt + e.body) for e in content]
    lines = (made.folder / "bodies.jsonl").read_bytes().splitlines(keepends=True)

    def hashes() -> None:
        sha = hashlib.sha256
        node = b"\1" + bytes(64)
        for leaf, body in bodies:
            sha(leaf).digest()
            sha(body).hexdigest()
            sha(node).digest()

    def parsed() -> None:
        """By hand: JSON lines, JSON leaves, JSON records, hashes; no tree, no tiles, no counters."""
        for (leaf, _), line in zip(bodies, lines, strict=True):
            _, salt, body = read_line(line)
            assert hashlib.sha256(salt + body).hexdigest() == json.loads(leaf)["commit"]
            json.loads(body)

    def ours(**wanted: bool) -> Callable[[], None]:
        def run() -> None:
            assert made.verify(**wanted).code == 0

        return run

    floor, peer, whole, hashed, tree = await medians(
        *(timed(work, ENTRIES) for work in (hashes, parsed, ours(), ours(parse=False), ours(bodies=False)))
    )
    name = "json, hashlib by hand"
    return [
        Measure("audit.verify", whole, "entries/s", floor, name, peer, 60_000, "more"),
        Measure("audit.verify_bodies", hashed, "entries/s", floor, better="more"),
        Measure("audit.verify_hash", tree, "entries/s", floor, "", None, 150_000, "more"),
    ]


async def proofs(made: Ledger) -> list[Measure]:
    """`audit.proof_verify`: an audit path against a root; `audit.proof_file`: a `.tlog-proof` with two witnesses, signatures included."""
    size = made.checkpoint.size
    node = tiles.nodes(lambda level, number, width: (made.folder / tiles.path(level, number, width)).read_bytes(), size)
    chosen = [(place * 7919) % size for place in range(200)]
    paths = [(place, leaf_hash(entry(place).leaf), inclusion_proof(node, place, size)) for place in chosen]
    files = [(encode(place, path, made.note()), entry(place).leaf) for place, _, path in paths]
    policy = ledgers.policy()

    def inclusion() -> None:
        for round_ in range(PROOFS // len(paths)):
            for place, leaf, path in paths:
                assert verify_inclusion(leaf, place, size, path, made.checkpoint.root), round_

    def whole() -> None:
        for text, leaf in files:
            believe(parse(text), leaf, policy)

    def hashes() -> None:
        pair, count = b"\1" + bytes(64), PROOFS * len(paths[0][2])
        for _ in range(count):
            hashlib.sha256(pair).digest()

    floor, ours, signed = await medians(timed(hashes, PROOFS), timed(inclusion, PROOFS), timed(whole, len(files)))
    return [
        Measure("audit.proof_verify", ours, "proofs/s", floor, "", None, 20_000, "more"),
        Measure("audit.proof_file", signed, "files/s", better="more"),
    ]


async def rebuild() -> list[Measure]:
    """`audit.rebuild`: every tile from leaf hashes, in seconds for ten million (a tenth is measured unless MEDMESH_BENCH_FULL is set)."""
    leaves = [hashlib.sha256(number.to_bytes(8, "big")).digest() for number in range(1 << 16)]

    def ours() -> None:
        edge, written = Edge(), 0
        for begin in range(0, REBUILT, tiles.WIDTH):
            at = begin % len(leaves)
            written += sum(len(full.hashes) for full in edge.add(leaves[at : at + min(tiles.WIDTH, REBUILT - begin)]))
        assert written >= REBUILT // tiles.WIDTH * tiles.WIDTH * tiles.HASH and len(edge.root()) == tiles.HASH

    def hashes() -> None:
        pair = b"\1" + bytes(64)
        for _ in range(REBUILT):
            hashlib.sha256(pair).digest()

    floor, value = await medians(timed(hashes, REBUILT), timed(ours, REBUILT))
    return [Measure("audit.rebuild_10m", 10_000_000 / value, "s", 10_000_000 / floor, "", None, 30)]


async def measures() -> list[Measure]:
    """All of them."""
    with tempfile.TemporaryDirectory(prefix="medmesh-bench-") as place:
        made = ledger(Path(place), ENTRIES)
        content = [entry(seq) for seq in range(ENTRIES)]
        return [*await verify(made, content), *await proofs(made), *await rebuild()]


if __name__ == "__main__":
    report("audit-verify", asyncio.run(measures()))
