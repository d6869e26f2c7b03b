"""The applications of the services that speak HTTP: every mistake is answered as problem+json. `medmesh.service.asgi` serves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException

from medmesh.errors import Problem

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
