"""The drill: back up under load, lose everything, restore into a new folder; and keys of domains apart all the while."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults.harness import MEDMESH, Stage, until

from medmesh.backup.repository import Repository
from medmesh.client import Gateway
from medmesh.client.audit import at_the_door, export_log
from medmesh.client.doors import open_door
from medmesh.client.transfer import download, upload
from medmesh.contracts.message import ObjectRef
from medmesh.embedded.layout import DOMAINS
from medmesh.embedded.process import birth
from medmesh.embedded.vault import NAMES
from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger.copies import Folder
from medmesh.ledger.policy import demanding
from medmesh.ledger.tree import verify_consistency
from medmesh.ledger.verify import Wanted, verify_log
from medmesh.security.tokens import TrustBundle

pytestmark = pytest.mark.slow


def medmesh(*arguments: object, code: int = 0) -> str:
    done = subprocess.run([*MEDMESH, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("backup")
    made = Stage.up(folder)
    yield made
    with contextlib.suppress(subprocess.CalledProcessError):
        made.down()


def kill_everything(stage: Stage) -> None:
    run = stage.run
    everybody = [run.supervisor, *run.processes.values()]
    os.kill(run.supervisor.pid, signal.SIGKILL)
    for process in everybody:
        while birth(process.pid) == process.birth:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


class Load:
    """People who ask for approvals as fast as they are answered; `acknowledged` is what they were told is done."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.acknowledged: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()))
        self._thread.start()

    async def _ask(self) -> None:
        async with self.stage.door("li") as li:
            n = 0
            while not self._stop.is_set():
                n += 1
                body = {"action": "federation.start", "target": f"f-{n}", "digest": f"{n:064x}"}
                self.acknowledged.append((await li.command("POST", "/v1/approvals", body))["approval"])

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)


@contextlib.asynccontextmanager
async def auditors_door(stage: Stage) -> AsyncIterator[Gateway]:
    async with stage.door("qian") as qian, await open_door(qian, "audit", stage.run.urls["audit"]) as door:
        yield door


async def put(stage: Stage, path: Path, content: bytes) -> ObjectRef:
    path.write_bytes(content * 200_000)
    async with stage.door("li") as li:
        return await upload(li, path)


async def checkpoint(stage: Stage) -> str:
    async with auditors_door(stage) as door:
        return (await door.raw("GET", "/log/checkpoint")).text


def test_everything_is_lost_and_comes_back_and_the_log_goes_on(stage: Stage, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    image = tmp_path / "upload.bin"
    ref = asyncio.run(put(stage, image, b"kept before the backup"))
    log_key = TrustBundle.load(stage.data / "trust.json").log_key
    load = Load(stage)
    try:
        asyncio.run(until(lambda: _true(len(load.acknowledged) > 20), 60))
        outside = asyncio.run(checkpoint(stage))
        before = list(load.acknowledged)
        medmesh("vault", "key", tmp_path / "holder")
        medmesh("backup", "create", "--data", stage.data, tmp_path / "backups", "--key", tmp_path / "holder")
        during = len(load.acknowledged)
        assert during > len(before), "it was made while people worked"
        for name in NAMES:
            # Each domain has a holder of its own.
            medmesh("vault", "key", tmp_path / f"holder-{name}")
            medmesh("vault", "export", "--data", stage.data, name, tmp_path / f"{name}.keys", "--key", tmp_path / f"holder-{name}")
    finally:
        load.stop()
    secrets = {path: path.read_bytes() for path in (stage.data / "secrets").rglob("*") if path.is_file() and path.suffix != ".pem"}
    everything = b"\0".join(path.read_bytes() for path in (tmp_path / "backups").rglob("*") if path.is_file())
    assert image.read_bytes()[:1000] not in everything

    kill_everything(stage)
    gone = stage.data.with_name("gone")
    stage.data.rename(gone)
    if (gone / "postgres.elsewhere").exists():
        shutil.rmtree((gone / "postgres.elsewhere").read_text().strip())
    shutil.rmtree(gone)

    # A backup holds no key: without every domain's holder nothing starts.
    said = medmesh("backup", "restore", "--data", _new(stage.data), tmp_path / "backups", "--key", tmp_path / "holder", code=1)
    assert all(name in said for name in NAMES)
    for name in NAMES:
        other = NAMES[NAMES.index(name) - 1]
        medmesh("vault", "import", "--data", stage.data, name, tmp_path / f"{name}.keys", "--key", tmp_path / f"holder-{other}", code=1)
        medmesh("vault", "import", "--data", stage.data, name, tmp_path / f"{name}.keys", "--key", tmp_path / f"holder-{name}")
    assert {path: path.read_bytes() for path in secrets} == secrets
    medmesh("backup", "restore", "--data", stage.data, tmp_path / "backups", "--key", tmp_path / "holder")
    medmesh("up", "--data", stage.data)

    async def after() -> None:
        there = {row["approval"] for row in await stage.sql("SELECT approval FROM governance.approvals")}
        assert set(before) <= there, "nothing that was acknowledged before the backup is lost"
        async with stage.door("li") as li:
            copy = await download(li, ref, tmp_path / "again.bin")
            assert copy.read_bytes() == image.read_bytes()
            made = await li.command("POST", "/v1/approvals", {"action": "federation.start", "target": "new", "digest": "f" * 64})
            assert made["approval"] not in there
        await stage.settled(120)
        async with auditors_door(stage) as door:
            old = note.parse_checkpoint(note.verify(outside, log_key))

            async def grown() -> Any:
                found = note.parse_checkpoint(note.verify(await checkpoint(stage), log_key))
                return found if found.size > old.size else None

            new = await until(grown, 60)
            # A witness that was kept outside sees the same log go on: what it knew is the beginning of what is served now.
            answer = await door.request("GET", "/v1/consistency", query={"old": old.size, "new": new.size})
            proof = [base64.b64decode(one) for one in answer["proof"]]
            assert verify_consistency(old.size, new.size, old.root, new.root, proof)
            await export_log(at_the_door(door), tmp_path / "log")
        report = verify_log(Folder(tmp_path / "log"), Wanted(demanding(log_key)))
        assert report.verified, report.faults

    asyncio.run(after())
    # What was done on the machine before, during and after the loss is in the log: who, what, when, and which file it was.
    acts = told(stage)
    kinds = Counter((verb, code) for verb, _, code, _ in acts)
    assert kinds[("backup.restore", "backup.keys_missing")] == 1
    assert kinds[("vault.import", "")] == len(NAMES)
    assert kinds[("vault.import", "keyring.refused")] == len(NAMES)
    (restored,) = [detail for verb, out, _, detail in acts if (verb, out) == ("backup.restore", 0)]
    (made,) = Repository(tmp_path / "backups", tmp_path / "holder").names()
    digest = Repository(tmp_path / "backups", tmp_path / "holder").digest(made)
    assert restored["things"] == [{"type": "backup", "id": made, "ver": "", "digest": digest}]
    assert {detail["account"].split(" ")[-1] for *_, detail in acts} == {account()}
    files = {hashlib.sha256((tmp_path / f"{name}.keys").read_bytes()).hexdigest() for name in NAMES}
    assert {detail["file"] for verb, _, _, detail in acts if verb == "vault.import"} == files


def test_a_command_that_was_killed_is_in_the_log_and_nothing_is_recorded_twice(stage: Stage, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    medmesh("vault", "key", tmp_path / "holder")
    before = Counter((verb, code) for verb, _, code, _ in told(stage))
    arguments = ("backup", "create", "--data", stage.data, tmp_path / "backups", "--key", tmp_path / "holder")
    with subprocess.Popen([*MEDMESH, *map(str, arguments)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        asyncio.run(until(lambda: _true(any((stage.data / "maintenance").glob("*.json"))), 60, 0.002))  # it lies there for a moment
        process.kill()
    (left,) = (stage.data / "maintenance").glob("*.json")
    content = left.read_bytes()
    medmesh("backup", "create", *arguments[2:])
    # A delivery whose acknowledgement was lost: it lies there again.
    left.write_bytes(content)
    medmesh("vault", "export", "--data", stage.data, "log", tmp_path / "log.keys", "--key", tmp_path / "holder")
    after = Counter((verb, code) for verb, _, code, _ in told(stage))
    assert after - before == Counter({("backup.create", "maintenance.interrupted"): 1, ("backup.create", ""): 1, ("vault.export", ""): 1})


def test_the_evidence_page_shows_the_backup_that_the_log_tells_of(stage: Stage, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    medmesh("vault", "key", tmp_path / "holder")
    where = ("--data", stage.data, tmp_path / "backups", "--key", tmp_path / "holder")
    medmesh("backup", "create", *where)
    medmesh("backup", "verify", *where)
    told(stage)

    async def page() -> dict[str, Any]:
        async with auditors_door(stage) as door:
            found = await door.request("GET", "/v1/mlps/evidence")
            (clause,) = [one for one in found["clauses"] if one["clause"] == "8.1.4.9 a)"]
            linked = [(await door.request("GET", link))["record"]["sub"] for link in clause["links"]]
            return {**clause, "linked": linked}

    clause = asyncio.run(page())
    assert clause["state"] in ("part", "met")
    assert "backed up 0 days ago" in clause["proof"]["en"]
    assert clause["linked"][:2] == ["backup.create", "backup.verify"]


def _new(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def told(stage: Stage) -> list[tuple[str, int, str, dict[str, Any]]]:
    """(verb, outcome, code, detail) of what operators did, as the log has it, once everything was handed over."""

    async def ask() -> list[dict[str, Any]]:
        async def found() -> list[dict[str, Any]]:
            async with auditors_door(stage) as door:
                events = (await door.request("GET", "/v1/events", query={"actor": "service:operator", "limit": 1000}))["events"]
            return [entry["record"] for entry in events]

        size = -1
        while size != (now := len(await found())) or list((stage.data / "maintenance").glob("*")):
            size = now
            await asyncio.sleep(2)
        return await found()

    return [(r["sub"], r["out"], r["why"], r["detail"] | {"things": r["entities"]}) for r in asyncio.run(ask())]


def account() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


async def _true(value: bool) -> bool:
    return value


def test_a_second_backup_adds_what_is_new_and_an_altered_one_is_found(stage: Stage, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    where = ("--data", stage.data, tmp_path / "backups", "--key", tmp_path / "holder")
    medmesh("vault", "key", tmp_path / "holder")
    asyncio.run(put(stage, tmp_path / "upload.bin", b"kept before both backups"))
    medmesh("backup", "create", *where, "--suite", "sm-1")
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "backups" / "parts").rglob("*") if path.is_file()}
    medmesh("backup", "create", *where)
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    assert len(medmesh("backup", "list", *where[2:]).strip().splitlines()) == 2
    medmesh("backup", "verify", *where)
    stranger = tmp_path / "stranger"
    medmesh("vault", "key", stranger)
    medmesh("backup", "verify", tmp_path / "backups", "--key", stranger, code=1)
    # The newest is found wanting although its part lies there since the first one.
    common = set().union(*Repository(tmp_path / "backups", tmp_path / "holder").manifest().blobs.values())
    altered = max((path for path in parts if path.name.partition(".")[0] in common), key=lambda path: path.stat().st_size)
    data = bytearray(altered.read_bytes())
    data[-20] ^= 1
    altered.write_bytes(data)
    medmesh("backup", "verify", *where, code=1)


def test_keys_of_domains_never_share_a_folder_or_a_backup(stage: Stage, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    secrets = stage.data / "secrets"
    owners = {"ca.key": "authority", "log.nk": "log", "release.nk": "release", "project.key": "pseudonyms"}
    owners |= {"objects.1.wrap": "objects", "seal.1.wrap": "seal"}
    assert set(owners.values()) == set(DOMAINS.values())
    for file, domain in owners.items():
        (found,) = secrets.rglob(file)
        assert found.parent == secrets / domain
        inside = {path.name for path in found.parent.iterdir()} - {"ca.pem"}
        assert inside - {"log.sm2.json"} == {file}, f"{domain} holds something else too"
        assert "log.sm2.json" not in inside or domain == "log", "the second tree's key is the log's"
    values = {file: next(secrets.rglob(file)).read_bytes().strip() for file in owners}
    medmesh("vault", "key", tmp_path / "holder")
    from medmesh.embedded.vault import HOLDER, holder

    keys = holder(tmp_path / "holder")
    for name in NAMES:
        medmesh("vault", "export", "--data", stage.data, name, tmp_path / f"{name}.keys", "--key", tmp_path / "holder")
        text = (tmp_path / f"{name}.keys").read_text()
        opened = json.loads(keys.unwrap(HOLDER, text.strip(), f"medmesh-domain\0{name}".encode()))
        held = {base64.b64decode(one).strip() for one in opened.values()}
        assert {file for file, value in values.items() if value in held} == {file for file, domain in owners.items() if domain == name}
        with pytest.raises(Problem):
            keys.unwrap(HOLDER, text.strip(), b"medmesh-domain\0another")
    # The data backup, opened by its holder, holds none of them.
    medmesh("backup", "create", "--data", stage.data, tmp_path / "backups", "--key", tmp_path / "holder")
    from medmesh.backup.repository import Repository

    repository = Repository(tmp_path / "backups", tmp_path / "holder")
    manifest = repository.manifest()
    whole = json.dumps(manifest.public).encode() + b"".join(repository.part(part) for part in manifest.parts())
    assert b"medmesh" in whole
    for path in secrets.rglob("*"):
        if path.is_file() and path.name not in ("ca.pem", "server.pem", "bootstrap.sha256", "bootstrap.token"):
            assert path.read_bytes().strip() not in whole, path


def test_turning_keys_over_while_the_platform_runs(stage: Stage, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    files = []
    for n in range(3):
        (tmp_path / f"{n}").write_bytes(os.urandom(300_000 * (n + 1)))
        files.append(tmp_path / f"{n}")

    async def put() -> list[Any]:
        async with stage.door("li") as li:
            return [await upload(li, path) for path in files]

    refs = asyncio.run(put())
    medmesh("vault", "rotate", "--data", stage.data, "objects", "--suite", "sm-1")
    told = json.loads(medmesh("vault", "status", "--data", stage.data))
    assert told["objects"]["versions"] == [1, 2]
    assert set(told["objects"]["in_use"]) == {"2"}
    assert told["seal"] == {"versions": [1], "in_use": {"1": 3}}
    medmesh("vault", "retire", "--data", stage.data, "objects")
    assert json.loads(medmesh("vault", "status", "--data", stage.data))["objects"]["versions"] == [2]
    medmesh("vault", "rotate", "--data", stage.data, "seal")
    medmesh("vault", "retire", "--data", stage.data, "seal", code=1)

    async def get() -> None:
        async with stage.door("li") as li:
            for n, ref in enumerate(refs):
                assert (await download(li, ref, tmp_path / f"again-{n}")).read_bytes() == files[n].read_bytes()

    asyncio.run(get())
