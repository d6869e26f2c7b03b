"""The routes of the Open Inference Protocol v2 for the models of a repository.

Beside the model's own output, the logits, each answer holds `probabilities` (softmax over the classes, float32
[batch, classes]) and `label` (the most probable class's name, BYTES [batch]).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from numpy.typing import NDArray

from medmesh.errors import Problem
from medmesh.security.tokens import Actor
from medmesh.service.http import PROBLEM_JSON, language
from medmesh.serving import protocol
from medmesh.serving.batching import MAX_BATCH
from medmesh.serving.onnxruntime_session import PLATFORM
from medmesh.serving.repository import LABEL, PROBABILITIES, Repository, Served
from medmesh.store.unit import Entity

MAX_BODY_BYTES = 32 * 2**20
Admit = Callable[[Actor, Served], Awaitable[object]]
"""(who, which model): called before anything of the model is told or used."""
Record = Callable[[Actor, Served, int], Awaitable[None]]
"""(who, with which model, how many samples): called before the answer leaves; what it raises is the answer."""
Refused = Callable[[Actor, Served | None, Problem], Awaitable[None]]
"""(who, which model if there is one, why): called before the refusal leaves, for it leaves a record too."""


class _Route(APIRoute):
    """Problems as problem+json with the protocol's own member `error` beside ours."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        # The handlers read the path themselves, so the document is told what stands in it.
        named = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in re.findall(r"{(\w+)}", path)]
        super().__init__(path, endpoint, **options | {"openapi_extra": {"parameters": named} if named else None})

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Problem as problem:
                tongue = language(request)
                document = {**problem.document(tongue), "error": problem.detail(tongue)}
                return JSONResponse(document, status_code=problem.status, media_type=PROBLEM_JSON)

        return answer


def router(
    repository: Repository, authorise: Callable[[Request], Awaitable[Actor]], admit: Admit, record: Record, refused: Refused
) -> APIRouter:
    """The routes. `authorise` raises a `Problem` for whoever may not infer, `admit` for whom this model is not; health answers anybody."""
    routes = APIRouter(prefix="/v2", route_class=_Route)

    caller = Depends(authorise)

    async def chosen(request: Request, who: Actor) -> Served:
        served = _served(repository, request)
        await admit(who, served)
        return served

    @routes.get("")
    async def server(who: Actor = caller) -> protocol.ServerMetadata:
        return protocol.ServerMetadata(name="medmesh", version="1")

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @routes.get("/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @routes.get("/models/{model}")
    @routes.get("/models/{model}/versions/{version}")
    async def metadata(request: Request, who: Actor = caller) -> protocol.ModelMetadata:
        return describe(await chosen(request, who))

    @routes.get("/models/{model}/ready")
    @routes.get("/models/{model}/versions/{version}/ready")
    async def model_ready(request: Request, who: Actor = caller) -> dict[str, Any]:
        return {"name": (await chosen(request, who)).manifest.model, "ready": True}

    @routes.post("/models/{model}/infer", response_model=protocol.InferResponse)
    @routes.post("/models/{model}/versions/{version}/infer", response_model=protocol.InferResponse)
    async def infer(request: Request, who: Actor = caller) -> Response:
        # Taken once: a version that becomes active meanwhile is for the next request. A refusal of `admit` has its own record.
        served: Served | None = None
        try:
            served = _served(repository, request)
        except Problem as problem:
            await refused(who, None, problem)
            raise
        await admit(who, served)
        try:
            if "inference-header-content-length" in request.headers:
                raise protocol.wrong("binary tensors are not taken here, only JSON")
            wanted, array = await asyncio.to_thread(_read, await _body(request), served)
            logits = await served.infer(array)
            answer = await asyncio.to_thread(_answer, served, wanted, logits)
            await record(who, served, len(array))
        except Problem as problem:
            await refused(who, served, problem)
            raise
        return Response(answer, media_type="application/json")

    return routes


def about(served: Served | None) -> tuple[Entity, ...]:
    """The model as records name it; nothing of a name that only the caller knows."""
    if served is None:
        return ()
    manifest = served.manifest
    return (Entity("model", manifest.model, version=str(manifest.version), digest=manifest.onnx.sha256),)


def describe(served: Served) -> protocol.ModelMetadata:
    """A model's metadata."""
    batch = served.session.outputs[0].shape[0]
    added = (
        protocol.TensorMetadata(name=PROBABILITIES, datatype="FP32", shape=(batch, len(served.manifest.classes))),
        protocol.TensorMetadata(name=LABEL, datatype="BYTES", shape=(batch,)),
    )
    return protocol.ModelMetadata(
        name=served.manifest.model,
        versions=(str(served.manifest.version),),
        platform=PLATFORM,
        inputs=served.session.inputs,
        outputs=(*served.session.outputs, *added),
    )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities float32 [batch, classes] of logits [batch, classes]; the largest is taken off first, so that none overflows."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: NDArray[np.float32] = (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def _served(repository: Repository, request: Request) -> Served:
    model, version = request.path_params["model"], request.path_params.get("version")
    if version is not None and not (version.isascii() and version.isdecimal() and len(version) < 16):
        raise Problem("serving.not_served", model=model)
    return repository.active(model, None if version is None else int(version))


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise Problem("serving.too_large", limit=MAX_BODY_BYTES)
    return bytes(body)


def _read(body: bytes, served: Served) -> tuple[protocol.InferRequest, NDArray[np.float32]]:
    wanted = protocol.read_request(body)
    # Before the work, not after it: a request for an output there is none of costs nothing.
    names = {served.session.outputs[0].name, PROBABILITIES, LABEL}
    for output in wanted.outputs or ():
        if output.name not in names:
            raise protocol.wrong(f"the model has no output {output.name!r}, only {', '.join(sorted(names))}")
    return wanted, protocol.read_input(wanted, served.session.inputs[0], most=MAX_BATCH)


def _answer(served: Served, wanted: protocol.InferRequest, logits: NDArray[np.float32]) -> bytes:
    if not np.isfinite(logits).all():
        raise Problem("serving.output", model=served.manifest.model)
    labels = [served.manifest.classes[index] for index in logits.argmax(axis=1)]
    outputs = [
        protocol.from_numpy(served.session.outputs[0].name, logits),
        protocol.from_numpy(PROBABILITIES, softmax(logits)),
        protocol.OutputTensor(name=LABEL, shape=(len(labels),), datatype="BYTES", data=labels),
    ]
    named = {output.name: output for output in outputs}
    answer = protocol.InferResponse(
        model_name=served.manifest.model,
        model_version=str(served.manifest.version),
        id=wanted.id,
        outputs=[named[output.name] for output in wanted.outputs] if wanted.outputs else outputs,
    )
    return answer.model_dump_json(exclude_none=True).encode()
