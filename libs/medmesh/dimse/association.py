"""One association from its first byte to its last: the acceptor's side of PS3.8 §9.2, on a blocking socket, in a thread of its own.

States are where the code stands: `_negotiate` is Sta2 and Sta3, `_serve` Sta6; whatever does not fit there is answered with an A-ABORT
(Sta13). A data set is handed on fragment by fragment; of an association no more is in memory than one PDU and what its sink holds.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medmesh.dimse import tls, wire
from medmesh.dimse.port import CANNOT_UNDERSTAND, SOP_CLASS_NOT_SUPPORTED, SUCCESS, UNRECOGNISED_OPERATION, Refused, Service, Sink
from medmesh.dimse.syntaxes import chosen, storable
from medmesh.telemetry import log

LARGEST_PDU = 128 * 2**10
"""What we take in one PDU: what DCMTK sends at most, and a small image in one piece."""
_QUICK_ACK = getattr(socket, "TCP_QUICKACK", None)


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. `request` from the connection to the A-ASSOCIATE-RQ (ARTIM, PS3.8 §9.1.5), `idle` between messages, `network` within one."""

    request: float = 30
    idle: float = 300
    network: float = 60


class Ended(Exception):
    """The peer is gone, or too slow."""


class Association:
    """See the module. `run` answers when it is over and raises nothing."""

    def __init__(
        self, connection: socket.socket, address: str, service: Service, limits: Limits, secured: ssl.SSLContext | None = None
    ) -> None:
        self._socket = connection
        self._context = secured
        self._names: frozenset[str] | None = None
        self._address = address
        self._service = service
        self._limits = limits
        self._buffer = bytearray(LARGEST_PDU + 4096)
        self._have = 0
        self._taken = 0
        self.objects = 0
        """How many were stored."""
        self.between = True
        """Whether no message is on its way: it may be ended without loss."""
        self.stopping = False

    def run(self) -> None:
        """Serve it."""
        began, outcome = time.monotonic(), "released"
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None and not self._secure(self._context):
                outcome = "insecure"
                return
            admitted = self._negotiate()
            if admitted is None:
                return
            self._serve(*admitted)
        except wire.Violation as violation:
            outcome = "aborted"
            self._try(wire.aborted(violation.reason))
        except (Ended, OSError) as error:
            outcome = "lost" if not isinstance(error, TimeoutError) else "silent"
            self._try(wire.aborted(0))
        except Exception as error:
            outcome = "failed"
            log("dimse.failed", level=40, error=error)
            self._try(wire.aborted(0))
        finally:
            self._hang_up()
            log("dimse.association", outcome=outcome, objects=self.objects, seconds=round(time.monotonic() - began, 3))

    def close(self) -> None:
        """End it from another thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _secure(self, context: ssl.SSLContext) -> bool:
        """Whether the peer can TLS as it is asked for here; nothing is said to it in the clear."""
        try:
            self._socket.settimeout(self._limits.request)
            self._socket.getpeername()  # gone already: a socket that is not connected is wrapped without a handshake
            self._socket = secured = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
            secured.do_handshake()
            self._names = tls.names(secured)
        except (OSError, ValueError, AttributeError) as error:  # a handshake that failed, or was ended by `close` meanwhile
            log("dimse.insecure", level=30, reason=getattr(error, "reason", None) or type(error).__name__)
            return False
        return True

    def _hang_up(self) -> None:
        if isinstance(self._socket, ssl.SSLSocket):
            try:
                self._socket.settimeout(1)
                self._socket.unwrap()  # says that it ends here, so that nobody takes it for cut off
            except (OSError, ValueError):
                pass
        self._socket.close()

    # Association

    def _negotiate(self) -> tuple[Any, dict[int, wire.Context]] | None:
        kind, body = self._pdu(self._limits.request, wire.LARGEST_REQUEST)
        if kind != wire.ASSOCIATE_RQ:
            raise wire.Violation(2)
        asked = wire.request(bytes(body))
        if not int.from_bytes(body[:2], "big") & 1:
            self._refuse(Refused(1, 2, 2))  # protocol version not supported
            return None
        if asked.application != wire.APPLICATION_CONTEXT:
            self._refuse(Refused(1, 1, 2))
            return None
        bound = self._service.admit(asked.called, asked.calling, self._address, self._names)
        if isinstance(bound, Refused):
            self._refuse(bound)
            return None
        contexts = [_answer(one) for one in asked.contexts]
        self._socket.sendall(wire.accepted(asked, contexts, LARGEST_PDU))
        return bound, {one.id: one for one in contexts if one.result == 0}

    def _refuse(self, refused: Refused) -> None:
        log("dimse.refused", level=30, result=refused.result, source=refused.source, reason=refused.reason)
        self._socket.sendall(wire.rejected(refused.result, refused.source, refused.reason))

    # Messages

    def _serve(self, bound: Any, contexts: dict[int, wire.Context]) -> None:
        while not self.stopping:
            self.between = True
            kind, body = self._pdu(self._limits.idle)
            self.between = False
            if kind == wire.RELEASE_RQ:
                self._socket.sendall(wire.pdu(wire.RELEASE_RP, bytes(4)))
                return
            if kind == wire.ABORT:
                return
            if kind != wire.P_DATA:
                raise wire.Violation(2)
            self._message(bound, contexts, self._fragments(body))

    def _message(self, bound: Any, contexts: dict[int, wire.Context], fragments: Iterator[tuple[int, int, memoryview]]) -> None:
        data, context_id, control = b"", 0, 0
        while not control & 2:
            context_id, control, fragment = next(fragments)
            if not control & 1 or len(data) + len(fragment) > wire.LARGEST_COMMAND:
                raise wire.Violation(6)
            data += fragment
        context, asked = contexts.get(context_id), wire.command(data)
        if context is None:
            raise wire.Violation(6)
        sink, status, comment = None, SUCCESS, ""
        if asked.field == wire.C_CANCEL_RQ:
            return
        if asked.field == wire.C_STORE_RQ:
            if asked.sop_class != context.abstract:
                status, comment = SOP_CLASS_NOT_SUPPORTED, "the SOP class is not that of the context"
            elif not asked.has_data:
                status, comment = CANNOT_UNDERSTAND, "no data set"
            else:
                sink = self._service.store(bound, asked.sop_class, asked.sop, context.transfer)
        elif asked.field != wire.C_ECHO_RQ:
            status, comment = UNRECOGNISED_OPERATION, "only C-STORE and C-ECHO"
        try:
            if asked.has_data:
                self._data(fragments, context_id, sink)
            if sink is not None:
                status, comment = sink.finish()
                self.objects += status == SUCCESS
        finally:
            if sink is not None:
                sink.abandon()
        self._socket.sendall(wire.response(asked, context_id, status, comment))

    def _data(self, fragments: Iterator[tuple[int, int, memoryview]], context_id: int, sink: Sink | None) -> None:
        """Every fragment of the data set; without a sink they are read and dropped."""
        for its_context, control, fragment in fragments:
            if control & 1 or its_context != context_id:
                raise wire.Violation(6)
            if sink is not None:
                sink.write(fragment)
            if control & 2:
                return

    def _fragments(self, first: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """Fragments from as many P-DATA-TFs as it takes; each is valid until the next is asked for."""
        body = first
        while True:
            yield from wire.values(body)
            kind, body = self._pdu(self._limits.network)
            if kind == wire.ABORT:
                raise Ended
            if kind != wire.P_DATA:
                raise wire.Violation(2)

    # Bytes

    def _pdu(self, seconds: float, largest: int = LARGEST_PDU) -> tuple[int, memoryview]:
        """(type, body) of the next PDU; the body is valid until the next call. Raises `Ended`, `TimeoutError`, `Violation`."""
        self._fill(6, seconds)
        kind = self._buffer[self._taken]
        length = int.from_bytes(self._buffer[self._taken + 2 : self._taken + 6], "big")
        if not wire.ASSOCIATE_RQ <= kind <= wire.ABORT:
            raise wire.Violation(1)
        if length > largest:
            raise wire.Violation(6)
        self._fill(6 + length, self._limits.network)
        start = self._taken + 6
        self._taken += 6 + length
        return kind, memoryview(self._buffer)[start : start + length]

    def _fill(self, wanted: int, seconds: float) -> None:
        """Have at least that many bytes that were not taken yet, within that time."""
        if self._have - self._taken >= wanted:
            return
        if self._taken:
            rest = self._have - self._taken
            self._buffer[:rest] = self._buffer[self._taken : self._have]
            self._taken, self._have = 0, rest
        if wanted > len(self._buffer):
            self._buffer = self._buffer + bytearray(wanted - len(self._buffer))  # views of the old one may still be held
        end = time.monotonic() + seconds
        while self._have < wanted:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            got = self._socket.recv_into(memoryview(self._buffer)[self._have :])
            if not got:
                raise Ended
            self._have += got
            if _QUICK_ACK is not None:
                # A client that keeps Nagle's algorithm waits for our ACK before it sends the rest, and Linux delays ACKs by
                # 40 ms; the option lasts for a moment only.
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)

    def _try(self, data: bytes) -> None:
        try:
            self._socket.settimeout(1)
            self._socket.sendall(data)
        except OSError:
            pass


def _answer(asked: wire.Proposed) -> wire.Context:
    if asked.abstract != wire.VERIFICATION and not storable(asked.abstract):
        return wire.Context(asked.id, asked.abstract, asked.transfers[0] if asked.transfers else "", 3)
    transfer = chosen(asked.transfers)
    if transfer is None:
        return wire.Context(asked.id, asked.abstract, asked.transfers[0] if asked.transfers else "", 4)
    return wire.Context(asked.id, asked.abstract, transfer, 0)
