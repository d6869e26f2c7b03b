"""The hospital's local page and its own inference, on loopback only. A bearer from `secrets/local.token` opens what shows data."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from sqlalchemy import func, select

from medmesh.contracts.registry import departures
from medmesh.errors import Problem, catalogue
from medmesh.security.codes import same
from medmesh.security.keys import read_secret
from medmesh.security.tokens import Actor
from medmesh.service.http import language, new_application
from medmesh.serving.app import about, router
from medmesh.serving.repository import Served
from medmesh.store.unit import AuditEntry
from medmesh_edge import changes, continuity, dicomweb, environments, preparing
from medmesh_edge.tables import SHOWN, federations, items, releases, requests, tasks

if TYPE_CHECKING:
    from medmesh_edge.node import Node


def application(node: Node) -> Any:
    """The node's HTTP application."""
    app = new_application("medmesh edge")
    token = read_secret(node.site.layout.local_token).decode().strip()

    async def authorise(request: Request) -> Actor:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        async with node.doorstep.proving(request):
            if kind.lower() != "bearer" or not same(given, token):
                raise Problem("actor.missing", type=request.url.path)
        return node.site.actor

    async def admit(_who: Actor, _served: Served) -> None:
        """What is installed here was released to this hospital: its own people may use it."""

    async def record(who: Actor, served: Served, inputs: int) -> None:
        async with node.site.unit(who) as uow:
            uow.audit(AuditEntry("inference.infer", "E", entities=about(served), detail={"inputs": inputs}))

    async def refused(who: Actor, served: Served | None, problem: Problem) -> None:
        async with node.site.unit(who) as uow:
            uow.audit(AuditEntry("inference.infer", "E", outcome=4, why=problem.code, entities=about(served)))

    app.include_router(router(node.repository, authorise, admit, record, refused))
    app.include_router(dicomweb.routes(node, node.archive))

    @app.get("/", response_class=HTMLResponse)
    async def page(request: Request) -> str:
        return _page(await status(node), language(request))

    @app.get("/v1/status")
    async def status_route() -> dict[str, Any]:
        return await status(node)

    @app.get("/v1/federations/{federation}/changes")
    async def changes_route(federation: str, request: Request) -> dict[str, Any]:
        """What is other in its plan and code than in what was accepted before."""
        await authorise(request)
        return {"federation": federation, "lines": await changes.since(node.site, federation, language(request))}

    return app


async def status(node: Node) -> dict[str, Any]:
    """Counts and states; nothing of a patient."""
    async with node.site.unit() as uow:
        counted = await uow.all(select(items.c.dataset, func.count().label("items")).group_by(items.c.dataset))
        rounds = await uow.all(select(tasks.c.round, tasks.c.kind, tasks.c.state, tasks.c.trained).order_by(tasks.c.at.desc()).limit(8))
        waiting = (await uow.execute(select(func.count()).select_from(requests).where(requests.c.state == "waiting"))).scalar_one()
        joined = await uow.all(select(*(federations.c[name] for name in SHOWN)))
        installed = await uow.all(select(*(releases.c[name] for name in ("model", "version", "state", "code", "withdrawn"))))
    seen = await continuity.present(node.site)
    return {
        "hospital": node.site.settings.hospital,
        "node": node.site.settings.node,
        "connected": node.connected,
        "problem": None if node.connected or node.last_problem is None else node.last_problem.document(),
        "datasets": {row.dataset: row.items for row in counted},
        "federations": [dict(f._mapping) for f in joined],
        "work": [node.rounds.doing] if node.rounds.doing else [],
        "rounds": [{"round": r.round, "kind": r.kind, "state": r.state, "trained": r.trained} for r in rounds],
        "models": [{**m._mapping, "withdrawn": m.withdrawn or []} for m in installed],
        "pipelines": await preparing.progress(node.site),
        "requests_waiting": waiting,
        "log": None if seen is None else _log(seen),
        "programs": _programs(node.programs.state),
        "environments": [problem.document() for problem in await environments.problems(node.site)],
    }


def _log(seen: Any) -> dict[str, Any]:
    """How far the platform's log was followed, and what stands against it."""
    problem = continuity.against(seen)
    return {"records": seen.size, "at": seen.at.isoformat(), "problem": None if problem is None else problem.document()}


def _programs(found: AuditEntry | None) -> dict[str, Any] | None:
    """Who vouched for what runs here; None where nobody did."""
    return None if found is None else {"code": found.why, "by": found.detail.get("signer", ""), "changed": found.detail.get("changed", 0)}


def _warning(document: dict[str, Any] | None, tongue: str) -> str:
    if document is None:
        return ""
    problem = Problem.from_document(document)
    return f"<p><strong>{html.escape(problem.detail(tongue))}</strong> {html.escape(problem.hint(tongue))}</p>"


def _left(model: dict[str, Any], tongue: str) -> str:
    problem = departures(model["model"], model["version"], model["withdrawn"])
    return _warning(None if problem is None else problem.document(), tongue)


def _reason(code: str, tongue: str) -> str:
    """In words, where they need nothing but the code."""
    text = catalogue().get(code)
    if text is None or "{" in text.en:
        return code
    return text.zh if tongue == "zh" else text.en


def _page(found: dict[str, Any], tongue: str) -> str:
    words = {
        "en": "connected|not connected|Data sets|Federations|Rounds|Models|Data stay in this hospital.|Pipelines|At work",
        "zh": "已连接|未连接|数据集|联邦|训练轮次|模型|数据不出院。|处理流程|正在进行",
    }[tongue].split("|")
    state = words[0] if found["connected"] else words[1]

    def table(title: str, rows: list[dict[str, Any]]) -> str:
        if not rows:
            return f"<h2>{title}</h2><p>–</p>"
        head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in row.values()) + "</tr>" for row in rows)
        return f"<h2>{title}</h2><table><tr>{head}</tr>{body}</table>"

    sets = [{"dataset": name, "items": number} for name, number in found["datasets"].items()]
    return (
        f"<!doctype html><html lang='{tongue}'><meta charset='utf-8'><meta http-equiv='refresh' content='3'>"
        "<style>body{font:15px system-ui;margin:2em auto;max-width:52em}table{border-collapse:collapse}"
        "td,th{border:1px solid #ccc;padding:.3em .7em;text-align:left}</style>"
        f"<title>medmesh – {html.escape(found['hospital'])}</title><h1>{html.escape(found['hospital'])} · {state}</h1><p>{words[6]}</p>"
        + "".join(_warning(document, tongue) for document in [found["log"] and found["log"]["problem"], *found["environments"]])
        + table(words[2], sets)
        + table(words[3], [{**one, "reason": _reason(one["reason"], tongue)} for one in found["federations"]])
        + table(words[7], [{**one, "hash": one["hash"][:16]} for one in found["pipelines"]])
        + table(words[8], found["work"])
        + table(words[4], found["rounds"])
        + table(words[5], [{name: value for name, value in one.items() if name != "withdrawn"} for one in found["models"]])
        + "".join(_left(one, tongue) for one in found["models"])
    )
