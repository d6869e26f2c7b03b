"""Applications served: uvicorn inside the service's own event loop, with traces, metrics and health around them.

No framework is loaded here: a node answers about its health without one.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import uvicorn
from opentelemetry.trace import SpanKind

from medmesh.errors import Problem
from medmesh.service import crowd
from medmesh.service.listener import Check, respond
from medmesh.telemetry import log, metrics, span

Application = Callable[[Any, Any, Any], Awaitable[None]]


class Lazily:
    """An application that `make` makes when it is asked for something first: its framework and its routes take memory that many never
    need. Where making it fails, the next request tries again."""

    def __init__(self, make: Callable[[], Awaitable[Application]]) -> None:
        self._make, self._one = make, asyncio.Lock()
        self._made: Application | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with self._one:
            made = self._made = self._made or await self._make()
        await made(scope, receive, send)


class Observed:
    """ASGI middleware around the application: health and metrics, a server span, and counters by route template."""

    def __init__(self, app: Application, service: str, ready: Check) -> None:
        self._app, self._service, self._ready = app, service, ready

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].startswith("/health/") or scope["path"] == "/metrics":
            status, kind, body = await respond(scope["path"], self._ready)
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]})
            await send({"type": "http.response.body", "body": body})
            return
        started, status, answered = perf_counter(), 500, False

        async def watch(message: Any) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
            await send(message)

        parent = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"), None)
        try:
            with span(f"{scope['method']} request", parent=parent, kind=SpanKind.SERVER):
                await self._app(scope, receive, watch)
        except Exception as error:
            log("http.failed", level=40, error=error, method=scope["method"])
            if answered and status < 500:
                raise  # in the middle of an answer: the client must see it break off
            if not answered:
                from medmesh.service.http import problem_response

                await problem_response(Problem("request.failed"))(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            metrics.HTTP_REQUESTS.labels(self._service, route, str(status)).inc()
            metrics.HTTP_SECONDS.labels(self._service, route).observe(perf_counter() - started)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, most: int) -> None:
        super().__init__(config)
        self._over = asyncio.Event()
        self._crowd = crowd.Crowd(crowd.room(most))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let people in."""

        def made() -> crowd.Connection:
            return crowd.Connection(self.config, self.server_state, {})

        self.servers = [crowd.Doorman(one, made, self._crowd, self.config.ssl) for one in sockets or ()]  # type: ignore[misc]
        self.started = True

    def capture_signals(self) -> Any:
        """The service's own runtime listens to signals."""
        return nullcontext()

    async def main_loop(self) -> None:
        """Until `end`. What uvicorn looks after ten times a second, above all what `Date` says, changes once."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._over.wait()

    def end(self) -> None:
        """Serve nobody new, and return once those that are served have their answer."""
        self.should_exit = True
        self._over.set()


@asynccontextmanager
async def serve(
    app: Application,
    *,
    host: str,
    port: int,
    certificate: Path | None = None,
    key: Path | None = None,
    client_ca: Path | None = None,
    most: int = crowd.MOST,
) -> AsyncIterator[int]:
    """Serve `app`, on at most so many connections, and yield the port. With `client_ca`, clients may show a certificate; one that does not
    verify is refused at the handshake. The application decides where a certificate is needed."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    config = uvicorn.Config(
        app,
        http=crowd.Connection,
        ws="none",
        proxy_headers=False,  # uvicorn believes whoever connects from this machine
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        ssl_ca_certs=str(client_ca) if client_ca else None,
        ssl_cert_reqs=ssl.CERT_OPTIONAL if client_ca else ssl.CERT_NONE,
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    server = _Server(config, most)
    task = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        if task.done():
            task.result()
        await asyncio.sleep(0.01)
    try:
        yield int(listening.getsockname()[1])
    finally:
        server.end()
        await task
