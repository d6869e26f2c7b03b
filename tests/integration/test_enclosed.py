"""An update that comes with the message that names it: what is stored, what is recorded, and what is refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from tests.records import left
from tests.world import World

from medmesh.client import download
from medmesh.client.credentials import Node
from medmesh.client.gateway import Gateway
from medmesh.contracts.message import ObjectRef, new_id
from medmesh.errors import Problem
from medmesh_gateway import tables

PATH = "/v1/federations/f/updates"
DATA = os.urandom(1_000_000)
REF = ObjectRef(sha256=hashlib.sha256(DATA).hexdigest(), bytes=len(DATA))


def message(ref: ObjectRef = REF, **other: Any) -> dict[str, Any]:
    return {"round": 1, "attempt": 1, "update": ref.model_dump(), "samples": 3, **other}


async def submit(node: Gateway, enclosed: Sequence[bytes], document: dict[str, Any] | None = None, key: str = "") -> dict[str, Any]:
    """Without waiting: nobody here coordinates federations."""
    headers = {"Idempotency-Key": key or new_id()}
    answer: dict[str, Any] = await node._exchange("POST", PATH, document or message(), None, headers, enclosed)
    return answer


async def operations(world: World) -> int:
    async with world.p.runtimes["gateway"].unit() as uow:
        return int((await uow.execute(select(func.count()).select_from(tables.operations))).scalar_one())


async def test_it_is_stored_recorded_and_on_its_way_with_one_request(world: World, private: Path) -> None:
    async with world.node("renji") as renji:
        answer = await submit(renji, [DATA[:300_000], DATA[300_000:]], key="a-fixed-key-1")
        assert answer["state"] == "running"
        assert (await download(renji, REF, private / "back")).read_bytes() == DATA
        (record,) = await left(world.p, "object.write")
        assert (record["detail"], record["out"]) == ({"bytes": len(DATA)}, 0)
        assert [one["digest"] for one in record["entities"]] == [REF.sha256]
        assert record["agents"][0]["who"] == "hospital:renji"
        assert await submit(renji, [DATA], key="a-fixed-key-1") == answer, "said again, it is one command"
        assert await operations(world) == 1


async def test_bytes_that_are_not_what_the_message_names_are_refused_with_it(world: World) -> None:
    async with world.node("renji") as renji:
        for enclosed, code in (([DATA[:-1] + b"?"], "objects.digest"), ([DATA[:-1]], "objects.piece"), ([b""], "objects.piece")):
            with pytest.raises(Problem) as caught:
                await submit(renji, enclosed)
            assert caught.value.code == code
        with pytest.raises(Problem) as caught:
            await submit(renji, [DATA], message(REF.model_copy(update={"bytes": len(DATA) + 1})))
        assert caught.value.code == "objects.piece"
        assert await operations(world) == 0
        assert (await submit(renji, [DATA]))["state"] == "running"


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("multipart/related", b"--b\r\n\r\n%b\r\n--b\r\n\r\n%b\r\n--b--\r\n"),
        ("multipart/related; boundary=b", b"--b\r\n\r\n%b\r\n--b\r\n\r\n%b"),
        ("multipart/related; boundary=b", b"--b\r\n\r\n%b%b\r\n--b--\r\n"),
        ("multipart/related; boundary=b", b"--b\r\n\r\n%b\r\n--b\r\n\r\n%b\r\n--b\r\n\r\nmore\r\n--b--\r\n"),
    ],
    ids=["no boundary", "cut short", "one part", "three parts"],
)
async def test_what_is_not_a_document_and_its_bytes_is_no_request(world: World, kind: str, shape: bytes) -> None:
    async with world.node("renji") as renji:
        with pytest.raises(Problem) as caught:
            await renji.raw("POST", PATH, shape % (b"{}", b"bytes"), headers={"Content-Type": kind})
        assert caught.value.code == "request.invalid"
        assert "multipart/related" in caught.value.params["reason"]


async def test_a_document_that_was_altered_on_its_way_was_not_signed(world: World) -> None:
    async with world.node("renji") as renji:
        assert isinstance(renji.credentials, Node)
        body = b'--b\r\n\r\n{"samples": 4}\r\n--b\r\n\r\n' + DATA + b"\r\n--b--\r\n"
        signed = renji.credentials.headers("POST", PATH, b'{"samples": 3}')
        answer = await renji._http.post(PATH, content=body, headers={**signed, "Content-Type": "multipart/related; boundary=b"})
        assert answer.json()["code"] == "security.request_unsigned"


async def test_a_document_has_a_bound_also_with_bytes(world: World) -> None:
    async with world.node("renji") as renji:
        with pytest.raises(Problem) as caught:
            await submit(renji, [DATA], message(whole="x" * 300_000))
        assert caught.value.code == "request.too_large"
