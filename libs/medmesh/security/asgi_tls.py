"""The client certificate of a TLS connection, for an ASGI application.

uvicorn does not show it yet; this protocol subclass puts it into the scope under the ASGI TLS extension's key
`client_cert_chain` (PEM, https://asgi.readthedocs.io/en/latest/specs/tls.html).
"""

from __future__ import annotations

import ssl
from functools import lru_cache
from typing import Any

from cryptography import x509
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class TlsProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol with the TLS extension."""

    _chain: tuple[str, ...] = ()

    def connection_made(self, transport: Any) -> None:
        """Keep the certificate the handshake verified."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        der = tls.getpeercert(True) if tls is not None else None
        self._chain = (ssl.DER_cert_to_PEM_cert(der),) if der else ()

    def on_message_begin(self) -> None:
        """Every request of the connection carries it."""
        super().on_message_begin()
        if self._chain:
            self.scope.setdefault("extensions", {})["tls"] = {"client_cert_chain": self._chain}

    def on_body(self, body: bytes) -> None:
        """A piece is handed on as it came: added to an array, as uvicorn does, it is copied into it and out again."""
        if not self.cycle.body:
            self.cycle.body = b""  # type: ignore[assignment]
        super().on_body(body)


def client_certificate(scope: Any) -> x509.Certificate | None:
    """The certificate a request came with."""
    chain = ((scope.get("extensions") or {}).get("tls") or {}).get("client_cert_chain") or ()
    return _read(chain[0]) if chain else None


@lru_cache(maxsize=4096)
def _read(pem: str) -> x509.Certificate:
    """A connection shows the same one with each of its requests."""
    return x509.load_pem_x509_certificate(pem.encode())
