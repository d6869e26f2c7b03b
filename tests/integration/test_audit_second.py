"""The second tree (SM3, SM2): it follows the first, survives its service, is copied and verified, and says which tree was touched."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.logs import audit_service, connected, copied, hand_in, records, vkey
from tests.platform import Platform

from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.ledger import sm, tiles
from medmesh_audit import second
from medmesh_audit.second import Second, load_keys

pytestmark = pytest.mark.xdist_group("audit-second")
ORIGIN = "medmesh/log"


def key_file(folder: Path, name: str = "sm2.json") -> Path:
    if not (folder / name).exists():
        sm.write_key(folder / name, ORIGIN)
    return folder / name


def public(folder: Path, name: str = "sm2.json") -> str:
    return str(sm.read_key((folder / name).read_bytes())[0])


async def followed(p: Platform, size: int) -> None:
    """Return when the second tree has this size."""
    async with asyncio.timeout(20):
        while True:
            async with p.runtimes["audit"].unit() as uow:
                try:
                    if (await second.newest(uow)).size >= size:
                        return
                except Problem:
                    pass
            await asyncio.sleep(0.05)


async def copy_of(p: Platform, folder: Path, size: int) -> Path:
    """A copy with the second tree, by what the doors serve."""
    await copied(p.runtimes["audit"], folder)
    async with p.runtimes["audit"].unit() as uow:
        for path in ("checkpoint", *(tiles.path(*place) for place in tiles.shape(size))):
            target = folder / "sm3" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(await second.log_file(uow, path))
    return folder


async def verify(folder: Path, key: str, *sm_keys: str) -> dict[str, Any]:
    """What `medmesh audit verify export` says."""
    command = [sys.executable, "-P", "-m", "medmesh", "audit", "verify", "export", "--key", key, "--json", str(folder)]
    command += [part for one in sm_keys for part in ("--sm-key", one)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == found["code"], done.stderr
    return found


async def test_it_follows_is_verified_and_tells_which_tree_was_touched(servers: RunningServers, private: Path, tmp_path: Path) -> None:
    async with audit_service(servers, private, sm_keys=[key_file(private)], sm_seconds=0.05) as p:
        await hand_in(p.bus, "governance", records("governance", 1, 400))
        await followed(p, 400)
        await hand_in(p.bus, "registry", records("registry", 1, 300))
        await followed(p, 700)
        copy = await copy_of(p, tmp_path / "copy", 700)
        found = await verify(copy, vkey(private), public(private))
        assert (found["verified"], found["notices"]) == (True, [])
        assert found["second"]["origin"] == "medmesh/log-sm3"
        assert found["second"]["size"] == 700

        unsigned = await verify(copy, vkey(private))
        assert unsigned["verified"]
        assert [notice["code"] for notice in unsigned["notices"]] == ["ledger.sm_unsigned"]
        sm.write_key(private / "strange.json", ORIGIN)
        strange = await verify(copy, vkey(private), public(private, "strange.json"))
        assert [fault["check"] for fault in strange["faults"]] == ["sm3-checkpoint"]

        def touched(path: str) -> Path:
            other = tmp_path / path.replace("/", "-")
            shutil.copytree(copy, other)
            data = bytearray((other / path).read_bytes())
            data[40] ^= 1
            (other / path).write_bytes(bytes(data))
            return other

        for path, checks in (
            ("sm3/tile/0/000", {"sm3-tile"}),
            ("sm3/tile/1/000.p/2", {"sm3-tile"}),
            ("tile/0/000", {"tile"}),
            ("sm3/checkpoint", {"sm3-checkpoint"}),
        ):
            faults = (await verify(touched(path), vkey(private), public(private)))["faults"]
            assert {fault["check"] for fault in faults} == checks, path
        gone = tmp_path / "gone"
        shutil.copytree(copy, gone, ignore=shutil.ignore_patterns("sm3"))
        assert (await verify(gone, vkey(private), public(private)))["code"] == 2
        assert (await verify(gone, vkey(private)))["verified"]


async def test_it_is_switched_on_later_comes_back_and_takes_a_new_key(servers: RunningServers, private: Path, tmp_path: Path) -> None:
    """Whoever runs it next computes everything anew, signs on, and stops when what was signed does not fit."""
    async with audit_service(servers, private) as p:
        runtime = p.runtimes["audit"]
        await hand_in(p.bus, "governance", records("governance", 1, 500))
        await hand_in(p.bus, "governance", records("governance", 501, 400))
        old = load_keys([key_file(private)], ORIGIN)
        await _until_quiet(Second(runtime, vkey(private), old))
        await hand_in(p.bus, "governance", records("governance", 901, 30))
        both = load_keys([key_file(private, "new.json"), key_file(private)], ORIGIN)
        await _until_quiet(Second(runtime, vkey(private), both))
        copy = await copy_of(p, tmp_path / "copy", 930)
        for name in ("sm2.json", "new.json"):
            assert (await verify(copy, vkey(private), public(private, name)))["verified"]

        async with connected(servers, p, superuser=True) as sql:
            await sql.execute("ALTER TABLE sm_tiles DISABLE TRIGGER USER")
            await sql.execute("UPDATE sm_tiles SET hashes = set_byte(hashes, 9, 255 - get_byte(hashes, 9)) WHERE number = 1")
        halted = Second(runtime, vkey(private), both)
        await halted.run(0.01, lambda: True)
        assert halted.halted is not None
        assert "sm_tiles 0/1" in str(halted.halted)
        assert any(record["sub"] == "audit.alarm.second" for record in await p.audited("audit"))


async def _until_quiet(one: Second) -> None:
    rounds = iter([True] * 6)
    await one.run(0.01, lambda: next(rounds, False))
    assert one.halted is None


def test_a_key_of_another_log_is_refused(tmp_path: Path) -> None:
    sm.write_key(tmp_path / "other.json", "other/log")
    with pytest.raises(Problem, match="other/log"):
        load_keys([tmp_path / "other.json"], ORIGIN)
    with pytest.raises(FileExistsError):
        sm.write_key(tmp_path / "other.json", ORIGIN)


def test_without_the_extra_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "medmesh.ledger.sm", None)
    monkeypatch.delattr("medmesh.ledger.sm")
    with pytest.raises(Problem) as refused:
        load_keys([tmp_path / "key.json"], ORIGIN)
    assert refused.value.code == "ledger.sm_missing"
    assert "medmesh[sm]" in refused.value.detail()
