"""Programs we did not write accept our log, and our verifier accepts theirs; so do the two witnesses and their clients.

aics-tlog and aics-witness need Python 3.12 and run in an environment of their own below `build/`; tlog-scales runs here.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests import ledgers
from tests.aics import environment
from tests.ledgers import Ledger, entry, ledger
from tlog_scales.backend import LocalBackend
from tlog_scales.reader import TilesReader
from tlog_scales.signing import PlainEd25519Signer, Vkey
from tlog_scales.tlog import ConsistencyProof, InclusionProof, InclusionProofInvalid
from tlog_scales.writer import TilesWriter

from medmesh.errors import Problem
from medmesh.ledger import note, tiles
from medmesh.ledger.copies import Folder
from medmesh.ledger.cosignature import witness_key
from medmesh.ledger.note import parse_key
from medmesh.ledger.policy import demanding
from medmesh.ledger.proof import believe, encode, parse
from medmesh.ledger.tree import consistency_proof, inclusion_proof, leaf_hash
from medmesh.ledger.verify import Wanted, verify_log
from medmesh.ledger.witness import Request, cosignature_of
from medmesh.witness.server import server
from medmesh.witness.site import create

SIZE = 70_000 if os.environ.get("MEDMESH_SOAK") else 1_100
LOG = note.verifier_key(ledgers.ORIGIN, ledgers.KEY.public_key())
WITNESSES = [str(witness_key(name, key)) for name, key in zip(ledgers.WITNESSES, ledgers.WITNESS_KEYS, strict=True)]

Peer = Callable[..., Any]


@pytest.fixture(scope="session")
def interpreter() -> Path:
    return environment()


SCRIPT = str(Path(__file__).with_name("aics_peer.py"))


@pytest.fixture
def aics(interpreter: Path) -> Peer:
    def ask(*arguments: object) -> Any:
        command = [str(interpreter), "-I", SCRIPT, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return ledger(tmp_path_factory.mktemp("ours"), SIZE)


def node(folder: Path, size: int) -> Any:
    return tiles.nodes(lambda level, number, width: (folder / tiles.path(level, number, width)).read_bytes(), size)


# --- aics-tlog --------------------------------------------------------------------------------------------------------


def test_aics_accepts_our_checkpoint_with_its_witnesses_and_every_tile(aics: Peer, ours: Ledger, tmp_path: Path) -> None:
    accepted = {"ok": True, "tiles": True, "size": SIZE, "origin": ledgers.ORIGIN}
    assert aics("check", ours.folder, LOG, 0) == accepted
    assert aics("check", ours.folder, LOG, 2, *WITNESSES) == accepted
    assert aics("check", ours.folder, LOG, 2, WITNESSES[0])["ok"] is False
    shutil.copytree(ours.folder, tmp_path / "altered")
    tile = tmp_path / "altered" / tiles.path("entries", 1)
    tile.write_bytes(tile.read_bytes().replace(b"platform", b"Platform", 1))
    assert aics("check", tmp_path / "altered", LOG, 0) == accepted | {"tiles": False}


def test_aics_accepts_our_proofs(aics: Peer, ours: Ledger, tmp_path: Path) -> None:
    for seq in (0, 255, 256, SIZE - 1):
        file, leaf = tmp_path / f"{seq}.tlog-proof", base64.b64encode(entry(seq).leaf).decode()
        file.write_text(encode(seq, inclusion_proof(node(ours.folder, SIZE), seq, SIZE), ours.note(), b"extra"))
        assert aics("proof", file, leaf, LOG, *WITNESSES) == {"ok": True}
        assert aics("proof", file, base64.b64encode(entry(seq + 1).leaf).decode(), LOG) == {"ok": False}


def test_we_accept_the_log_of_aics(aics: Peer, tmp_path: Path) -> None:
    theirs = aics("make", tmp_path / "theirs", 700)
    policy = demanding(theirs["vkey"], theirs["witness"])
    wanted = Wanted(policy, bodies=False, ours=False)
    report = verify_log(Folder(tmp_path / "theirs"), wanted)
    assert (report.faults, report.size, report.witnesses) == ([], 700, {"aics.example/w": 1_790_000_000})
    path, signed = [base64.b64decode(p) for p in theirs["path"]], (tmp_path / "theirs/checkpoint").read_text()
    found = parse(encode(theirs["index"], path, signed))
    assert believe(found, base64.b64decode(theirs["entry"]), policy).checkpoint.size == 700
    with pytest.raises(Problem):
        believe(found, b"another message\n", policy)
    tile = tmp_path / "theirs" / tiles.path(0, 1)
    tile.write_bytes(bytes(32) + tile.read_bytes()[32:])
    assert verify_log(Folder(tmp_path / "theirs"), wanted).code == 1


def test_the_witness_of_aics_cosigns_our_log_as_long_as_it_grows(interpreter: Path, ours: Ledger, tmp_path: Path) -> None:
    running = subprocess.Popen(
        [str(interpreter), "-I", SCRIPT, "witness", str(tmp_path), LOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert running.stdin is not None and running.stdout is not None
    try:
        site = json.loads(running.stdout.readline())
        key, smaller = parse_key(site["vkey"]), ledger(tmp_path / "smaller", 300)

        def show(request: Request) -> httpx.Response:
            return httpx.post(f"{site['url']}/add-checkpoint", content=request.encode(), trust_env=False)

        first = Request(0, (), smaller.note())
        assert cosignature_of(show(first).content, first.note, key)[1] > ledgers.BEGAN - 10**8
        stale = show(Request(0, (), ours.note()))
        assert (stale.status_code, stale.headers["content-type"], stale.text) == (409, "text/x.tlog.size", "300\n")
        growing = Request(300, tuple(consistency_proof(node(ours.folder, SIZE), 300, SIZE)), ours.note())
        line, _ = cosignature_of(show(growing).content, growing.note, key)
        assert demanding(LOG, site["vkey"]).verify(ours.note() + line).checkpoint.size == SIZE
        forged = ledgers.signed(replace(ours.checkpoint, root=bytes(32)))
        assert show(Request(SIZE, (), forged)).status_code in (409, 422)
    finally:
        running.stdin.close()
        running.stdout.close()
        running.wait(10)


@pytest.fixture
def our_witness(tmp_path: Path) -> Iterator[tuple[str, str]]:
    site = create(tmp_path / "witness", "renji.example/witness", [LOG], port=0)
    with server(site) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield listening.url, site.vkey
        listening.shutdown()
        thread.join()


def test_the_client_of_aics_is_content_with_our_witness(aics: Peer, ours: Ledger, our_witness: tuple[str, str], tmp_path: Path) -> None:
    url, vkey = our_witness
    smaller = ledger(tmp_path / "smaller", 300)
    for copy, old in ((smaller, 0), (ours, 300)):
        lines = aics("submit", url, vkey, copy.folder, old)["lines"]
        assert demanding(LOG, vkey).verify(copy.note() + lines).checkpoint == copy.checkpoint


# --- tlog-scales ------------------------------------------------------------------------------------------------------


def test_tlog_scales_accepts_our_checkpoint_tiles_and_proofs(ours: Ledger, tmp_path: Path) -> None:
    reader = TilesReader(LocalBackend(ours.folder))
    checkpoint = reader.get_checkpoint()
    for vkey in (LOG, *WITNESSES):
        checkpoint.verify(Vkey.from_string(vkey))
    assert reader.calculate_root_hash() == checkpoint.root_hash == ours.checkpoint.root
    for seq in (0, 300, SIZE - 1):
        assert reader.get_entry(seq) == entry(seq).leaf
        path = inclusion_proof(node(ours.folder, SIZE), seq, SIZE)
        InclusionProof(seq, SIZE, path).check(leaf_hash(entry(seq).leaf), checkpoint.root_hash)
        with pytest.raises(InclusionProofInvalid):
            InclusionProof(seq, SIZE, path).check(leaf_hash(b"x"), checkpoint.root_hash)
    smaller = ledger(tmp_path / "smaller", 300)
    growth = ConsistencyProof(300, SIZE, consistency_proof(node(ours.folder, SIZE), 300, SIZE))
    growth.check(smaller.checkpoint.root, ours.checkpoint.root)


def test_we_accept_the_log_of_tlog_scales(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    writer = TilesWriter.create(tmp_path / "theirs", "scales.example/log")
    for number in range(600):
        writer.add_leaf(b"leaf %d" % number)
    writer.commit([PlainEd25519Signer("scales.example/log", key)])
    policy = demanding(note.verifier_key("scales.example/log", key.public_key()))
    report = verify_log(Folder(tmp_path / "theirs"), Wanted(policy, bodies=False, ours=False))
    assert (report.faults, report.size) == ([], 600)
