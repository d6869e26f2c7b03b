"""Nothing secret is left lying about: no core dumps, no readable memory, no secret in logs, arguments or environments, temp space wiped."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.faults.harness import PASSWORD, Stage, until

from medmesh.client.transfer import upload
from medmesh.embedded.run import Run
from medmesh.security.residue import empty, wipe


def test_what_is_wiped_is_overwritten_and_links_are_not_followed(private: Path) -> None:
    kept = private / "kept"
    kept.write_bytes(b"somebody else's")
    folder = private / "work"
    (folder / "deep").mkdir(parents=True)
    secret = folder / "deep" / "image"
    secret.write_bytes(b"KANARY" * 1000)
    (folder / "link").symlink_to(kept)
    os.link(kept, folder / "same")
    opened = secret.open("rb")  # whoever still has the file sees zeros: the bytes are gone, not only their name
    wipe(folder)
    assert not folder.exists()
    assert set(opened.read()) == {0}
    opened.close()
    assert kept.read_bytes() == b"somebody else's"
    wipe(folder)


def test_a_folder_that_is_emptied_stays(private: Path) -> None:
    folder = private / "work"
    (folder / "deep").mkdir(parents=True)
    secret = folder / "image"
    secret.write_bytes(b"KANARY" * 1000)
    (folder / "deep" / "image").write_bytes(b"KANARY")
    (folder / "link").symlink_to(private)
    opened, before = secret.open("rb"), folder.stat().st_ino
    empty(folder)
    assert (folder.stat().st_ino, list(folder.iterdir())) == (before, [])
    assert set(opened.read()) == {0}
    opened.close()
    assert private.exists()


def test_a_locked_process_leaves_no_core_and_shows_no_memory() -> None:
    program = (
        "import os, resource, ctypes; from medmesh.security.residue import lock_down; lock_down();"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(0, 0) 0"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("residue")
    made = Stage.up(folder)
    yield made
    made.down()


def secrets_of(stage: Stage) -> dict[str, bytes]:
    """Every secret of the platform, its people and its hospital, as it could be written somewhere."""
    found: dict[str, bytes] = {"password": PASSWORD.encode()}
    for name, person in stage.sessions.items():
        found[f"session of {name}"] = person.session.encode()
    for place in (stage.data / "secrets", stage.hospital / "secrets"):
        for path in place.rglob("*"):
            if not path.is_file() or path.name in ("ca.pem", "server.pem", "node.pem", "node.next.csr"):
                continue
            text = path.read_bytes()
            if path.suffix == ".json":
                for key, value in json.loads(text).items():
                    if key.endswith("secret_key") or key == "secret":
                        found[f"{path.name} {key}"] = str(value).encode()
            elif b"-----BEGIN" in text:
                found[path.name] = text.split(b"\n")[2]
            elif path.suffix in (".wrap", ".sign"):
                found[path.name] = text.split(b"\n")[1]
            else:
                found[str(path.relative_to(place))] = text.strip()
    return {name: value for name, value in found.items() if len(value) >= 16}


def processes(stage: Stage) -> list[psutil.Process]:
    run = Run.read(stage.data)
    assert run is not None
    supervisor = psutil.Process(run.supervisor.pid)
    return [supervisor, *supervisor.children(recursive=True)]


def work(stage: Stage, folder: Path) -> None:
    async def some() -> None:
        (folder / "image").write_bytes(b"KANARY-IN-AN-UPLOAD" * 500_000)
        async with stage.door("li") as li, stage.door("wu") as wu:
            await upload(li, folder / "image")
            asked = await li.command("POST", "/v1/approvals", {"action": "federation.start", "target": "f", "digest": "0" * 64})
            await stage.decide(wu, asked["approval"])
            await li.request("POST", "/v1/tokens/audit")
            with pytest.raises(Exception, match=r"."):
                await li.request("POST", "/v1/sessions", {"name": "li", "password": PASSWORD + "x"})
        await stage.settled()

    asyncio.run(some())


def test_after_a_run_no_secret_is_in_logs_arguments_or_environments(stage: Stage, tmp_path: Path) -> None:
    work(stage, tmp_path)
    secrets = secrets_of(stage)
    assert len(secrets) > 30
    places: dict[str, bytes] = {}
    for process in processes(stage):
        for file in ("cmdline", "environ"):
            places[f"{process.pid} {process.name()} {file}"] = Path(f"/proc/{process.pid}/{file}").read_bytes()
    for folder in ("logs", "telemetry"):
        for path in (stage.data / folder).rglob("*"):
            if path.is_file():
                places[str(path.relative_to(stage.data))] = path.read_bytes()
    places["supervisor.log"] = (stage.data / "supervisor.log").read_bytes()
    places["run.json"] = (stage.data / "run.json").read_bytes()
    for path in (stage.data / "settings").iterdir():
        places[path.name] = path.read_bytes()
    # The search finds what is there: ports and names of services stand in all of these.
    assert sum(b"medmesh" in content for content in places.values()) > 30
    assert any("gateway" in name and b"http" in content for name, content in places.items())
    leaks = [(secret, place) for secret, value in secrets.items() for place, content in places.items() if value in content]
    assert leaks == []


def test_every_process_that_holds_keys_leaves_no_core_dump(stage: Stage) -> None:
    checked = set()
    for process in processes(stage):
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        (core,) = re.findall(r"^Max core file size\s+(\d+|unlimited)\s+(\d+|unlimited)", limits, re.M)
        assert core == ("0", "0"), process.name()
        checked.add(process.name())
    assert {"nats-server", "weed"} <= checked
    assert len([name for name in checked if name.startswith("medmesh ")]) >= 9


def test_uploads_are_gone_from_temporary_space(stage: Stage, tmp_path: Path) -> None:
    work(stage, tmp_path)

    async def clean() -> Any:
        found = [path for path in stage.data.rglob("*") if path.is_file() and _holds(path, b"KANARY-IN-AN-UPLOAD")]
        return not found

    asyncio.run(until(clean, 20))


def _holds(path: Path, needle: bytes) -> bool:
    try:
        return needle in path.read_bytes()
    except OSError:
        return False
