"""TLS under an association, as the BCP 195 profile of PS3.15 B.12 asks for it (RFC 8996, RFC 9325): 1.2 at least, 1.3 where the peer can,
and of 1.2 those suites alone that are forward secret and authenticate what they encrypt.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate

from medmesh.errors import Problem
from medmesh.security.keys import read_secret

PORT = 2762
"""The registered one, `dicom-tls`; TLS has a port of its own (PS3.15 B.1)."""
SUITES = "ECDHE+AESGCM"
"""RFC 9325 §4.2, as OpenSSL names them."""


T = TypeVar("T")


def context(certificate: Path, key: Path, clients: Path | None = None) -> ssl.SSLContext:
    """For an acceptor: its certificate with the chain, its key (0600), and the certificates that clients' must lead to, if they show one.
    Raises `Problem` (`dicom.tls`, `security.key_*`)."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _bound(made)
    made.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    _show(made, certificate, key)
    if clients is not None:
        _loaded(clients, lambda: made.load_verify_locations(clients))
        made.verify_mode = ssl.CERT_OPTIONAL
    return made


@dataclass(frozen=True, slots=True)
class Seen:
    """What a handshake came to: the version of TLS, and when the peer's certificate ends."""

    version: str
    until: datetime


class Asking(ssl.SSLContext):
    """For a requestor; remembers of its last connection how the handshake went, which pynetdicom keeps to itself."""

    pinned: bytes = b""
    """The one certificate (DER) that the peer may have; empty where an authority vouches for it."""
    seen: Seen | None = None
    failed: Exception | None = None


def asking(*, authority: Path | None = None, pinned: Path | None = None, own: tuple[Path, Path] | None = None) -> Asking:
    """For a requestor: the peer's certificate must lead to one of `authority` and bear the name it is called by, or be the very one of
    `pinned`; valid today it must be in any case. `own` is our certificate and key (0600), shown where the peer asks. Raises `Problem`
    (`dicom.tls`, `security.key_*`), `ValueError` unless there is one of `authority` and `pinned`."""
    trusted = authority or pinned
    if trusted is None or (authority and pinned):
        raise ValueError("one of authority and pinned")
    made = Asking(ssl.PROTOCOL_TLS_CLIENT)
    _bound(made)
    _loaded(trusted, lambda: made.load_verify_locations(trusted))
    if pinned is not None:
        made.pinned = _loaded(pinned, lambda: load_pem_x509_certificate(pinned.read_bytes()).public_bytes(Encoding.DER))
        made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it may be one that somebody else signed
        made.check_hostname = False  # the certificate itself is the identity
    if own is not None:
        _show(made, *own)
    made.sslsocket_class = _Remembering
    return made


class _Remembering(ssl.SSLSocket):
    def connect(self, addr: Any) -> None:
        """As in the standard library; what came to nothing is closed, which pynetdicom leaves to the garbage collector."""
        try:
            super().connect(addr)
        except (OSError, ValueError):
            self.close()
            raise

    def do_handshake(self, block: bool = False) -> None:
        about: Any = self.context
        try:
            super().do_handshake(block)
            if about.pinned and self.getpeercert(True) != about.pinned:
                raise ssl.SSLCertVerificationError("it is another certificate than the pinned one")
        except (OSError, ValueError) as error:
            about.failed = error
            raise
        until = ssl.cert_time_to_seconds(str((self.getpeercert() or {})["notAfter"]))
        about.seen = Seen(self.version() or "", datetime.fromtimestamp(until, UTC))

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """As in the standard library; in TLS 1.3 a peer refuses our certificate only after the handshake (RFC 8446 §4.4.2.4)."""
        try:
            return super().read(len, buffer)
        except ssl.SSLError as error:
            about: Any = self.context
            about.failed = error
            self.close()
            raise


def said(error: Exception, title: str) -> Problem:
    """What a failed handshake with a peer means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        code = getattr(error, "verify_code", 0)
        reason = getattr(error, "verify_message", "") or str(error.args[-1])
        if code in (_NOT_YET, _EXPIRED):
            return Problem("dicom.tls_expired", title=title)
        if code in (_OTHER_NAME, _OTHER_ADDRESS):
            return Problem("dicom.tls_name", title=title)
        return Problem("dicom.tls_untrusted", title=title, reason=reason)
    reason = str(getattr(error, "reason", None) or type(error).__name__)
    if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError) or reason in _NO_TLS:
        return Problem("dicom.tls_plain", title=title)
    return Problem("dicom.tls_refused", title=title, reason=reason)


_NOT_YET, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64  # X509_V_ERR_*, openssl/x509_vfy.h
_NO_TLS = ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


def _bound(made: ssl.SSLContext) -> None:
    """The profile's rules, for either side."""
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    made.set_ciphers(SUITES)


def _show(made: ssl.SSLContext, certificate: Path, key: Path) -> None:
    read_secret(key)
    _loaded(certificate, lambda: made.load_cert_chain(certificate, key))


def _loaded(file: Path, load: Callable[[], T]) -> T:
    try:
        return load()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise Problem("dicom.tls", file=file.name, reason=reason) from None


def names(connection: ssl.SSLSocket) -> frozenset[str]:
    """Those in the peer's certificate, which was verified: its DNS names, or the common name where it has none. None without one."""
    shown: dict[str, Any] = dict(connection.getpeercert() or {})
    alternatives = [str(value) for kind, value in shown.get("subjectAltName", ()) if kind == "DNS"]
    common = [str(value) for part in shown.get("subject", ()) for kind, value in part if kind == "commonName"]
    return frozenset(alternatives or common)
