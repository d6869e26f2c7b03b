"""What a provider of keys must do, held against a folder and against a keeper in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medmesh.errors import Problem
from medmesh.security import suites
from medmesh.security.keyring.file import FileKeys
from medmesh.security.keyring.port import KeyProvider, open_keys

SECRET = b"a key of 32 bytes, which is these"


@pytest.fixture
def made(private: Path) -> FileKeys:
    """Where keys are made: always a folder."""
    keys = FileKeys(private / "keys")
    keys.create("kek", "wrap", "intl-1")
    keys.create("chinese", "wrap", "sm-1")
    keys.create("signer", "sign", "intl-1")
    keys.create("sm2", "sign", "sm-1")
    keys.create("hidden", "wrap", "intl-1")
    return keys


@pytest.fixture(params=["file", "keeper"])
def keys(request: pytest.FixtureRequest, made: FileKeys, private: Path) -> Iterator[KeyProvider]:
    if request.param == "file":
        yield open_keys(made.folder)
        return
    with keeper(made.folder, private / "s", "kek", "chinese", "signer", "sm2", "unknown") as where:
        yield open_keys(where)


class keeper:
    """A keeper in its own process."""

    def __init__(self, folder: Path, socket: Path, *labels: str) -> None:
        argv = [sys.executable, "-m", "medmesh.security.keyring.keeper", "--folder", str(folder), "--socket", str(socket)]
        self.process = subprocess.Popen([*argv, *(part for label in labels for part in ("--allow", label))], stdout=subprocess.PIPE)
        self.socket = socket

    def __enter__(self) -> str:
        assert self.process.stdout is not None
        assert json.loads(self.process.stdout.readline()) == {"listening": str(self.socket)}
        return f"unix:{self.socket}"

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def refused(code: str, call: object, *arguments: object) -> None:
    with pytest.raises(Problem) as caught:
        call(*arguments)  # type: ignore[operator]
    assert caught.value.code == code


@pytest.mark.parametrize("label", ["kek", "chinese"])
def test_what_is_wrapped_opens_only_where_it_belongs(keys: KeyProvider, label: str) -> None:
    wrapped = keys.wrap(label, SECRET, b"object 1")
    assert SECRET.decode() not in wrapped
    assert wrapped.split(".")[:3] == ["sm-1" if label == "chinese" else "intl-1", label, "1"]
    assert keys.unwrap(label, wrapped, b"object 1") == SECRET
    assert keys.wrap(label, SECRET, b"object 1") != wrapped
    refused("keyring.refused", keys.unwrap, label, wrapped, b"object 2")
    other = "kek" if label == "chinese" else "chinese"
    refused("keyring.refused", keys.unwrap, other, wrapped, b"object 1")
    refused("keyring.refused", keys.unwrap, other, wrapped.replace(label, other), b"object 1")
    for altered in ("", "x.y", wrapped[:-8], wrapped.replace("intl-1", "sm-1") if label == "kek" else wrapped.replace("sm-1", "intl-1")):
        refused("keyring.refused", keys.unwrap, label, altered, b"object 1")


def test_the_newest_version_wraps_and_older_ones_open_until_they_are_destroyed(keys: KeyProvider, made: FileKeys) -> None:
    old = keys.wrap("kek", SECRET, b"")
    assert made.create("kek", "wrap", "sm-1") == 2
    assert keys.versions("kek") == [1, 2]
    new = keys.wrap("kek", SECRET, b"")
    assert new.startswith("sm-1.kek.2.")
    assert keys.unwrap("kek", old, b"") == keys.unwrap("kek", new, b"") == SECRET
    made.destroy("kek", 1)
    made.destroy("kek", 1)
    assert keys.versions("kek") == [2]
    refused("keyring.gone", keys.unwrap, "kek", old, b"")
    assert keys.unwrap("kek", new, b"") == SECRET


@pytest.mark.parametrize("label", ["signer", "sm2"])
def test_signatures_verify_with_the_public_key_it_tells(keys: KeyProvider, label: str) -> None:
    suite, public = keys.public(label)
    signature = keys.sign(label, b"data")
    assert suites.holds(signature, public, b"data", {suite})
    assert not suites.holds(signature, public, b"date", {suite})


def test_a_label_has_one_kind_and_a_wrong_one_is_said(keys: KeyProvider, made: FileKeys) -> None:
    refused("keyring.kind", keys.wrap, "signer", SECRET, b"")
    refused("keyring.kind", keys.sign, "kek", b"data")
    refused("keyring.kind", made.create, "kek", "sign", "intl-1")
    refused("keyring.unknown", keys.wrap, "unknown", SECRET, b"")
    for name in ("../kek", "", "Kek", "a" * 33):
        refused("keyring.label", keys.wrap, name, SECRET, b"")
    assert keys.versions("unknown") == []


def test_many_threads_at_once(keys: KeyProvider) -> None:
    def work(number: int) -> bool:
        return keys.unwrap("kek", keys.wrap("kek", SECRET, str(number).encode()), str(number).encode()) == SECRET

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(100)))


def test_a_keeper_answers_for_its_labels_only_and_makes_and_destroys_nothing(made: FileKeys, private: Path) -> None:
    with keeper(made.folder, private / "s", "kek") as where:
        keys = open_keys(where)
        refused("keyring.unknown", keys.wrap, "hidden", SECRET, b"")
        refused("keyring.read_only", keys.create, "kek", "wrap", "intl-1")
        refused("keyring.read_only", keys.destroy, "kek", 1)
    assert made.versions("kek") == [1]


def test_a_keeper_that_came_back_is_found_again_and_one_that_is_away_is_said(made: FileKeys, private: Path) -> None:
    with keeper(made.folder, private / "s") as where:
        keys = open_keys(where)
        wrapped = keys.wrap("kek", SECRET, b"")
    refused("keyring.unreachable", keys.unwrap, "kek", wrapped, b"")
    with keeper(made.folder, private / "s"):
        assert keys.unwrap("kek", wrapped, b"") == SECRET


def test_no_key_passes_through_a_keepers_socket(made: FileKeys, private: Path) -> None:
    """Whatever is asked, with and without reason, nothing of the key files comes back."""
    import socket
    import struct

    secrets = [path.read_text().split("\n")[1] for path in made.folder.iterdir()]
    told = b""
    with keeper(made.folder, private / "s"):
        for call in ("versions", "wrap", "unwrap", "sign", "public", "create", "destroy", "read", ""):
            for label in ("kek", "signer", "kek.1.wrap", "../keys/kek", ""):
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(str(private / "s"))
                message = json.dumps({"call": call, "label": label, "data": "", "bound": "", "wrapped": "x"}).encode()
                connection.sendall(struct.pack(">I", len(message)) + message)
                told += connection.recv(65536)
                connection.close()
    assert b"public" in told and b"problem" in told
    public = made.public("signer")[1]
    for secret in secrets:
        import base64

        raw = base64.b64decode(secret)
        private_half = raw[:32] if raw.endswith(public) else raw
        assert raw not in told and private_half not in told
        assert base64.b64encode(private_half) not in told and secret.encode() not in told


def test_a_key_file_others_may_read_is_refused(made: FileKeys) -> None:
    (made.folder / "kek.1.wrap").chmod(0o640)
    refused("security.key_exposed", made.wrap, "kek", SECRET, b"")
