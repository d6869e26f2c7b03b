"""Listening: a thread for each association. Several processes may listen on one port, and the kernel deals connections out to them."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from medmesh.dimse import wire
from medmesh.dimse.association import Association, Limits
from medmesh.dimse.port import NOT_NOW, Service

MOST = 64
"""Associations at once in one process; more are told to come again."""


def reserved(host: str, port: int) -> socket.socket:
    """A socket that holds a port for this account's processes (SO_REUSEPORT) and takes no connections itself. Raises `OSError`."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def listening(host: str, port: int) -> socket.socket:
    """A socket that shares its port with the other processes of this account."""
    made = reserved(host, port)
    made.listen(64)
    return made


class Server:
    """Accepts until it is stopped."""

    def __init__(
        self,
        listener: socket.socket,
        service: Service,
        limits: Limits | None = None,
        most: int = MOST,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._listener = listener
        self._service = service
        self._limits = limits or Limits()
        self._most = most
        self._tls = tls
        self._open: set[Association] = set()
        self._lock = threading.Lock()
        self._stopping = False

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def serve(self, tick: Callable[[], None] = lambda: None) -> None:
        """Until `stop`; `tick` is called about every second."""
        self._listener.settimeout(1)
        while not self._stopping:
            tick()
            try:
                connection, address = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                time.sleep(0.1)  # out of descriptors, or asked to stop
                continue
            if len(self._open) >= self._most:
                self._turn_away(connection)
                continue
            association = Association(connection, address[0], self._service, self._limits, self._tls)
            with self._lock:
                self._open.add(association)
            threading.Thread(target=self._run, args=(association,), daemon=True, name="association").start()

    def _run(self, association: Association) -> None:
        try:
            association.run()
        finally:
            with self._lock:
                self._open.discard(association)

    def _turn_away(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(1)
                if self._tls is None:  # else it is not worth a handshake
                    connection.sendall(wire.rejected(NOT_NOW.result, NOT_NOW.source, NOT_NOW.reason))
            except OSError:
                pass

    def ask_to_stop(self) -> None:
        """Have `serve` end; may be called by a signal's handler."""
        self._stopping = True
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        except OSError:
            pass

    def stop(self, seconds: float = 5) -> None:
        """Accept no more, let the objects on their way arrive, and end."""
        self.ask_to_stop()
        self._listener.close()
        end = time.monotonic() + seconds
        while True:
            with self._lock:
                left = list(self._open)
            for one in left:
                one.stopping = True
                if one.between or time.monotonic() > end:
                    one.close()
            if not left or time.monotonic() > end + 1:
                return
            time.sleep(0.05)  # objects on their way arrive first


@contextmanager
def serving(host: str, port: int, service: Service, **options: Any) -> Any:
    """A server in a thread, until the block ends."""
    server = Server(listening(host, port), service, **options)
    thread = threading.Thread(target=server.serve, daemon=True, name="listener")
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(3)
