"""TLS under an association, as the BCP 195 profile of PS3.15 B.12 asks for it (RFC 8996, RFC 9325): 1.2 at least, 1.3 where the peer can,
and of 1.2 those suites alone that are forward secret and authenticate what they encrypt.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from medmesh.errors import Problem
from medmesh.security.keys import read_secret

PORT = 2762
"""The registered one, `dicom-tls`; TLS has a port of its own (PS3.15 B.1)."""
SUITES = "ECDHE+AESGCM"
"""RFC 9325 §4.2, as OpenSSL names them."""


def context(certificate: Path, key: Path, clients: Path | None = None) -> ssl.SSLContext:
    """For an acceptor: its certificate with the chain, its key (0600), and the certificates that clients' must lead to, if they show one.
    Raises `Problem` (`dicom.tls`, `security.key_*`)."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    made.set_ciphers(SUITES)
    read_secret(key)
    file = certificate
    try:
        made.load_cert_chain(certificate, key)
        if clients is not None:
            file = clients
            made.load_verify_locations(clients)
            made.verify_mode = ssl.CERT_OPTIONAL
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise Problem("dicom.tls", file=file.name, reason=reason) from None
    return made


def names(connection: ssl.SSLSocket) -> frozenset[str]:
    """Those in the peer's certificate, which was verified: its DNS names, or the common name where it has none. None without one."""
    shown: dict[str, Any] = dict(connection.getpeercert() or {})
    alternatives = [str(value) for kind, value in shown.get("subjectAltName", ()) if kind == "DNS"]
    common = [str(value) for part in shown.get("subject", ()) for kind, value in part if kind == "commonName"]
    return frozenset(alternatives or common)
