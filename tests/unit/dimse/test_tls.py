"""DICOM TLS as peers see it: pynetdicom with OpenSSL, and sockets that speak something else."""

from __future__ import annotations

import gc
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]
from tests.certificates import Authority
from tests.unit.dimse.test_scp import Memory, encoded, image

from medmesh.dimse import tls
from medmesh.dimse.association import LARGEST_PDU, Limits
from medmesh.dimse.port import CALLING_UNKNOWN, Refused
from medmesh.dimse.server import Server, serving
from medmesh.errors import Problem


class Vouched(Memory):
    """Takes what TLS says into account, as a node does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[frozenset[str] | None] = []

    def admit(self, called: str, calling: str, address: str, secured: frozenset[str] | None) -> Any | Refused:
        self.seen.append(secured)
        return super().admit(called, calling, address, secured) if secured is not None else CALLING_UNKNOWN


@pytest.fixture
def service() -> Vouched:
    return Vouched()


@pytest.fixture
def authority(private: Path) -> Authority:
    return Authority(private, "ca")


@pytest.fixture
def server(service: Vouched, authority: Authority) -> Iterator[Server]:
    certificate, key = authority.issue("node")
    context = tls.context(certificate, key, authority.file)
    with serving("127.0.0.1", 0, service, limits=Limits(request=1, idle=2, network=1), tls=context) as running:
        yield running


def client(authority: Authority, *shown: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if shown:
        context.load_cert_chain(*shown)
    return context


def associated(server: Server, context: ssl.SSLContext | None) -> Any:
    ae = AE(ae_title="CT1")
    ae.add_requested_context(Verification)
    ae.add_requested_context(CTImageStorage)
    secured = None if context is None else (context, "localhost")
    return ae.associate("127.0.0.1", server.port, ae_title="MEDMESH", tls_args=secured, max_pdu=LARGEST_PDU)  # type: ignore[arg-type]


def test_objects_come_over_tls_and_the_service_hears_whose_certificate_it_was(
    server: Server, service: Vouched, authority: Authority
) -> None:
    for shown in ((), authority.issue("ct1.hospital")):
        association = associated(server, client(authority, *shown))
        assert association.is_established
        assert association.send_c_echo().Status == 0
        for frames in (1, 40):
            assert association.send_c_store(image(f"1.2.{frames}", frames)).Status == 0
        association.release()
    assert {sop: data for sop, (data, _) in service.kept.items()} == {f"1.2.{n}": encoded(image(f"1.2.{n}", n)) for n in (1, 40)}
    assert service.seen == [frozenset(), frozenset({"ct1.hospital"})]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom leaves the socket open that was refused
def test_a_certificate_of_nobody_known_is_refused(server: Server, service: Vouched, authority: Authority, private: Path) -> None:
    stranger = Authority(private, "other").issue("ct1.hospital")
    assert not associated(server, client(authority, *stranger)).is_established
    gc.collect()
    assert service.seen == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom leaves the socket open that was refused
def test_what_is_no_tls_gets_nothing(server: Server, service: Vouched) -> None:
    assert not associated(server, None).is_established
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as silent:
        assert silent.recv(100) == b"", "it is hung up after a second"
    gc.collect()
    assert service.seen == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_and_suites_are_those_of_the_profile(server: Server, authority: Authority, version: ssl.TLSVersion) -> None:
    context = client(authority)
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        name, _, _ = secured.cipher() or ("", "", 0)
        assert "GCM" in name or "CHACHA20" in name


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
@pytest.mark.parametrize("old", ["TLS 1.1", "CBC", "no forward secrecy"])
def test_what_the_profile_forbids_is_not_spoken(server: Server, authority: Authority, old: str) -> None:
    context = client(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    if old == "TLS 1.1":
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
    else:
        context.set_ciphers("ECDHE+AES:!AESGCM:!AESCCM" if old == "CBC" else "kRSA")
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(plain, server_hostname="localhost")


def test_files_that_are_no_use_are_named(authority: Authority, private: Path) -> None:
    certificate, key = authority.issue("node")
    other, _ = authority.issue("another")
    for arguments, file in (
        ((private / "none.pem", key), "none.pem"),
        ((other, key), "another.pem"),
        ((certificate, key, key), "node.key"),
    ):
        with pytest.raises(Problem) as found:
            tls.context(*arguments)
        assert (found.value.code, found.value.params["file"]) == ("dicom.tls", file)
    key.chmod(0o644)
    with pytest.raises(Problem) as found:
        tls.context(certificate, key)
    assert found.value.code == "security.key_exposed"
