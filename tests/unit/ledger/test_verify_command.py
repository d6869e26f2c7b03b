"""`medmesh audit verify` as an auditor runs it: exit codes, words in both languages, served logs, and how little it needs."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tests import ledgers
from tests.ledgers import Ledger, entries, entry, ledger

from medmesh.cli import main
from medmesh.ledger import note, tiles
from medmesh.ledger.cosignature import witness_key
from medmesh.ledger.proof import HEAD, Evidence, encode, evidence_file, parse
from medmesh.ledger.tree import inclusion_proof

LOG = note.verifier_key(ledgers.ORIGIN, ledgers.KEY.public_key())
WITNESS, OTHER = (str(witness_key(name, key)) for name, key in zip(ledgers.WITNESSES, ledgers.WITNESS_KEYS, strict=True))


@pytest.fixture
def made(tmp_path: Path) -> Ledger:
    return ledger(tmp_path / "copy", 300)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("MEDMESH_LANG", "en")
    monkeypatch.setenv("MEDMESH_SESSION", str(tmp_path / "nobody.json"))

    def command(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["audit", "verify", *map(str, arguments)])
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().out

    return command


def evidence(made: Ledger, seq: int) -> Evidence:
    found, size = entry(seq), made.checkpoint.size

    def tile(level: int, number: int, width: int) -> bytes:
        return (made.folder / tiles.path(level, number, width)).read_bytes()

    proof = parse(encode(seq, inclusion_proof(tiles.nodes(tile, size), seq, size), made.note()))
    return Evidence(proof, found.leaf, found.salt, found.body)


def test_a_copy_is_whole_altered_or_unreadable(run: Any, made: Ledger, tmp_path: Path) -> None:
    assert run("export", "--key", LOG, made.folder) == (0, "whole and unaltered: 300 records\n")
    code, said = run("export", "--key", LOG, "--witness", WITNESS, "--witness", OTHER, "--json", made.folder)
    assert code == 0
    assert json.loads(said)["witnesses"] == dict.fromkeys(ledgers.WITNESSES, ledgers.BEGAN)
    (tmp_path / "trust.json").write_text(json.dumps({"log_key": LOG}))
    assert run("export", "--key", tmp_path / "trust.json", made.folder)[0] == 0

    lines = (made.folder / "bodies.jsonl").read_bytes().splitlines(keepends=True)
    lines[7] = lines[7].replace(b'"seq": 7', b'"seq": 6')
    (made.folder / "bodies.jsonl").write_bytes(b"".join(lines))
    code, said = run("export", "--key", LOG, made.folder)
    assert code == 1
    assert "first bad entry: 6" in said
    assert run("export", "--key", LOG, "--hash-only", made.folder)[0] == 1
    assert run("export", "--key", LOG, "--tree-only", made.folder)[0] == 0
    (made.folder / "bodies.jsonl").unlink()
    assert run("export", "--key", LOG, made.folder)[0] == 2
    (made.folder / "tile/0/000").unlink()
    assert run("export", "--key", LOG, "--tree-only", made.folder)[0] == 2
    shutil.rmtree(made.folder / "tile")
    (made.folder / "checkpoint").unlink()
    assert run("export", "--key", LOG, made.folder)[0] == 2
    assert run("export", "--key", "nonsense", made.folder)[0] == 2


def test_what_is_said_is_chinese_for_who_reads_chinese(run: Any, made: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMESH_LANG", "zh_CN.UTF-8")
    assert run("export", "--key", LOG, made.folder) == (0, "完整且未被篡改：300 条记录\n")
    tile = made.folder / "tile/0/000"
    tile.write_bytes(bytes(32) + tile.read_bytes()[32:])
    code, said = run("export", "--key", LOG, made.folder)
    assert code == 1
    assert "存储的哈希与条目不符" in said
    assert "最早的异常条目：0" in said


def test_a_policy_demands_its_quorum(run: Any, made: Ledger, tmp_path: Path) -> None:
    stranger = str(witness_key("stranger.example", ledgers.KEY))
    lines = f"log {LOG}\nwitness a {WITNESS}\nwitness b {stranger}\ngroup g any a b\n"
    (tmp_path / "any").write_text(lines + "quorum g\n")
    (tmp_path / "both").write_text(lines.replace("any", "all") + "quorum g\n")
    (tmp_path / "broken").write_text("quorum x\n")
    (tmp_path / "nolog").write_text("quorum none\n")
    assert run("export", "--policy", tmp_path / "any", made.folder)[0] == 0
    code, said = run("export", "--policy", tmp_path / "both", made.folder)
    assert (code, "wanted 2 of (a, b); got a" in said) == (1, True)
    assert run("export", "--key", LOG, "--witness", stranger, made.folder)[0] == 1
    assert run("export", "--policy", tmp_path / "broken", made.folder)[0] == 2
    assert run("export", "--policy", tmp_path / "nolog", made.folder)[0] == 2
    assert run("export", made.folder)[0] == 2  # neither key nor policy: a mistake in the command
    assert run("export", "--key", LOG, "--policy", tmp_path / "any", made.folder)[0] == 2


def test_a_proof_is_one_file_in_either_form(run: Any, made: Ledger, tmp_path: Path) -> None:
    found = evidence(made, 42)
    parts = {name: base64.b64encode(getattr(found, name)).decode() for name in ("leaf", "salt", "body")}
    document = {"seq": 42, **parts, "proof": encode(42, found.proof.path, found.proof.checkpoint)}
    (tmp_path / "e.json").write_text(json.dumps(document))
    (tmp_path / "e.tlog-proof").write_text(evidence_file(found))
    assert (tmp_path / "e.tlog-proof").read_text().startswith(HEAD)
    for file in ("e.json", "e.tlog-proof"):
        code, said = run("proof", "--key", LOG, "--witness", WITNESS, tmp_path / file)
        assert (code, json.loads(said)["entities"][0]["id"]) == (0, "f-42")
    altered = [
        document | {"body": base64.b64encode(found.body.replace(b"person:li", b"person:lu")).decode()},
        document | {"salt": base64.b64encode(bytes(16)).decode()},
        document | {"leaf": base64.b64encode(entry(43).leaf).decode()},
        document | {"proof": document["proof"].replace("index 42", "index 43")},
        document | {"proof": document["proof"].replace("\n300\n", "\n301\n")},
        {**parts, "seq": 42, "proof": encode(42, found.proof.path[:-1], found.proof.checkpoint)},
    ]
    for broken in altered:
        (tmp_path / "e.json").write_text(json.dumps(broken))
        code, said = run("proof", "--key", LOG, "--json", tmp_path / "e.json")
        assert (code, json.loads(said)["verified"]) == (1, False), broken
    for unreadable in ("", "{}", "[]", HEAD, json.dumps(document | {"proof": "x"}), json.dumps(document | {"leaf": 7})):
        (tmp_path / "e.json").write_text(unreadable)
        assert run("proof", "--key", LOG, tmp_path / "e.json")[0] == 2, unreadable


def test_gaps_counts_emitters_and_flags_dates_that_run_back(run: Any, made: Ledger, tmp_path: Path) -> None:
    code, said = run("gaps", "--key", LOG, made.folder)
    assert code == 0
    assert "edge:renji: 1 to 60, 60 records, 0 gaps, 0 missing" in said
    content = list(entries(20))
    content[15] = entry(15, n=9)
    ledgers.write(tmp_path / "lossy", content)
    code, said = run("gaps", "--key", LOG, tmp_path / "lossy")
    assert code == 1
    assert "federation: 1 to 9, 4 records, 1 gaps, 5 missing" in said
    content = [entry(seq, tick=seq + 3 * 360_000) for seq in range(20)]
    content[15] = entry(15, tick=0)
    ledgers.write(tmp_path / "dated", content)
    code, said = run("gaps", "--key", LOG, "--json", tmp_path / "dated")
    assert code == 1
    assert {(n["seq"], n["field"]) for n in json.loads(said)["notices"]} == {(15, "h"), (15, "t"), (15, "tr")}
    assert run("gaps", "--key", LOG, "--tolerance", 4 * 3600, tmp_path / "dated")[0] == 0


class Door(SimpleHTTPRequestHandler):
    """A copy served as our audit service serves a log: tiles under /log, records for whoever has the token."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        parts = urlsplit(self.path)
        if parts.path != "/v1/bodies":
            self.path = self.path.removeprefix("/log")
            super().do_GET()
            return
        if self.headers.get("Authorization") != "Bearer good":
            self.send_error(401)
            return
        first = int(parse_qs(parts.query)["first"][0])
        lines = (Path(self.directory) / "bodies.jsonl").read_bytes().splitlines()
        body = json.dumps({"bodies": [json.loads(line) for line in lines if json.loads(line)["seq"] >= first][:100]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def served(made: Ledger) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (Door,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(made.folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/log", asked
        server.shutdown()


def test_a_served_log_is_fetched_hashed_and_resumed(run: Any, made: Ledger, served: tuple[str, list[str]], tmp_path: Path) -> None:
    url, asked = served
    token, kept = tmp_path / "token", tmp_path / "kept"
    token.write_text("good\n")
    assert run("log", "--key", LOG, "--token", token, "--keep", kept, url) == (0, "whole and unaltered: 300 records\n")
    assert kept.read_text() == made.note()
    assert run("log", "--key", LOG, "--tree-only", url)[0] == 0
    # The log grows; what the kept checkpoint vouches for is not fetched again.
    ledgers.write(made.folder, entries(700))
    asked.clear()
    code, said = run("log", "--key", LOG, "--token", token, "--from", kept, "--keep", kept, url)
    assert (code, said) == (0, "whole and unaltered: 700 records, 300 of them vouched for by the kept checkpoint\n")
    assert "/log/tile/entries/000" not in asked
    assert min(int(path.partition("first=")[2].partition("&")[0]) for path in asked if "bodies" in path) == 300
    assert run("log", "--key", LOG, "--token", token, "--from", kept, "--again", url) == (0, "whole and unaltered: 700 records\n")
    # Another history with the right signatures: only the kept checkpoint tells.
    content = list(entries(800))
    content[10] = entry(10, salt=b"another salt 16b")
    ledgers.write(made.folder, content)
    assert run("log", "--key", LOG, "--token", token, url)[0] == 0
    code, said = run("log", "--key", LOG, "--token", token, "--from", kept, url)
    assert (code, "History was rewritten: the first 700 records" in said) == (1, True)
    ledgers.write(made.folder, entries(600))
    assert "rolled back" in run("log", "--key", LOG, "--token", token, "--from", kept, url)[1]


def test_a_log_that_cannot_be_read_is_not_called_altered(run: Any, served: tuple[str, list[str]], tmp_path: Path) -> None:
    url, _ = served
    (tmp_path / "token").write_text("bad")
    assert run("log", "--key", LOG, "--token", tmp_path / "token", url)[0] == 2
    assert run("log", "--key", LOG, url)[0] == 2  # nobody is signed in: no records
    assert run("log", "--key", LOG, "--tree-only", url + "/nowhere")[0] == 2
    assert run("log", "--key", LOG, "--tree-only", "http://127.0.0.1:1/log")[0] == 2
    assert run("log", "--key", LOG, "--tree-only", "ftp://x")[0] == 2


def test_the_verifier_needs_little() -> None:
    """The library: the standard library and `cryptography`. The command: `click` beside them."""
    code = """
import sys
import importlib, pkgutil
import medmesh.ledger
for module in pkgutil.iter_modules(medmesh.ledger.__path__):
    if module.name not in OPTIONAL: importlib.import_module(f"medmesh.ledger.{module.name}")
foreign = {name.split(".")[0] for name in sys.modules} - sys.stdlib_module_names - {"__mp_main__"}
ours = {".".join(name.split(".")[:2]) for name in sys.modules if name.startswith("medmesh.")}
import medmesh.cli.audit
more = {name.split(".")[0] for name in sys.modules} - sys.stdlib_module_names - foreign
print(sorted(foreign), sorted(ours), sorted(more), sep="|")
""".replace("OPTIONAL", repr({"sm"}))
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    foreign, ours, more = done.stdout.strip().split("|")
    foreign_names = [name for name in json.loads(foreign.replace("'", '"')) if not name.startswith(("_", "sitecustomize"))]
    assert set(foreign_names) <= {"cryptography", "medmesh", "cffi"}
    assert set(json.loads(ours.replace("'", '"'))) <= {"medmesh.ledger", "medmesh.errors", "medmesh.canonical", "medmesh.catalogue"}
    assert json.loads(more.replace("'", '"')) == ["click"]
