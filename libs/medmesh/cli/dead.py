"""`medmesh dead`: messages a service gave up on.  死信。"""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.platform import DATA
from medmesh.cli.session import show
from medmesh.contracts.message import encode, envelope
from medmesh.contracts.system import DeadLetters, ListDeadLetters, ReplayDeadLetter, Replayed
from medmesh.errors import Problem


def _ask(data: Path, query: Any, reply: Any) -> Any:
    from medmesh.bus.nats_bus import NatsBus
    from medmesh.bus.topology import OPERATOR
    from medmesh.embedded.run import running
    from medmesh.security.keys import Identity
    from medmesh.security.tokens import service_token
    from medmesh.service.runtime import unwrap

    data = data.absolute()
    run = running(data)
    if run is None:
        raise Problem("platform.not_running", data=data)
    seed = data / "secrets" / f"{OPERATOR}.nk"

    async def ask() -> Any:
        bus = await NatsBus.connect(run.urls["nats"], name=OPERATOR, seed=seed)
        try:
            asked = envelope(query, source=OPERATOR, actor=service_token(Identity.load(seed), OPERATOR))
            return unwrap(await bus.request(query.address(), encode(asked)), reply)
        finally:
            await bus.close()

    return asyncio.run(ask())


@click.group()
def dead() -> None:
    """Messages a service gave up on, with the reason.  死信队列。"""


@dead.command(name="list")
@DATA
@click.option("--service", help="Only this one.")
def list_letters(data: Path, service: str | None) -> int:
    """Newest first."""
    from importlib.metadata import entry_points

    names = [service] if service else sorted(entry.name for entry in entry_points(group="medmesh.services"))
    found = 0
    for name in names:
        for letter in _ask(data, ListDeadLetters(service=name), DeadLetters).letters:
            found += 1
            click.echo(f"{letter.last_error:%Y-%m-%d %H:%M:%S}  {letter.consumer:<32} {letter.code:<28} {letter.event}")
            click.echo(f"    {letter.reason}")
    if not found:
        click.echo(say("none", "无"))
    return 0


@dead.command(name="show")
@DATA
@click.argument("service")
@click.argument("event")
def show_letter(data: Path, service: str, event: str) -> int:
    """One message with its body (its actor token is not shown)."""
    import json

    from medmesh.security.redaction import redact

    for letter in _ask(data, ListDeadLetters(service=service, event=event), DeadLetters).letters:
        document = letter.model_dump(mode="json", exclude={"body"})
        try:
            body = json.loads(base64.b64decode(letter.body or ""))
            body.pop("actor", None)
            document["message"] = redact(body)
        except ValueError:
            document["message"] = None
        show(document)
    return 0


@dead.command()
@DATA
@click.argument("service")
@click.argument("consumer")
@click.argument("event")
def replay(data: Path, service: str, consumer: str, event: str) -> int:
    """Handle a dead letter once more, after its cause was mended."""
    done = _ask(data, ReplayDeadLetter(service=service, consumer=consumer, event=event), Replayed)
    click.echo(say("handled", "已处理") if done.replayed else say("it failed again", "再次失败"))
    return 0 if done.replayed else 1
