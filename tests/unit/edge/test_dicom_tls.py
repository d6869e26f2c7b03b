"""A node that receives over TLS, as its processes: DCMTK's tools, titles bound to certificates, files that are renewed."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tests.certificates import Authority
from tests.dicoms import children, image, node, rows, until

from medmesh.dimse.port import CALLING_UNKNOWN
from medmesh.errors import Problem
from medmesh.tasks import end
from medmesh_edge.dicom import Processes, port_of
from medmesh_edge.ports import site
from medmesh_edge.reception import Accept, Reception

TLS = """
[tls]
port = 0
certificate = "node.pem"
key = "node.key"
clients = "ca.pem"
[[accept]]
called = "BOUND"
calling = ["CT1"]
from = ["127.0.0.0/8"]
dataset = "brain"
certificate = ["ct1.hospital"]
"""


def run(*command: str) -> Any:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"LC_ALL": "C"})


@pytest.mark.skipif(shutil.which("storescu") is None, reason="DCMTK's tools are not installed")
async def test_dcmtk_sends_over_tls_and_a_title_is_bound_to_a_certificate(private: Path) -> None:
    authority = Authority(private, "ca")
    authority.issue("node")
    layout = node(private)
    layout.dicom.write_text(layout.dicom.read_text() + TLS)
    shown = {name: tuple(map(str, reversed(authority.issue(name)))) for name in ("ct1.hospital", "ct2.hospital")}
    path = private / "1.dcm"
    image(1).save_as(path)

    def send(title: str, *options: str) -> int:
        to = ("127.0.0.1", str(port_of(private, tls=True)), str(path))
        return int(run("storescu", *options, "-aet", "CT1", "-aec", title, *to).returncode)

    async with site(private) as at:
        task = asyncio.create_task(Processes(at).run())
        try:
            await until(lambda: port_of(private, tls=True) and answered(private))
            trusted = ("+cf", str(authority.file))
            assert port_of(private) is None, "nothing may come in the clear, so nobody listens for it"
            assert await asyncio.to_thread(send, "BOUND", "+tla", *trusted) != 0, "it showed no certificate"
            assert await asyncio.to_thread(send, "BOUND", "+tls", *shown["ct2.hospital"], *trusted) != 0, "nor this one"
            assert await asyncio.to_thread(send, "BOUND", "-tls") != 0
            assert rows(private, "SELECT count(*) FROM objects") == [(0,)]
            assert await asyncio.to_thread(send, "BOUND", "+tls", *shown["ct1.hospital"], *trusted) == 0
            assert await asyncio.to_thread(send, "BRAIN", "+tla", *trusted) == 0, "that title asks for none"
            assert rows(private, "SELECT called FROM objects WHERE source IS NULL") == [("BOUND",)]

            before = children("medmesh_edge.receiver")
            authority.issue("node")  # renewed
            await until(lambda: (now := children("medmesh_edge.receiver")) and not set(now) & set(before) and answered(private))
            assert await asyncio.to_thread(send, "BRAIN", "+tla", *trusted) == 0
        finally:
            await end(task)


def answered(folder: Path) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port_of(folder, tls=True) or 0), timeout=5).close()
    except OSError:
        return False
    return True


def test_without_plain_nothing_comes_in_the_clear() -> None:
    entry = {"called": "BRAIN", "calling": ("CT1",), "from": ("127.0.0.1",), "dataset": "brain"}
    files = {"certificate": "a", "key": "b", "clients": "c"}
    today = date(2026, 12, 1)

    def reception(*entries: dict[str, Any]) -> Reception:
        return Reception.model_validate({"tls": files, "accept": [entry | one for one in entries]})

    either = reception({"plain": True})
    assert isinstance(either.admit("BRAIN", "CT1", "127.0.0.1", today), Accept)
    assert either.in_the_clear
    only = reception({})
    assert only.admit("BRAIN", "CT1", "127.0.0.1", today) == CALLING_UNKNOWN
    assert isinstance(only.admit("BRAIN", "CT1", "127.0.0.1", today, frozenset()), Accept)
    assert not only.in_the_clear
    bound = reception({"certificate": ("ct1",)})
    assert bound.admit("BRAIN", "CT1", "127.0.0.1", today, frozenset()) == CALLING_UNKNOWN
    assert bound.admit("BRAIN", "CT1", "127.0.0.1", today, frozenset({"ct2"})) == CALLING_UNKNOWN
    assert isinstance(bound.admit("BRAIN", "CT1", "127.0.0.1", today, frozenset({"ct1"})), Accept)


def test_a_certificate_that_nobody_could_check_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "dicom.toml").write_text(TLS.replace('clients = "ca.pem"\n', ""))
    with pytest.raises(Problem) as found:
        Reception.read(tmp_path / "dicom.toml")
    assert found.value.code == "dicom.settings"
    assert "clients" in str(found.value)
