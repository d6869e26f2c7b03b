"""The key of pseudonyms in the hands of several people: any k of n bring it back, fewer do not, and nobody sees it on the way."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from shamir_mnemonic import combine_mnemonics
from tests.integration.test_forget import ALONE, prepare, records

from medmesh.errors import Problem
from medmesh.security import escrow as shares_of
from medmesh_edge import escrow
from medmesh_edge.ports import Site, site

HOLDERS = ("wang", "li", "zhao", "qian", "sun")


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Site]:
    async with site(prepare(private / "node", ALONE)) as opened:
        yield opened


def refused(code: str, call: object, *arguments: object, **named: object) -> None:
    with pytest.raises(Problem) as caught:
        call(*arguments, **named)  # type: ignore[operator]
    assert caught.value.code == code


def test_any_three_of_five_make_the_key_and_no_two_do() -> None:
    secret = os.urandom(32)
    made = shares_of.split(secret, key="k", holders=HOLDERS, needed=3)
    for some in itertools.combinations(made, 3):
        assert shares_of.join(some) == secret
        assert combine_mnemonics([share.words for share in some]) == secret  # by the reference implementation's own reading
    assert shares_of.join([*made, made[0]]) == secret
    for some in itertools.combinations(made, 2):
        refused("escrow.too_few", shares_of.join, some)
        refused("escrow.too_few", shares_of.join, [*some, some[0]])


def test_what_does_not_belong_together_is_said() -> None:
    first = shares_of.split(os.urandom(32), key="k", holders=HOLDERS, needed=2)
    other = shares_of.split(os.urandom(32), key="k", holders=HOLDERS, needed=2)
    refused("escrow.mixed", shares_of.join, [first[0], other[1]])
    import dataclasses

    lying = dataclasses.replace(other[1], fingerprint=first[0].fingerprint)
    refused("escrow.wrong", shares_of.join, [first[0], lying])
    words = first[1].words.split()
    words[5] = "academic" if words[5] != "academic" else "acid"
    refused("escrow.wrong", shares_of.join, [first[0], dataclasses.replace(first[1], words=" ".join(words))])
    for holders, needed in ((HOLDERS, 1), (HOLDERS, 6), (("li", "li"), 2), (("../li", "wu"), 2), (("li",), 2)):
        refused("escrow.numbers", shares_of.split, os.urandom(32), key="k", holders=holders, needed=needed)


async def test_a_lost_key_comes_back_and_a_drill_proves_it_without_showing_it(at: Site, private: Path) -> None:
    key = at.layout.site_key.read_bytes()
    files = await escrow.create(at, private / "shares", HOLDERS, 3)
    assert [path.name for path in files] == [f"{name}.share.json" for name in HOLDERS]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    for path in files:
        assert key not in path.read_bytes() and bytes.fromhex(key.decode()) not in path.read_bytes()

    before = {path: path.read_bytes() for path in at.layout.folder.rglob("*") if path.is_file() and not path.name.startswith("store.db")}
    told = await escrow.drill(at, files[1:4])
    assert told["holders"] == ["li", "qian", "zhao"]
    assert key.decode() not in json.dumps(told)
    after = {path: path.read_bytes() for path in at.layout.folder.rglob("*") if path.is_file() and not path.name.startswith("store.db")}
    assert after == before, "a drill writes nothing but that it was"

    with pytest.raises(Problem) as caught:
        await escrow.drill(at, files[:2])
    assert caught.value.code == "escrow.too_few"
    with pytest.raises(Problem) as caught:
        await escrow.create(at, private / "shares", HOLDERS, 3)
    assert caught.value.code == "escrow.exists"

    at.layout.site_key.unlink()
    await escrow.restore(at, files[2:])
    assert at.layout.site_key.read_bytes() == key
    assert at.layout.site_key.stat().st_mode & 0o777 == 0o600
    await escrow.restore(at, files[:3])

    at.layout.site_key.write_bytes(os.urandom(32).hex().encode())
    for call in (escrow.restore, escrow.drill):
        with pytest.raises(Problem) as caught:
            await call(at, files[:3])
        assert caught.value.code == "escrow.other_key"
    verbs = [record["sub"] for record in records(at.layout.folder)]
    assert verbs == ["escrow.create", "escrow.drill", "escrow.restore", "escrow.restore"]
    assert key.decode() not in json.dumps(records(at.layout.folder))


def test_by_hand(private: Path) -> None:
    folder = prepare(private / "node", ALONE)

    def run(*arguments: str) -> str:
        argv = [sys.executable, "-P", "-m", "medmesh", "edge", "escrow", *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout

    holders = [part for name in HOLDERS[:3] for part in ("--holder", name)]
    files = run("create", "--folder", str(folder), str(private / "shares"), *holders).split()
    assert len(files) == 3
    said = run("drill", "--folder", str(folder), *files[:2])
    assert "fingerprint" in said
    assert (folder / "secrets" / "pseudonyms" / "site.key").read_text() not in said
