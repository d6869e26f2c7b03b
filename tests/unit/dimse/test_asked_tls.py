"""A PACS that is asked over TLS: what it needs to be believed, and that nothing is said to it otherwise, nor in the clear."""

from __future__ import annotations

import gc
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)
from tests.certificates import Authority

from medmesh.cli.edge import edge
from medmesh.dimse import scu, tls
from medmesh.errors import Problem
from medmesh_edge.reception import Reception

TITLE = "PACS"
Asked = Callable[[scu.Peer], Any]


# pynetdicom leaves sockets open whose handshake or association failed; ours are not among them
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def authority(private: Path) -> Authority:
    return Authority(private, "ca")


def acceptor(shown: tuple[Path, Path], clients: Path | None = None) -> ssl.SSLContext:
    """As a PACS may have it: whatever OpenSSL can; with `clients` it demands a certificate."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*shown)
    if clients is not None:
        made.load_verify_locations(clients)
        made.verify_mode = ssl.CERT_REQUIRED
    return made


@contextmanager
def pacs(context: ssl.SSLContext | None) -> Iterator[tuple[int, list[str]]]:
    """A provider by pynetdicom: its port, and what it was asked."""
    heard: list[str] = []

    def find(event: Any) -> Iterator[Any]:
        heard.append(f"find {event.identifier.PatientID}")
        answer = Dataset()
        answer.QueryRetrieveLevel, answer.StudyInstanceUID, answer.PatientID = "STUDY", "1.9.1", "P1"
        yield 0xFF00, answer
        yield 0x0000, None

    def move(event: Any) -> Iterator[Any]:
        heard.append("move")
        yield None, None

    def asked(event: Any) -> None:
        heard.append("association")

    entity = AE(ae_title=TITLE)
    for one in (Verification, StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelMove):
        entity.add_supported_context(one)
    handlers: Any = [(evt.EVT_C_FIND, find), (evt.EVT_C_MOVE, move), (evt.EVT_REQUESTED, asked)]
    running = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=context)
    try:
        yield running.server_address[1], heard
    finally:
        running.shutdown()


def peer(port: int, **trusted: Any) -> scu.Peer:
    name = trusted.pop("name", "")
    return scu.Peer(TITLE, "127.0.0.1", port, "MEDMESH", tls.asking(**trusted), name)


@pytest.mark.parametrize("latest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_everything_that_is_asked_goes_over_tls(authority: Authority, latest: ssl.TLSVersion) -> None:
    context = acceptor(authority.issue("node"), authority.file)
    context.maximum_version = latest
    with pacs(context) as (port, heard):
        asked = peer(port, authority=authority.file, own=authority.issue("edge"))
        assert scu.echo(asked) > 0
        assert asked.tls is not None and asked.tls.seen is not None
        assert asked.tls.seen.version == latest.name.replace("_", ".")
        assert next(scu.find(asked, "STUDY", {"PatientID": "P1"}))["StudyInstanceUID"] == "1.9.1"
        with pytest.raises(Problem, match="0xA801"):
            scu.move(asked, "MEDMESH", "STUDY", {"StudyInstanceUID": "1.9.1"})
        assert heard == ["association", "association", "find P1", "association", "move"]


def test_a_pinned_certificate_is_believed_whoever_signed_it_and_no_other_of_its_authority(authority: Authority, private: Path) -> None:
    theirs, other = authority.issue("somewhere"), authority.issue("elsewhere")
    with pacs(acceptor(theirs)) as (port, _):
        assert scu.echo(peer(port, pinned=theirs[0])) > 0
        assert scu.echo(peer(port, authority=authority.file, name="somewhere")) > 0, "by the name that it bears"
        for pinned in (other[0], authority.file):
            with pytest.raises(Problem) as refused:
                scu.echo(peer(port, pinned=pinned))
            assert refused.value.code == "dicom.tls_untrusted", pinned


def refused(call: Callable[[], Any]) -> Problem:
    with pytest.raises(Problem) as found:
        call()
    for language in ("en", "zh"):
        assert found.value.detail(language) and found.value.hint(language)
    return found.value


def test_what_is_wrong_with_a_certificate_is_said_and_nothing_is_asked(authority: Authority, private: Path) -> None:
    stranger = Authority(private, "stranger")
    for name, ended, trusted, code in (
        ("node", False, {"authority": stranger.file}, "dicom.tls_untrusted"),
        ("node", True, {"authority": authority.file}, "dicom.tls_expired"),
        ("old", True, {"pinned": private / "old.pem"}, "dicom.tls_expired"),
        ("somewhere", False, {"authority": authority.file}, "dicom.tls_name"),
        ("node", False, {"authority": authority.file, "name": "pacs.hospital"}, "dicom.tls_name"),
    ):
        with pacs(acceptor(authority.issue(name, ended=ended))) as (port, heard):
            asked = peer(port, **trusted)
            for call in (lambda: scu.echo(asked), lambda: list(scu.find(asked, "STUDY", {"PatientID": "P1"}))):  # noqa: B023
                assert refused(call).code == code, (name, trusted)
            assert heard == []


@pytest.mark.parametrize("latest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_pacs_that_wants_our_certificate_says_so(authority: Authority, private: Path, latest: ssl.TLSVersion) -> None:
    stranger = Authority(private, "stranger")
    context = acceptor(authority.issue("node"), authority.file)
    context.maximum_version = latest
    with pacs(context) as (port, heard):
        for own in (None, stranger.issue("edge")):
            found = refused(lambda: scu.echo(peer(port, authority=authority.file, own=own)))  # noqa: B023
            assert found.code == "dicom.tls_refused"
        assert heard == []


@pytest.mark.parametrize("suite", ["AES256-GCM-SHA384", "ECDHE-RSA-AES256-SHA384"])
def test_suites_without_forward_secrecy_or_authentication_are_not_spoken(authority: Authority, suite: str) -> None:
    context = acceptor(authority.issue("node"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(suite)
    with pacs(context) as (port, heard):
        assert refused(lambda: scu.echo(peer(port, authority=authority.file))).code == "dicom.tls_refused"
        assert heard == []


def test_a_plain_server_hears_nothing_in_the_clear(authority: Authority) -> None:
    with pacs(None) as (port, heard):
        assert refused(lambda: scu.echo(peer(port, authority=authority.file))).code == "dicom.tls_plain"
        assert heard == []
        assert scu.echo(scu.Peer(TITLE, "127.0.0.1", port)) > 0, "it is well otherwise"
    received = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            connection, _ = listener.accept()
            with connection:
                received.extend(connection.recv(4096))

        thread = threading.Thread(target=listen)
        thread.start()
        found = refused(
            lambda: scu.find(peer(listener.getsockname()[1], authority=authority.file), "STUDY", {"PatientID": "P1"}).__next__()
        )
        thread.join()
        assert found.code == "dicom.tls_plain"
    assert received[0] == 0x16 and b"PACS" not in received and b"MEDMESH" not in received, "a handshake and nothing else"


def test_without_tls_a_port_that_wants_it_is_no_answer(authority: Authority) -> None:
    with pacs(acceptor(authority.issue("node"))) as (port, heard):
        found = refused(lambda: scu.echo(scu.Peer(TITLE, "127.0.0.1", port)))
        assert found.code == "dicom.unreachable" and "TLS" in found.hint("en") and "TLS" in found.hint("zh")
        assert heard == []
    assert refused(lambda: scu.echo(peer(port, authority=authority.file))).code == "dicom.unreachable", "nobody is there"


SETTINGS = """
[[peer]]
name = "pacs"
title = "PACS"
host = "127.0.0.1"
port = {port}
[peer.tls]
"""


def test_the_hospitals_file_says_it_and_echo_shows_it(authority: Authority, private: Path) -> None:
    own = authority.issue("edge")
    with pacs(acceptor(authority.issue("node"), authority.file)) as (port, _):
        text = SETTINGS.format(port=port) + f'authority = "ca.pem"\ncertificate = "edge.pem"\nkey = "{own[1]}"\n'
        (private / "dicom.toml").write_text(text)
        ran = CliRunner().invoke(edge, ["dicom", "echo", "pacs", "--folder", str(private)], env={"LANG": "en_US.UTF-8"})
        assert ran.exit_code == 0 and "over TLSv1.3" in ran.output, ran.output
        own[1].chmod(0o644)
        assert refused(lambda: Reception.read(private / "dicom.toml").named("pacs").tls.context(private)).code.startswith("security.key")  # type: ignore[union-attr]
        (private / "dicom.toml").write_text(text.replace("ca.pem", "gone.pem"))
        assert refused(lambda: Reception.read(private / "dicom.toml").named("pacs").tls.context(private)).code == "dicom.tls"  # type: ignore[union-attr]
    with pacs(None) as (port, _):
        (private / "dicom.toml").write_text(SETTINGS.format(port=port).replace("[peer.tls]", ""))
        ran = CliRunner().invoke(edge, ["dicom", "echo", "pacs", "--folder", str(private)], env={"LANG": "en_US.UTF-8"})
        assert ran.exit_code == 0 and "in the clear" in ran.output, ran.output


@pytest.mark.parametrize(
    "lines",
    ["", 'authority = "a"\npinned = "b"', 'authority = "a"\nkey = "k"', 'pinned = "a"\nname = "n"', 'authority = "a"\nverify = false'],
)
def test_half_a_setting_is_a_mistake(private: Path, lines: str) -> None:
    (private / "dicom.toml").write_text(SETTINGS.format(port=104) + lines)
    assert refused(lambda: Reception.read(private / "dicom.toml")).code == "dicom.settings"


@pytest.mark.skipif(shutil.which("storescp") is None, reason="DCMTK's tools are not installed")
def test_dcmtk_answers_over_tls(authority: Authority, private: Path) -> None:
    certificate, key = authority.issue("node")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["+tls", str(key), str(certificate), "+cf", str(authority.file), "-od", str(private)]
    process = subprocess.Popen(["storescp", *options, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        assert scu.echo(peer(port, authority=authority.file, own=authority.issue("edge"))) > 0
        assert refused(lambda: scu.echo(peer(port, authority=authority.file))).code == "dicom.tls_refused", "it wants our certificate"
    finally:
        process.terminate()
        process.wait(60)
