"""DICOMweb at the hospital's node: `/dicom-web/{project}/...` on its local page, for the hospital's own systems.

Who may is decided by the token that a system shows (`medmesh edge dicomweb`): one project, one realm, to read or to write. In the realm
`original` are the objects with their patients' names, in `clean` those a project sees. Every request leaves a record before its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from sqlite3 import Connection
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from medmesh.archive import parameters, query
from medmesh.archive.tables import known_scope
from medmesh.dicomweb import media
from medmesh.errors import Problem
from medmesh.imaging.pseudonyms import pseudonym
from medmesh.security.keys import read_secret
from medmesh.store.unit import AuditEntry, Entity
from medmesh_edge import patients, stowing
from medmesh_edge.archiving import Archive
from medmesh_edge.clients import Client, authenticate

if TYPE_CHECKING:
    from medmesh.dicomweb.wado import Located, Reply
    from medmesh_edge.node import Node

T = TypeVar("T")
READING = "read"
WRITING = "write"


def routes(node: Node, archive: Archive) -> APIRouter:
    """See the module."""
    site = node.site
    router = APIRouter(prefix="/dicom-web/{project}")

    async def admitted(request: Request, right: str) -> Client:
        """Whoever may not is refused and recorded; whether the project exists is told to nobody who may not."""
        async with node.doorstep.proving(request):
            client = await authenticate(site, request.headers.get("authorization", ""))
            if client.project != request.path_params["project"] or right not in client.rights:
                raise Problem("dicomweb.denied", right=right)
        return client

    def root(request: Request, client: Client) -> str:
        url = request.base_url
        address, port = request.scope["server"]
        if url.port is None and url.hostname == address:  # some clients leave the port out of Host
            url = url.replace(port=port)
        return f"{str(url).rstrip('/')}/dicom-web/{client.project}"

    async def work(client: Client, run: Callable[[Connection, int], T]) -> T:
        """In a thread, on a connection, in the client's realm."""

        def inside(connection: Connection) -> T:
            scope = known_scope(connection, client.project, client.realm)
            return run(connection, -1 if scope is None else scope)

        return await archive.work(inside)

    async def recorded(client: Client, entry: AuditEntry, run: Callable[[], Any]) -> Any:
        """What `run` makes, once the record of it is on the disk, also where it fails. It tells the patients' IDs as the realm has them."""
        outcome, why, answer = 0, "", None
        detail: dict[str, str | int | bool] = {}
        about: tuple[str, ...] = ()
        problem: Problem | None = None
        try:
            answer, detail, about = await run()
        except Problem as error:
            outcome, why, problem = 4, error.code, error
        common = (Entity("dataset", f"{site.settings.hospital}/{client.project}"),)
        async with site.unit(client.actor(site.settings.hospital)) as uow:
            named = await _patients(uow, about, client.realm)
            detail = {"realm": client.realm, **detail}
            uow.audit(replace(entry, outcome=outcome, why=why, entities=(*common, *named), detail=detail))
        if problem is not None:
            raise problem
        return answer

    async def _patients(uow: Any, about: Sequence[str], realm: str) -> tuple[Entity, ...]:
        """Those among them whose keys are here: their names in records are ciphertexts."""
        if not about:
            return ()
        names = [one if realm == "clean" else pseudonym(one, read_secret(site.layout.site_key).strip()) for one in about]
        keys = await patients.known(uow, site, names[: patients.PER_RECORD])
        return tuple(patients.entity(site, one, key) for one, key in sorted(keys.items()))

    # QIDO-RS

    async def search(request: Request, level: query.Level, study: str = "", series: str = "") -> Response:
        client = await admitted(request, READING)

        async def run() -> tuple[query.Answer, dict[str, int], tuple[str, ...]]:
            media.choose(media.accepted(request.headers.get("accept")), (media.JSON, "application/json"))
            asked = parameters.parse(request.query_params.multi_items())
            base = root(request, client)
            found = await work(client, lambda c, scope: query.search(c, scope, level, asked, base, study=study, series=series))
            return found, {"rows": len(found.rows)}, ()

        found: query.Answer = await recorded(client, AuditEntry("dicomweb.search", "E"), run)
        headers = {}
        if found.more:
            least = "at least " if found.more == query.COUNTED else ""
            headers["Warning"] = f'299 {request.url.hostname} "There are {least}{found.more} additional results that can be requested"'
        return Response(found.body(), media_type=media.JSON, headers=headers)

    @router.get("/studies")
    async def studies(request: Request) -> Response:
        return await search(request, "studies")

    @router.get("/series")
    async def all_series(request: Request) -> Response:
        return await search(request, "series")

    @router.get("/instances")
    async def all_instances(request: Request) -> Response:
        return await search(request, "instances")

    @router.get("/studies/{study}/series")
    async def series_of_study(request: Request, study: str) -> Response:
        return await search(request, "series", study)

    @router.get("/studies/{study}/instances")
    async def instances_of_study(request: Request, study: str) -> Response:
        return await search(request, "instances", study)

    @router.get("/studies/{study}/series/{series}/instances")
    async def instances_of_series(request: Request, study: str, series: str) -> Response:
        return await search(request, "instances", study, series)

    # WADO-RS

    async def retrieve(
        request: Request, make: Callable[[Connection, list[Located], Callable[..., Iterator[bytes]], str], Reply], **place: str
    ) -> Response:
        from medmesh.dicomweb import wado

        client = await admitted(request, READING)

        async def run() -> tuple[tuple[Reply, list[bytes]], dict[str, int], tuple[str, ...]]:
            found = await work(client, lambda c, scope: wado.locate(c, scope, **place))
            whose = tuple(sorted({one.patient_id for one in found}))
            opens = await opening(client, whose)

            def begin(connection: Connection, _scope: int) -> tuple[Reply, list[bytes]]:
                reply = make(connection, found, opens, root(request, client))
                # What cannot be given is told with a status, not by an answer that breaks off: two pieces are head and beginning.
                return reply, [piece for _, piece in zip(range(2), reply.body, strict=False)]

            return await work(client, begin), {"instances": len(found)}, whose

        reply, begun = await recorded(client, AuditEntry("dicomweb.retrieve", "R"), run)
        return StreamingResponse(_pieces(begun, reply.body), media_type=reply.media_type)

    async def opening(client: Client, whose: Sequence[str]) -> Callable[..., Iterator[bytes]]:
        """How the bytes of these patients' objects are read: clean ones lie under each patient's own key."""
        if client.realm == "original":
            return lambda one, start=0, end=None: archive.objects.store.open(one.sha256, start, end)
        async with site.unit() as uow:
            keys = await patients.known(uow, site, whose)

        def clean(one: Located, start: int = 0, end: int | None = None) -> Iterator[bytes]:
            if one.patient_id not in keys:
                raise Problem("dicomweb.not_found")
            return patients.images(site, keys[one.patient_id]).open(one.sha256, start, end)

        return clean

    def whole(accept: str | None) -> Callable[..., Reply]:
        from medmesh.dicomweb import wado

        return lambda _connection, found, opens, _root: wado.objects(found, accept, opens)

    def headers(request: Request) -> Callable[..., Reply]:
        from medmesh.dicomweb import wado

        kind = wado.metadata_type(request.headers.get("accept"))
        # Small, and drawn from a connection that goes back: made at once, study by study in pieces of the size of one.
        return lambda connection, found, _opens, base: wado.Reply(kind, iter([b"".join(wado.metadata(connection, found, base))]))

    @router.get("/studies/{study}")
    async def study(request: Request, study: str) -> Response:
        return await retrieve(request, whole(request.headers.get("accept")), study=study)

    @router.get("/studies/{study}/series/{series}")
    async def one_series(request: Request, study: str, series: str) -> Response:
        return await retrieve(request, whole(request.headers.get("accept")), study=study, series=series)

    @router.get("/studies/{study}/series/{series}/instances/{instance}")
    async def one_instance(request: Request, study: str, series: str, instance: str) -> Response:
        return await retrieve(request, whole(request.headers.get("accept")), study=study, series=series, instance=instance)

    @router.get("/studies/{study}/metadata")
    async def study_metadata(request: Request, study: str) -> Response:
        return await retrieve(request, headers(request), study=study)

    @router.get("/studies/{study}/series/{series}/metadata")
    async def series_metadata(request: Request, study: str, series: str) -> Response:
        return await retrieve(request, headers(request), study=study, series=series)

    @router.get("/studies/{study}/series/{series}/instances/{instance}/metadata")
    async def instance_metadata(request: Request, study: str, series: str, instance: str) -> Response:
        return await retrieve(request, headers(request), study=study, series=series, instance=instance)

    @router.get("/studies/{study}/series/{series}/instances/{instance}/frames/{frames}")
    async def frames(request: Request, study: str, series: str, instance: str, frames: str) -> Response:
        from medmesh.dicomweb import wado

        def make(connection: Connection, found: list[Located], opens: Any, _root: str) -> Reply:
            wanted = wado.numbers(frames, found[0].frames)
            return wado.frames(connection, found[0], wanted, request.headers.get("accept"), opens)

        return await retrieve(request, make, study=study, series=series, instance=instance)

    async def picture(request: Request, frame: str, place: dict[str, str]) -> Response:
        from medmesh.dicomweb import pixels, wado

        def make(_connection: Connection, found: list[Located], opens: Any, _root: str) -> Reply:
            asked = pixels.Rendering.parse(dict(request.query_params))
            (wanted,) = wado.numbers(frame, found[0].frames)[:1]
            return wado.rendered(found[0], wanted, asked, request.headers.get("accept"), opens)

        return await retrieve(request, make, **place)

    @router.get("/studies/{study}/series/{series}/instances/{instance}/rendered")
    async def rendered(request: Request, study: str, series: str, instance: str) -> Response:
        return await picture(request, "1", {"study": study, "series": series, "instance": instance})

    @router.get("/studies/{study}/series/{series}/instances/{instance}/frames/{frame}/rendered")
    async def rendered_frame(request: Request, study: str, series: str, instance: str, frame: str) -> Response:
        return await picture(request, frame, {"study": study, "series": series, "instance": instance})

    @router.get("/studies/{study}/series/{series}/instances/{instance}/bulkdata/{name}")
    async def bulk(request: Request, study: str, series: str, instance: str, name: str) -> Response:
        from medmesh.dicomweb import wado

        def make(connection: Connection, found: list[Located], opens: Any, _root: str) -> Reply:
            return wado.bulk(connection, found[0], name, request.headers.get("accept"), opens)

        return await retrieve(request, make, study=study, series=series, instance=instance)

    # STOW-RS

    @router.post("/studies")
    async def store(request: Request) -> Response:
        return await take(request, "")

    @router.post("/studies/{study}")
    async def store_in_study(request: Request, study: str) -> Response:
        return await take(request, study)

    async def take(request: Request, study: str) -> Response:
        client = await admitted(request, WRITING)
        status, headers, body = await stowing.take(archive, request, client, study, root(request, client))
        return Response(body, status_code=status, media_type=media.JSON, headers=headers)

    return router


async def _pieces(begun: list[bytes], rest: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in begun:
        yield piece
    while piece := await asyncio.to_thread(lambda: next(rest, b"")):
        yield piece
