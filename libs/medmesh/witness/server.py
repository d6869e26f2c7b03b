"""`POST /add-checkpoint` over HTTP or HTTPS. Whoever reaches the port may ask: only what a known log signed is cosigned."""

from __future__ import annotations

import json
import ssl
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from medmesh.errors import Problem
from medmesh.ledger.cosignature import cosign
from medmesh.ledger.witness import MOST_BYTES, TEXT, Accepted, parse_request
from medmesh.witness.memory import Memory
from medmesh.witness.site import Site

_SECONDS = 10
_AT_ONCE = 32


def server(site: Site) -> Witness:
    """Listening already; the caller runs `serve_forever` and closes it. Port 0 takes a free one. Raises `OSError`."""
    return Witness(site)


class Witness(ThreadingHTTPServer):
    """At most 32 connections, each silent for 10 s at most."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, site: Site) -> None:
        self.site, self.memory = site, Memory(site.database)
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__((site.host, site.port), _Handler)
        if site.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(site.certificate, site.certificate_key)
            # The handshake happens in the connection's own thread: a silent client must not keep others from being accepted.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def url(self) -> str:
        """The submission prefix."""
        return f"{'https' if self.site.certificate else 'http'}://{self.site.host}:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread, if there is a place."""
        if self._places.acquire(timeout=_SECONDS):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Give the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that broke off is nobody's business; anything else is one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            _say("witness.failed", error=repr(error))

    def server_close(self) -> None:
        """The port and the database."""
        super().server_close()
        self.memory.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "medmesh-witness"
    sys_version = ""
    timeout = _SECONDS
    server: Witness

    def do_POST(self) -> None:
        if self.path != "/add-checkpoint":
            self._answer(HTTPStatus.NOT_FOUND, TEXT, b"not found\n", close=True)
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if length.isdecimal() else HTTPStatus.LENGTH_REQUIRED
            self._answer(status, TEXT, b"", close=True)
            return
        try:
            request = parse_request(self.rfile.read(int(length)))
        except Problem as problem:
            self._answer(HTTPStatus.BAD_REQUEST, TEXT, f"{problem.detail()}\n".encode())
            return
        site = self.server.site
        decided = self.server.memory.take(site, request)
        if isinstance(decided, Accepted):
            line = cosign(decided.text, site.name, site.key, int(time.time()))
            _say("witness.cosigned", origin=decided.checkpoint.origin, size=decided.checkpoint.size)
            self._answer(HTTPStatus.OK, TEXT, line.encode())
            return
        _say("witness.refused", status=decided.status.value, reason=decided.reason, old=request.old)
        self._answer(decided.status, *decided.body)

    def do_GET(self) -> None:
        self._answer(HTTPStatus.NOT_FOUND, TEXT, b"not found\n")

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, *, close: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if close:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Ours are structured."""


def _say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, "at": int(time.time()), **fields}, ensure_ascii=False), file=sys.stderr, flush=True)
