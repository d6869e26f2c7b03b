"""HTTP for the services that speak it: uvicorn inside the service's own event loop, problem+json, traces, metrics, health."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.telemetry import TelemetryConfig
from opentelemetry.trace import SpanKind
from starlette.exceptions import HTTPException

from medmesh.errors import Problem
from medmesh.security.asgi_tls import TlsProtocol
from medmesh.service.listener import Check, respond
from medmesh.telemetry import log, metrics, span

PROBLEM_JSON = "application/problem+json"
_TEXT = {"type": "string"}
PROBLEM_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457, with a stable `code`, what to do next, and the values in the text.",
    "type": "object",
    "properties": {
        "type": {"type": "string", "pattern": "^urn:medmesh:problem:"},
        "title": _TEXT,
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "code": {"type": "string", "pattern": r"^[a-z_]+\.[a-z_]+$"},
        "hint": _TEXT,
        "params": {"type": "object"},
        "error": {"type": "string", "description": "The text again, where the Open Inference Protocol wants it"},
    },
    "required": ["type", "title", "status", "code", "hint", "params"],
    "additionalProperties": False,
}


def language(request: Request) -> str:
    """The language to answer in: Chinese where the client prefers it."""
    return "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"


def problem_response(problem: Problem, tongue: str = "en", headers: dict[str, str] | None = None) -> Response:
    """RFC 9457."""
    body = json.dumps(problem.document(tongue), ensure_ascii=False).encode()
    again = {"Retry-After": str(problem.params.get("retry", 5))} if problem.status == 503 else {}
    return Response(body, status_code=problem.status, media_type=PROBLEM_JSON, headers={**again, **(headers or {})})


def new_application(title: str, *, is_transient: Callable[[BaseException], bool] = lambda error: False) -> FastAPI:
    """An application that answers every mistake as problem+json, in the client's language; what `is_transient` with a status that says:
    try again. The framework's own spans are off: `Observed` makes one for each request, without its query."""
    quiet = TelemetryConfig(tracing=False, metrics=False, logs=False)
    app = FastAPI(title=title, version="1", docs_url=None, redoc_url=None, telemetry=quiet)
    _document_problems(app)

    @app.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> Response:
        return problem_response(problem, language(request))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        return problem_response(Problem("request.invalid", reason=where), language(request))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return problem_response(Problem("request.no_route", path=request.url.path), language(request))
        if error.status_code == 405:
            problem = Problem("request.no_method", method=request.method, path=request.url.path)
            return problem_response(problem, language(request), dict(error.headers or {}))  # RFC 9110 §15.5.6: Allow
        return problem_response(Problem("request.invalid", reason=str(error.detail)), language(request))

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> Response:
        problem = Problem("request.unavailable") if is_transient(error) else Problem("request.failed")
        return problem_response(problem, language(request))

    return app


def _document_problems(app: FastAPI) -> None:
    """Let the OpenAPI document say how mistakes are answered, instead of the framework's own way, which is not used."""
    describe = app.openapi
    answer = {"description": "A problem", "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}}

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = describe()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for framework in ("HTTPValidationError", "ValidationError"):
                schemas.pop(framework, None)
            schemas["Problem"] = PROBLEM_SCHEMA
            for operation in (entry for path in document["paths"].values() for entry in path.values()):
                operation["responses"].pop("422", None)
                operation["responses"] |= {"4XX": answer, "5XX": answer}
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


class Observed:
    """ASGI middleware around the application: health and metrics, a server span, and counters by route template."""

    def __init__(self, app: Any, service: str, ready: Check) -> None:
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
                await problem_response(Problem("request.failed"))(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            metrics.HTTP_REQUESTS.labels(self._service, route, str(status)).inc()
            metrics.HTTP_SECONDS.labels(self._service, route).observe(perf_counter() - started)


class _Server(uvicorn.Server):
    def capture_signals(self) -> Any:
        """The service's own runtime listens to signals."""
        return nullcontext()


@asynccontextmanager
async def serve(
    app: Callable[[Any, Any, Any], Awaitable[None]],
    *,
    host: str,
    port: int,
    certificate: Path | None = None,
    key: Path | None = None,
    client_ca: Path | None = None,
) -> AsyncIterator[int]:
    """Serve `app` and yield the port. With `client_ca`, clients may show a certificate; one that does not verify is refused
    at the handshake. The application decides where a certificate is needed."""
    # With its protocol named: asyncio turns Nagle off for no other, and an answer of two pieces then waits 40 ms for the ACK of the first.
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    config = uvicorn.Config(
        app,
        http=TlsProtocol,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        ssl_ca_certs=str(client_ca) if client_ca else None,
        ssl_cert_reqs=ssl.CERT_OPTIONAL if client_ca else ssl.CERT_NONE,
        h11_max_incomplete_event_size=64 * 1024,
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        if task.done():
            task.result()
        await asyncio.sleep(0.01)
    try:
        yield int(listening.getsockname()[1])
    finally:
        server.should_exit = True
        await task
