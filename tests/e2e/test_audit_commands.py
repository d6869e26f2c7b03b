"""`medmesh audit …` and `medmesh edge audit …` as people drive them: processes of their own on a real platform, in both languages, with
wrong input too."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_nodes import enrolled
from tests.logs import vkey
from tests.world import PASSWORD, World, small_world

from medmesh.client.people import enrol
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers

pytestmark = pytest.mark.slow


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(servers, private, ports) as made:
        yield made


@dataclass
class Terminal:
    """One person's terminal: a session file of its own."""

    world: World
    name: str
    tongue: str = "en"

    async def run(self, *arguments: str, answer: str = "", tongue: str = "", code: int = 0) -> str:
        """What a command printed; it must end with `code`."""
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.world.p.folder),
            "MEDMESH_SESSION": str(self.world.p.folder / f"{self.name}.json"),
            "MEDMESH_AUDIT": self.world.audit,
            "MEDMESH_LANG": tongue or self.tongue,
            "PYTHONIOENCODING": "utf-8",
        }
        command = [sys.executable, "-P", "-m", "medmesh", *arguments]
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, input=answer, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout + (done.stderr if code else "")

    async def found(self, *arguments: str, **options: Any) -> Any:
        return json.loads(await self.run(*arguments, **options))


async def terminal(world: World, admin: Any, name: str, role: str) -> Terminal:
    """Somebody signed in with password and code, at the prompt."""
    person = await world.user(admin, name, role)
    made = Terminal(world, name)
    authenticator = world.authenticators[name]
    if not authenticator.secret:
        await enrol(person, authenticator)
    code = await authenticator.code()
    options = ["--gateway", world.url, "--ca", str(world.ca), "--password", PASSWORD]
    said = await made.run("login", name, *options, answer=f"{code}\n", tongue="zh")
    assert f"已登录：{name}" in said
    return made


async def test_an_auditor_searches_exports_traces_and_reads_the_evidence(world: World, private: Path) -> None:
    folder, admin, approver = await enrolled(world)
    world.roster(folder)
    qian = await terminal(world, admin, "qian", "auditor")

    found = await qian.found("audit", "search", "--verb", "node.*", "--limit", "5")
    assert {event["record"]["sub"] for event in found["events"]} <= {"node.enrolled", "node.renew"} and found["events"]
    seq = str(found["events"][0]["seq"])
    evidence = private / "one.tlog-proof"
    await qian.run("audit", "prove", seq, "--out", str(evidence))
    key = vkey(private / "keys")
    assert "node.enrolled" in await qian.run("audit", "verify", "proof", "--key", key, str(evidence))

    asked = await qian.found("audit", "request-export", "--format", "csv", "--org", "renji")
    target = private / "export.zip"
    waiting = await qian.run("audit", "download", asked["export"], str(target), "--wait", "0", code=1, tongue="zh")
    assert any("\u4e00" <= c <= "\u9fff" for c in waiting) and not target.exists()
    await world.decide(approver, asked["approval"])
    # More than five minutes may have passed on a slow machine: a code is there if it is asked for.
    again = await world.authenticators["qian"].code()
    assert "SHA-256" in await qian.run("audit", "download", asked["export"], str(target), answer=f"{again}\n")
    with zipfile.ZipFile(target) as opened:
        assert any(name.endswith(".csv") for name in opened.namelist())
    await qian.run("audit", "verify", "export", "--key", key, str(target))

    lineage = await qian.found("audit", "lineage", "model", "none")
    assert lineage["parts"]
    english, chinese = await qian.run("audit", "mlps"), await qian.run("audit", "mlps", tongue="zh")
    assert "8.1.4.3" in english and "8.1.4.3" in chinese
    assert sum("\u4e00" <= c <= "\u9fff" for c in chinese) > 500
    page = private / "mlps.html"
    await qian.run("audit", "mlps", "--html", str(page), tongue="zh")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")

    copy = private / "copy"
    trust = json.loads((folder / "trust.json").read_text())
    (folder / "trust.json").write_text(json.dumps({**trust, "log_key": key}))  # as it was handed over on paper
    node = ("--folder", str(folder))
    own = await qian.found("edge", "audit", "list", *node, "--verb", "node.*")
    assert {tuple(event["record"]["orgs"]) for event in own["events"]} == {("renji",)}
    await qian.run("edge", "audit", "export", *node, str(copy))
    assert "本院" in await qian.run("edge", "audit", "verify", *node, str(copy), tongue="zh")
    bodies = copy / "bodies.jsonl"
    bodies.write_text("\n".join(bodies.read_text().splitlines()[:-1]) + "\n")
    assert "withheld" in await qian.run("edge", "audit", "verify", *node, str(copy), code=1)


async def test_wrong_input_is_told_in_both_languages_and_nothing_happens(world: World, private: Path) -> None:
    admin = await world.admin()
    nobody = Terminal(world, "nobody")
    assert "medmesh login" in await nobody.run("audit", "search", code=1)
    qian = await terminal(world, admin, "qian", "auditor")
    li = await terminal(world, admin, "li", "researcher")
    for arguments, code in (
        (("audit", "search", "--outcome", "5"), 2),
        (("audit", "search", "--from", "yesterday"), 1),
        (("audit", "search", "--limit", "0"), 1),
        (("audit", "lineage", "patient", "x"), 2),
        (("audit", "request-export", "--format", "exe"), 2),
        (("audit", "request-export", "--from", "yesterday"), 1),
        (("audit", "download", "none", str(private / "none.zip"), "--wait", "0"), 1),
        (("audit", "prove", "999999999999999999999"), 1),
    ):
        english, chinese = await qian.run(*arguments, code=code), await qian.run(*arguments, code=code, tongue="zh")
        assert english.strip()
        assert code == 2 or (english != chinese and any("\u4e00" <= c <= "\u9fff" for c in chinese)), arguments
    assert not (private / "none.zip").exists()
    assert "audit.read" in await li.run("audit", "search", code=1), "a researcher reads no log"
    assert "audit.report" in await li.run("audit", "mlps", code=1)
