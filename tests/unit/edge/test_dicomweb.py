"""The node's DICOMweb over a real socket, as its peer `dicomweb-client` speaks it and by hand where that cannot."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from dicomweb_client.session_utils import create_session
from PIL import Image
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from tests.unit.archive.objects import FILES, made
from tests.unit.edge.test_privacy import SETTINGS

from medmesh.archive.tables import open_archive, scope, transaction
from medmesh.service.asgi import serve
from medmesh_edge import clients, patients
from medmesh_edge.archiving import Archive
from medmesh_edge.node import Node, page
from medmesh_edge.ports import Site, site
from medmesh_edge.settings import ColdTier
from medmesh_edge.tiering import Tiering


@dataclass
class Door:
    site: Site
    root: str
    token: str
    http: httpx.AsyncClient

    def client(self, token: str = "") -> DICOMwebClient:
        session = create_session()
        session.headers["Authorization"] = f"Bearer {token or self.token}"
        return DICOMwebClient(self.root, session=session)

    async def call(self, run: Callable[[DICOMwebClient], Any]) -> Any:
        return await asyncio.to_thread(run, self.client())

    async def stow(self, *objects: bytes, path: str = "/studies", **headers: str) -> httpx.Response:
        body = b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n" for one in objects) + b"--b--\r\n"
        given = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b', **headers}
        return await self.http.post(self.root + path, content=body, headers=given)

    async def get(self, path: str, accept: str = "*/*") -> httpx.Response:
        return await self.http.get(self.root + path, headers={"Accept": accept})

    async def records(self) -> list[dict[str, Any]]:
        async with self.site.database.engine.connect() as sql:
            rows = (await sql.exec_driver_sql("SELECT body FROM audit_outbox ORDER BY n")).fetchall()
        return [json.loads(row[0]) for row in rows]


@pytest.fixture
async def door(private: Path) -> AsyncIterator[Door]:
    SETTINGS.save(private)
    async with site(private) as opened:
        opened.layout.local_token.parent.mkdir(exist_ok=True)
        opened.layout.site_key.parent.mkdir(exist_ok=True)
        for path in (opened.layout.local_token, opened.layout.site_key):
            path.write_text(secrets.token_hex(32))
            path.chmod(0o600)
        node = Node(opened, None)  # type: ignore[arg-type]
        token = await clients.create(opened, "pacs-viewer", "brain", "original", ("read", "write"), 30)
        async with serve(page(node), host="127.0.0.1", port=0) as port:
            root = f"http://127.0.0.1:{port}/dicom-web/brain"
            async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=30) as http:
                yield Door(opened, root, token, http)
        node.archive.close()


def dataset(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(data))


@pytest.mark.filterwarnings("ignore:No bulk data URI handler")  # pydicom's, of what metadata leave out
async def test_a_peer_stores_searches_and_retrieves(door: Door) -> None:
    ct, rle = (FILES / "CT_small.dcm").read_bytes(), (FILES / "SC_rgb_rle_2frame.dcm").read_bytes()
    chinese = made(SOPInstanceUID="1.2.3.1.1.7")
    answer = await door.call(lambda c: c.store_instances([dataset(one) for one in (ct, rle, chinese)]))
    assert len(answer.ReferencedSOPSequence) == 3
    assert "FailedSOPSequence" not in answer

    found = await door.call(lambda c: c.search_for_studies(search_filters={"PatientName": "王小东"}))
    assert [one["0020000D"]["Value"] for one in found] == [["1.2.3.1"]]
    found = await door.call(
        lambda c: c.search_for_studies(search_filters={"PatientName": "xiao"}, fuzzymatching=True, limit=5, fields=["StudyID"])
    )
    assert [one["00100020"]["Value"] for one in found] == [["P1"]]
    of = dataset(ct)
    place = str(of.StudyInstanceUID), str(of.SeriesInstanceUID), str(of.SOPInstanceUID)
    assert len(await door.call(lambda c: c.search_for_series(place[0]))) == 1
    assert len(await door.call(lambda c: c.search_for_instances(*place[:2]))) == 1
    assert await door.call(lambda c: c.search_for_studies(search_filters={"PatientID": "nobody"})) == []

    (told,) = await door.call(lambda c: c.retrieve_study_metadata(place[0]))
    assert pydicom.Dataset.from_json(told).PatientName == of.PatientName
    back = await door.call(lambda c: c.retrieve_instance(*place))
    assert back == of
    (back,) = await door.call(lambda c: c.retrieve_study(place[0]))
    assert back.pixel_array.tobytes() == of.pixel_array.tobytes()
    (frame,) = await door.call(lambda c: c.retrieve_instance_frames(*place, [1]))
    assert frame == of.PixelData
    (bulk,) = await door.call(lambda c: c.retrieve_bulkdata(told["7FE00010"]["BulkDataURI"]))
    assert bulk == of.PixelData
    picture = await door.call(lambda c: c.retrieve_instance_rendered(*place, media_types=("image/png",)))
    assert Image.open(io.BytesIO(picture)).size == (128, 128)

    coloured = dataset(rle)
    place = str(coloured.StudyInstanceUID), str(coloured.SeriesInstanceUID), str(coloured.SOPInstanceUID)
    frames = await door.call(lambda c: c.retrieve_instance_frames(*place, [2, 1]))
    assert frames == [coloured.pixel_array[1].tobytes(), coloured.pixel_array[0].tobytes()]
    packed = await door.call(lambda c: c.retrieve_instance_frames(*place, [1], media_types=("image/dicom-rle",)))
    assert packed == [next(iter(pydicom.encaps.generate_frames(coloured.PixelData, number_of_frames=2)))]
    done = ["dicomweb.token_create", "dicomweb.store", *["dicomweb.search"] * 5, *["dicomweb.retrieve"] * 8]
    assert [(one["sub"], one["out"]) for one in await door.records()] == [(verb, 0) for verb in done], "each call is one record"


async def test_every_request_leaves_its_record_and_no_record_names_a_patient(door: Door) -> None:
    await door.stow(made(), made(SOPInstanceUID="1.2.3.9", PatientID="P2"), b"nothing")
    await door.get("/studies?PatientID=P1")
    await door.get("/studies/1.2.3.1/metadata")
    await door.get("/studies/9.9/metadata")
    await door.get("/studies?Nothing=1")
    records = [one for one in await door.records() if one["sub"].startswith("dicomweb.") and "token" not in one["sub"]]
    assert [(one["sub"], one["out"]) for one in records] == [
        ("dicomweb.store", 0),
        ("dicomweb.search", 0),
        ("dicomweb.retrieve", 0),
        ("dicomweb.retrieve", 4),
        ("dicomweb.search", 4),
    ]
    text = json.dumps(await door.records(), ensure_ascii=False)
    for secret in ("P1", "P2", "1.2.3.1", "小东", "XiaoDong", door.token):
        assert secret not in text, secret
    assert "pacs-viewer" in text


async def test_what_a_store_answers(door: Door) -> None:
    answer = await door.stow(made())
    assert answer.status_code == 200
    assert answer.json()["00081190"]["Value"] == [f"{door.root}/studies/1.2.3.1"]
    (kept,) = answer.json()["00081199"]["Value"]
    assert kept["00081190"]["Value"] == [f"{door.root}/studies/1.2.3.1/series/1.2.3.1.1/instances/1.2.3.1.1.1"]
    assert (await door.stow(made())).status_code == 200  # the very same again
    other = made(StudyDescription="other")
    answer = await door.stow(other, made(SOPInstanceUID="1.2.3.1.1.2"))
    assert answer.status_code == 202  # the same instance with other content is told, and kept out
    (failed,) = answer.json()["00081198"]["Value"]
    assert (failed["00081155"]["Value"], failed["00081197"]["Value"]) == (["1.2.3.1.1.1"], [0xA900])
    answer = await door.stow(b"not an object", made()[:600])
    assert answer.status_code == 409
    assert [one["00081197"]["Value"] for one in answer.json()["0008119A"]["Value"]] == [[0xC000]]
    assert answer.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xC000]
    answer = await door.stow(made(SOPInstanceUID="1.2.3.1.1.5"), path="/studies/1.2.99")
    assert answer.status_code == 409
    assert answer.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xA900]
    assert len((await door.get("/studies/1.2.3.1/instances")).json()) == 2
    assert [one["detail"]["rows"] for one in await door.records() if one["sub"] == "dicomweb.search"] == [2]
    single = await door.http.post(
        door.root + "/studies", content=made(SOPInstanceUID="1.2.3.1.1.9"), headers={"Content-Type": "application/dicom"}
    )
    assert single.status_code == 200


async def test_what_cannot_be_taken(door: Door) -> None:
    kind = 'multipart/related; type="application/dicom"'
    for content_type, body, status, code in (
        ("application/json", b"{}", 415, "dicomweb.unsupported"),
        ('multipart/related; type="application/dicom+json"; boundary=b', b"--b--", 415, "dicomweb.unsupported"),
        (kind, b"--b--", 400, "dicomweb.multipart"),
        (f"{kind}; boundary=b", b"", 400, "dicomweb.multipart"),
        (f"{kind}; boundary=b", b"--b--", 400, "dicomweb.empty"),
        (f"{kind}; boundary=b", b"--b\r\n\r\n" + made() + b"\r\n--c--", 400, "dicomweb.multipart"),
    ):
        answer = await door.http.post(door.root + "/studies", content=body, headers={"Content-Type": content_type})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (await door.get("/studies")).json() == []


async def test_no_room_is_told_with_when_to_come_again(door: Door) -> None:
    (door.site.layout.dicom).write_text("reserve_mib = 1000000000\n")
    answer = await door.stow(made())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")


async def test_only_who_shows_the_right_token_gets_anything(door: Door) -> None:
    await door.stow(made())
    reading = await clients.create(door.site, "reader", "brain", "original", ("read",), 30)
    clean = await clients.create(door.site, "research", "brain", "clean", ("read",), 30)
    elsewhere = await clients.create(door.site, "elsewhere", "heart", "original", ("read", "write"), 30)
    old = await clients.create(door.site, "old", "brain", "original", ("read",), 0)
    for token, status in ((reading, 200), (clean, 200), (elsewhere, 403), (old, 401), ("-", 401), ("x" * 43, 401), (door.token[:-1], 401)):
        answer = await door.http.get(door.root + "/studies", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == status, status
        if token == clean:
            assert answer.json() == []  # originals are not in it
    body = {"Authorization": f"Bearer {reading}", "Content-Type": "application/dicom"}
    assert (await door.http.post(door.root + "/studies", content=made(), headers=body)).status_code == 403
    await clients.revoke(door.site, "reader")
    assert (await door.http.get(door.root + "/studies", headers={"Authorization": f"Bearer {reading}"})).status_code == 401
    text = (door.site.layout.folder / "store.db").read_bytes()
    assert door.token.encode() not in text


async def test_a_project_sees_pseudonyms_and_nothing_of_who_is_forgotten(door: Door) -> None:
    data = made(PatientID="pseudonym", PatientName="pseudonym")
    async with door.site.unit() as uow:
        keys = await patients.ensure(uow, door.site, ["pseudonym"])
    await patients.images(door.site, keys["pseudonym"]).put(data)
    from medmesh.archive import header, index

    connection = open_archive(door.site.layout.archive)
    with transaction(connection):
        place = scope(connection, "brain", "clean")
        row = connection.execute(
            "INSERT INTO objects (scope, sha256, bytes, state, at) VALUES (?, ?, ?, 'cleaned', 1) RETURNING id",
            (place, hashlib.sha256(data).hexdigest(), len(data)),
        ).fetchone()[0]
        assert index.put(connection, place, row, header.read(io.BytesIO(data))) is None
    connection.close()
    token = await clients.create(door.site, "research", "brain", "clean", ("read",), 30)
    door.http.headers["Authorization"] = f"Bearer {token}"
    answer = await door.get("/studies/1.2.3.1/series/1.2.3.1.1/instances/1.2.3.1.1.1", "application/dicom; transfer-syntax=*")
    assert answer.content == data
    patient = [one["id"] for one in (await door.records())[-1]["entities"] if one["type"] == "patient"]
    assert len(patient) == 1
    assert "pseudonym" not in patient[0]
    from sqlalchemy import delete

    from medmesh_edge.tables import patients as rows

    async with door.site.unit() as uow:
        await uow.execute(delete(rows))
    answer = await door.get("/studies/1.2.3.1/series/1.2.3.1.1/instances/1.2.3.1.1.1", "application/dicom; transfer-syntax=*")
    assert answer.status_code == 404


async def test_who_was_forgotten_is_not_brought_back(door: Door) -> None:
    from medmesh_edge import forgetting, withdrawn

    withdrawn.add(door.site, forgetting.who(door.site, "P1"))
    answer = await door.stow(
        made(), made(SOPInstanceUID="1.2.9.1.1", StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1", PatientID="P2")
    )
    assert answer.status_code == 202
    assert answer.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0x0110]
    assert [one["00100020"]["Value"] for one in (await door.get("/studies")).json()] == [["P2"]]


async def test_what_is_cold_is_given_and_comes_back_and_what_is_away_is_told(door: Door) -> None:
    assert (await door.stow(made())).status_code == 200
    cold = door.site.layout.folder / "cold"
    cold.mkdir()
    door.site.settings = door.site.settings.model_copy(update={"cold": ColdTier(folder=cold, after_days=0)})
    connection = open_archive(door.site.layout.archive)
    connection.execute("UPDATE objects SET state = 'cleaned'")  # the pipeline is done with it
    archive = Archive(door.site)
    tiering = Tiering(archive)
    while await tiering.step():
        pass
    path = "/studies/1.2.3.1/series/1.2.3.1.1/instances/1.2.3.1.1.1"
    cold.rename(cold.with_name("away"))
    answer = await door.get(path, "application/dicom")
    assert (answer.status_code, answer.json()["code"]) == (503, "archive.cold_away")
    assert (await door.get("/studies/1.2.3.1/metadata")).status_code == 200, "headers are in the index"
    assert (await door.records())[-2]["why"] == "archive.cold_away"
    cold.with_name("away").rename(cold)
    assert (await door.get(path, "application/dicom")).content == made()
    assert connection.execute("SELECT state FROM tiers").fetchall() == [("recalling",)]
    for one in (tiering, archive, connection):
        one.close()


async def test_media_types_and_transfer_syntaxes(door: Door) -> None:
    jpeg = (FILES / "SC_rgb_jpeg_dcmtk.dcm").read_bytes()
    implicit, big = (FILES / "MR_small_implicit.dcm").read_bytes(), (FILES / "MR_small_bigendian.dcm").read_bytes()
    for data in (jpeg, implicit):
        assert (await door.stow(data)).status_code == 200

    def address(data: bytes) -> str:
        of = dataset(data)
        return f"/studies/{of.StudyInstanceUID}/series/{of.SeriesInstanceUID}/instances/{of.SOPInstanceUID}"

    multipart = 'multipart/related; type="application/dicom"'
    for data in (jpeg, implicit):
        answer = await door.get(address(data), "application/dicom; transfer-syntax=*")
        assert answer.content == data
        answer = await door.get(address(data), "application/dicom")
        assert dataset(answer.content).file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert np.array_equal(dataset(answer.content).pixel_array, dataset(data).pixel_array)
        assert (await door.get(address(data), f"{multipart}; transfer-syntax={ExplicitVRBigEndian}")).status_code == 406
        assert (await door.get(address(data), "image/png")).status_code == 406
    answer = await door.get(address(jpeg) + "/frames/1", 'multipart/related; type="image/jpeg"')
    assert b"Content-Type: image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50" in answer.content
    assert b"\xff\xd8\xff" in answer.content
    assert (await door.get(address(implicit) + "/frames/1", 'multipart/related; type="image/jpeg"')).status_code == 406
    assert (await door.get(address(implicit) + "/frames/2")).status_code == 404
    assert (await door.get(address(implicit) + "/frames/one")).status_code == 400
    assert (await door.get(address(implicit) + "/frames/1", "application/octet-stream")).content == dataset(implicit).PixelData
    assert (await door.get("/studies/" + address(implicit).split("/")[2] + "/metadata", "application/dicom+xml")).status_code == 406
    # The same pixels in big endian, of the same instance in another project.
    token = await clients.create(door.site, "other", "other", "original", ("read", "write"), 30)
    door.http.headers["Authorization"] = f"Bearer {token}"
    door.root = door.root.replace("/brain", "/other")
    assert (await door.stow(big)).status_code == 200
    assert (await door.get(address(big) + "/frames/1", "application/octet-stream")).content == dataset(implicit).PixelData
    assert (await door.get(address(big) + "/bulkdata/7FE00010", "application/octet-stream")).content == dataset(implicit).PixelData
    answer = await door.get(address(big), "application/dicom")
    assert np.array_equal(dataset(answer.content).pixel_array, dataset(big).pixel_array)


async def test_a_window_is_looked_through_as_the_standard_says(door: Door) -> None:
    ramp = np.arange(256, dtype="<u2").reshape(16, 16)
    data = made(
        ImplicitVRLittleEndian, Rows=16, Columns=16, BitsAllocated=16, BitsStored=16, HighBit=15, PixelData=ramp.tobytes(),
        RescaleSlope="2", RescaleIntercept="-100",
    )  # fmt: skip
    assert (await door.stow(data)).status_code == 200
    path = "/studies/1.2.3.1/series/1.2.3.1.1/instances/1.2.3.1.1.1/rendered"

    async def seen(query: str) -> Any:
        answer = await door.get(path + query, "image/png")
        assert answer.status_code == 200, answer.text
        return np.asarray(Image.open(io.BytesIO(answer.content)))

    values = ramp.astype(float) * 2 - 100
    # PS3.3 C.11.2.1.2.1: y = ((x - (c - 0.5)) / (w - 1) + 0.5) * 255
    wanted = np.clip(((values - (40 - 0.5)) / (80 - 1) + 0.5) * 255, 0, 255)
    assert np.abs((await seen("?window=40,80,linear")).astype(float) - wanted).max() <= 0.5
    assert (await seen("?window=40,80,sigmoid"))[0, 70 % 16] < 128
    assert (await seen("?viewport=4,8")).shape == (4, 4)
    assert (await seen("")).max() == 255
    for wrong in ("?window=1", "?window=0,0,linear", "?viewport=0,1", "?quality=101", "?annotation=patient"):
        answer = await door.get(path + wrong)
        assert (answer.status_code, answer.json()["code"]) == (400, "dicomweb.parameter")


async def test_pages_say_how_many_more_there_are(door: Door) -> None:
    await door.stow(*[made(SOPInstanceUID=f"1.2.3.1.1.{n}", InstanceNumber=str(n)) for n in range(1, 6)])
    answer = await door.get("/instances?limit=2&offset=1")
    assert len(answer.json()) == 2
    assert answer.headers["warning"] == '299 127.0.0.1 "There are 2 additional results that can be requested"'
    assert "warning" not in (await door.get("/instances?limit=2&offset=3")).headers
    assert [one["detail"]["rows"] for one in await door.records() if one["sub"] == "dicomweb.search"] == [2, 2]
