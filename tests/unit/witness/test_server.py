"""A witness as a process: what it answers over HTTP, that it forgets nothing when it is killed, and how little it needs."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger.note import Checkpoint, parse_key
from medmesh.ledger.tree import consistency_proof, fold, leaf_hash
from medmesh.ledger.witness import Request, cosignature_of
from medmesh.witness.server import server
from medmesh.witness.site import Site, create, load

ORIGIN = "log.example/1"
LOG = Ed25519PrivateKey.generate()
VKEY = note.verifier_key(ORIGIN, LOG.public_key())
LEAVES = [leaf_hash(b"%d" % i) for i in range(200)]
FORKED = [*LEAVES[:5], *(leaf_hash(b"x%d" % i) for i in range(195))]


def request(old: int, new: int, leaves: list[bytes] = LEAVES) -> Request:
    signed = note.sign(Checkpoint(ORIGIN, new, fold(leaves[:new])).text(), ORIGIN, LOG)
    return Request(old, tuple(consistency_proof(lambda level, i: fold(leaves[i << level : (i + 1) << level]), old, new)), signed)


def post(port: int, body: bytes, path: str = "/add-checkpoint") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return create(tmp_path / "w", "renji.example/witness", [VKEY], port=0)


@pytest.fixture
def port(site: Site) -> Iterator[int]:
    with server(site) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield listening.server_address[1]
        listening.shutdown()
        thread.join()


def test_answers_are_those_of_the_protocol(site: Site, port: int) -> None:
    first = request(0, 10)
    status, _, body = post(port, first.encode())
    assert status == 200
    line, moment = cosignature_of(body, first.note, parse_key(site.vkey))
    assert abs(moment - time.time()) < 60
    assert body == line.encode()
    assert post(port, request(0, 10).encode()) == (409, "text/x.tlog.size", b"10\n")
    assert post(port, request(10, 20).encode())[0] == 200
    assert post(port, request(10, 30).encode()) == (409, "text/x.tlog.size", b"20\n")
    assert post(port, request(20, 30, FORKED).encode())[0] == 422
    assert post(port, request(20, 20, FORKED).encode()) == (409, "text/x.tlog.size", b"20\n")
    assert post(port, Request(40, (), request(20, 30).note).encode())[0] == 400
    assert post(port, b"old 1\n")[0] == 400
    foreign = note.sign(Checkpoint(ORIGIN, 1, LEAVES[0]).text(), ORIGIN, Ed25519PrivateKey.generate())
    assert post(port, Request(20, (), foreign).encode())[0] == 403
    unknown = note.sign(Checkpoint("x.example", 1, LEAVES[0]).text(), "x.example", LOG)
    assert post(port, Request(0, (), unknown).encode())[0] == 404
    assert post(port, first.encode(), "/other")[0] == 404
    assert post(port, b"x" * 70_000)[0] == 413
    # Two histories with the log's own signature are kept: together with what was cosigned they prove it.
    with server(Site(site.folder, site.name, site.logs, "127.0.0.1", 0, site.key)) as other:
        assert [(size, status) for _, size, status, _, _ in other.memory.evidence()] == [(20, 422), (20, 409)]


def test_many_at_once_never_turn_it_back(site: Site, port: int) -> None:
    """Everybody shows it larger and larger trees: each size is cosigned for one of them only, and in ascending order."""
    assert post(port, request(0, 1).encode())[0] == 200
    accepted: list[int] = []

    def climb() -> None:
        old = 1
        while old < 60:
            status, kind, body = post(port, request(old, old + 1).encode())
            if status == 200:
                old += 1
                accepted.append(old)
            else:
                assert (status, kind) == (409, "text/x.tlog.size")
                assert int(body) > old
                old = int(body)

    threads = [threading.Thread(target=climb) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(accepted) == list(range(2, 61))


@contextmanager
def process(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen([sys.executable, "-m", "medmesh", "witness", "run", str(folder)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                post(port, b"")
                break
            except OSError:
                assert time.monotonic() < deadline and running.poll() is None
                time.sleep(0.05)
        yield running
    finally:
        running.kill()
        running.wait()


def test_killed_at_any_moment_it_cosigns_no_other_history(tmp_path: Path) -> None:
    from medmesh.embedded.ports import Ports

    ports = Ports(tmp_path / "ports.json")
    (port,) = ports.take("witness")
    create(tmp_path / "w", "renji.example/witness", [VKEY], port=port)
    ports.close()
    with process(tmp_path / "w", port) as running:
        assert post(port, request(0, 10).encode())[0] == 200
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    with process(tmp_path / "w", port) as running:
        assert post(port, request(0, 10, FORKED).encode()) == (409, "text/x.tlog.size", b"10\n")
        assert post(port, request(10, 20, FORKED).encode())[0] == 422
        assert post(port, request(10, 20).encode())[0] == 200
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait(10) == 0


def test_a_folder_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    made = create(tmp_path / "w", "renji.example/witness", [VKEY])
    assert load(tmp_path / "w").vkey == made.vkey
    for folder, name, log, code in (
        ("w", "renji.example/witness", VKEY, "witness.exists"),
        ("v", "two words", VKEY, "witness.name"),
        ("v", "renji.example/witness", made.vkey, "ledger.key"),
        ("v", "renji.example/witness", "x", "ledger.key"),
    ):
        with pytest.raises(Problem) as caught:
            create(tmp_path / folder, name, [log])
        assert caught.value.code == code
    assert not (tmp_path / "v").exists()
    (tmp_path / "w" / "witness.key").chmod(0o644)
    with pytest.raises(Problem) as caught:
        load(tmp_path / "w")
    assert caught.value.code == "witness.folder"


def test_a_node_becomes_a_witness_of_the_log_it_was_enrolled_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from medmesh.cli import main
    from medmesh_edge.settings import Settings

    monkeypatch.setenv("MEDMESH_LANG", "en")
    Settings(hospital="renji", node="node-1", gateway="https://gateway.example").save(tmp_path)
    (tmp_path / "trust.json").write_text(json.dumps({"log_key": VKEY}))
    printed = []
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(["edge", "witness", "--folder", str(tmp_path), "--key-only"])
        assert ended.value.code == 0
        printed.append(capsys.readouterr().out.strip())
    assert printed[0] == printed[1] == load(tmp_path / "witness").vkey
    assert parse_key(printed[0]).name == "renji/witness"
    assert list(load(tmp_path / "witness").logs) == [ORIGIN]


def test_it_needs_little() -> None:
    code = (
        "import sys, medmesh.cli.witness, medmesh.witness.server, medmesh.cli.verify\n"
        "print(sorted({n.split('.')[0] for n in sys.modules} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert {name for name in eval(done.stdout) if not name.startswith(("_", "sitecustomize"))} <= {
        "click",
        "cryptography",
        "medmesh",
        "cffi",
    }
