"""`medmesh audit`: search the log, copy it, and verify it without trusting anybody.  审计。"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from medmesh.cli import say
from medmesh.cli.verify import verify
from medmesh.errors import Problem

if TYPE_CHECKING:
    from medmesh.client.gateway import Gateway

T = TypeVar("T")
AUDIT = click.option("--audit", "url", required=True, envvar="MEDMESH_AUDIT", metavar="URL", help="Address of the audit service.")


def at_the_door(url: str, work: Callable[[Gateway], Awaitable[T]]) -> T:
    """Run `work` with a client of the audit service for the signed-in person."""
    from medmesh.cli.session import ask_code, load, with_gateway
    from medmesh.client.credentials import Person
    from medmesh.client.gateway import Gateway

    async def run(gateway: Gateway) -> T:
        async def try_once() -> T:
            token = await gateway.request("POST", "/v1/tokens/audit")
            async with Gateway(url, ca=Path(load()["ca"]), credentials=Person(token["token"])) as door:
                return await work(door)

        try:
            return await try_once()
        except Problem as problem:
            if problem.code != "security.step_up":
                raise
        await gateway.request("POST", "/v1/sessions/step-up", {"code": await ask_code()})
        return await try_once()

    return with_gateway(run)


def door_token() -> str:
    """A token for the audit service, of the signed-in person."""
    from medmesh.cli.session import with_gateway

    async def ask(gateway: Gateway) -> str:
        return str((await gateway.request("POST", "/v1/tokens/audit"))["token"])

    return with_gateway(ask)


def _show(document: Any) -> None:
    from medmesh.cli.session import show

    show(document)


@click.group()
def audit() -> None:
    """The log of every sensitive action.  审计日志。"""


@audit.command()
@AUDIT
@click.option("--entity", help="KIND:ID, for example model:mri-cnn")
@click.option("--actor", help="For example person:li")
@click.option("--verb", help="A verb, or the beginning of one with *")
@click.option("--limit", default=100, show_default=True)
def search(url: str, **filters: Any) -> int:
    """Who did what to what, and when; the search itself is logged.  查询。"""
    query = {name: value for name, value in filters.items() if value is not None}
    _show(at_the_door(url, lambda door: door.request("GET", "/v1/records", query=query)))
    return 0


@audit.command()
@AUDIT
@click.argument("seq", type=int)
@click.option("--out", type=click.Path(path_type=Path), help="Write the evidence here; as one C2SP proof when it ends in .tlog-proof.")
def prove(url: str, seq: int, out: Path | None) -> int:
    """Get record SEQ with everything needed to verify it offline.  获取证明。"""
    from medmesh.ledger.proof import evidence_file, read_evidence

    evidence = at_the_door(url, lambda door: door.request("GET", f"/v1/records/{seq}/proof"))
    if out:
        text = json.dumps(evidence, indent=1)
        out.write_text(evidence_file(read_evidence(text)) if out.suffix == ".tlog-proof" else text)
    else:
        _show(evidence)
    return 0


@audit.command()
@AUDIT
@click.argument("folder", type=click.Path(path_type=Path))
def export(url: str, folder: Path) -> int:
    """Copy the whole log into FOLDER.  导出日志。"""
    from medmesh.client.audit import export_log

    size = at_the_door(url, lambda door: export_log(door, folder))
    click.echo(say(f"{size} records", f"共 {size} 条记录"))
    return 0


audit.add_command(verify)
