"""STOW-RS killed anywhere: what was stored is on record, once."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.dicoms import records, rows
from tests.unit.archive.objects import made
from tests.unit.edge.test_privacy import SETTINGS

from medmesh.archive.tables import open_archive
from medmesh.dicomweb.stow import TOGETHER
from medmesh.service.asgi import serve
from medmesh_edge import archiving, clients
from medmesh_edge.api import application
from medmesh_edge.archiving import Archive
from medmesh_edge.node import Node
from medmesh_edge.ports import site


def _die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


async def _stow(folder: Path, until: str) -> None:
    """A node that takes two objects, or more, and is killed at `until`."""
    from medmesh.archive import indexing
    from medmesh.archive import records as archive_records
    from medmesh.archive.receive import Receiver

    objects = [made(), made(SOPInstanceUID="1.2.3.1.1.2"), made()[:600]]
    match until:
        case "written" | "second group":
            keep, groups = Receiver.keep, iter([_all] if until == "second group" else [])
            objects += [made(SOPInstanceUID=f"1.2.3.1.2.{number}") for number in range(TOGETHER)]
            Receiver.keep = lambda receiver, sealed: next(groups, _die)(keep, receiver, sealed)  # type: ignore[method-assign]
        case "stored":
            indexing.place = _die
        case "placed":
            archive_records.close = _die
        case "closed":
            archiving.put_on_record = _die
        case "recorded":
            archive_records.done = _die
    async with site(folder) as opened:
        token = await clients.create(opened, "pacs", "brain", "original", ("write",), 30)
        node = Node(opened, None)  # type: ignore[arg-type]
        async with serve(application(node), host="127.0.0.1", port=0) as port, httpx.AsyncClient(timeout=30) as http:
            body = b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n" for one in objects) + b"--b--\r\n"
            headers = {"Authorization": f"Bearer {token}", "Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
            await http.post(f"http://127.0.0.1:{port}/dicom-web/brain/studies", content=body, headers=headers)


def _all(keep: Any, receiver: Any, sealed: Any) -> Any:
    return keep(receiver, sealed)


def _process(folder: str, until: str) -> None:
    asyncio.run(_stow(Path(folder), until))


KEPT = {"written": (0, 0), "second group": (1, TOGETHER - 1)}
"""How many are in quarantine and received then; else all that came."""


@pytest.mark.parametrize("until", ["written", "second group", "stored", "placed", "closed", "recorded"])
async def test_what_was_stored_is_on_record_wherever_the_request_was_killed(private: Path, until: str) -> None:
    SETTINGS.save(private)
    async with site(private) as opened:
        opened.layout.site_key.parent.mkdir(exist_ok=True)
        opened.layout.site_key.write_text(secrets.token_hex(32))
        opened.layout.site_key.chmod(0o600)
        opened.layout.local_token.write_text(secrets.token_hex(32))
        opened.layout.local_token.chmod(0o600)
    process = multiprocessing.get_context("spawn").Process(target=_process, args=(str(private), until))
    process.start()
    await asyncio.to_thread(process.join, 60)
    assert process.exitcode == -signal.SIGKILL
    failed, stored = KEPT.get(until, (1, 2))
    wanted = [("quarantined", failed), ("received", stored)] if stored else []
    assert rows(private, "SELECT state, count(*) FROM objects GROUP BY 1 ORDER BY 1") == wanted

    for _ in range(2):  # as a node starts: once is enough, and twice is no more
        async with site(private) as opened:
            archive = Archive(opened)
            await archive.recover()
            archive.close()
    if not stored:
        assert [one for one in records(private) if one["sub"] == "dicomweb.store"] == []
        return
    (found,) = [one for one in records(private) if one["sub"] == "dicomweb.store"]
    assert found["agents"][0]["who"] == "system:pacs"
    assert found["entities"] == [{"type": "dataset", "id": f"{SETTINGS.hospital}/brain", "ver": "", "digest": ""}]
    assert {name: found["detail"][name] for name in ("stored", "known", "failed")} == {"stored": stored, "known": 0, "failed": failed}
    told = until in ("closed", "recorded")  # what became of the request was known then
    assert (found["out"], found["why"]) == ((0, "") if told else (8, "archive.interrupted"))
    assert rows(private, "SELECT count(*) FROM records") == [(0,)]


async def test_of_a_request_that_breaks_off_what_was_whole_is_stored_and_on_record(private: Path) -> None:
    SETTINGS.save(private)
    async with site(private) as opened:
        opened.layout.site_key.parent.mkdir(exist_ok=True)
        for path in (opened.layout.site_key, opened.layout.local_token):
            path.write_text(secrets.token_hex(32))
            path.chmod(0o600)
        token = await clients.create(opened, "pacs", "brain", "original", ("read", "write"), 30)
        node = Node(opened, None)  # type: ignore[arg-type]
        async with serve(application(node), host="127.0.0.1", port=0) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            kind = 'Content-Type: multipart/related; type="application/dicom"; boundary=b'
            head = f"POST /dicom-web/brain/studies HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n{kind}\r\n"
            whole = (made(), made(SOPInstanceUID="1.2.3.1.1.2"))
            body = b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n" for one in whole)
            writer.write(f"{head}Content-Length: {10**9}\r\n\r\n".encode() + body + b"--b\r\n\r\n" + made()[:600] + bytes(300_000))
            await writer.drain()
            writer.close()
            async with asyncio.timeout(60):
                while not (found := [one for one in records(private) if one["sub"] == "dicomweb.store"]):
                    await asyncio.sleep(0.05)
        node.archive.close()
    assert [(one["out"], one["why"]) for one in found] == [(4, "dicomweb.multipart")]
    assert {name: found[0]["detail"][name] for name in ("stored", "known", "failed")} == {"stored": 2, "known": 0, "failed": 0}
    assert rows(private, "SELECT state, count(*) FROM objects GROUP BY 1") == [("received", 2)]
    assert rows(private, "SELECT count(*) FROM instances") == [(2,)], "and found by who asks"


async def test_a_record_that_still_grows_is_taken_over_by_nobody(private: Path) -> None:
    from medmesh.archive import records as archive_records
    from medmesh.archive.tables import transaction

    SETTINGS.save(private)
    async with site(private) as opened:
        connection = open_archive(opened.layout.archive)
        growing = archive_records.Growing("1", archiving.record_body("dicomweb.store", "C", (), {"stored": 0}))
        for _ in range(3):
            with transaction(connection):
                archive_records.grow(connection, growing, {"stored": 2})
            assert await archiving.take_over(opened, connection) == 0
        with transaction(connection):
            archive_records.close(connection, growing, {"detail": {"known": 1}})
        assert await archiving.take_over(opened, connection) == 1
        connection.close()
    assert [one["detail"] for one in records(private)] == [{"stored": 6, "known": 1}]


def test_an_index_of_the_version_before_goes_on(tmp_path: Path) -> None:
    connection = open_archive(tmp_path)
    for undone in ("TABLE tiers", "TABLE cold_tier", "INDEX objects_by_content"):
        connection.execute(f"DROP {undone}")
    connection.execute("ALTER TABLE records DROP COLUMN open")
    connection.execute("INSERT INTO records (id, body) VALUES ('1', '{}')")
    connection.execute("PRAGMA user_version=1")
    connection.close()
    connection = open_archive(tmp_path)
    assert connection.execute("SELECT id, open FROM records").fetchall() == [("1", 0)]
    assert connection.execute("SELECT count(*) FROM tiers").fetchone() == (0,)
    connection.close()
