"""`medmesh emergency`: access that cannot wait for anybody, and its review."""

from __future__ import annotations

from typing import Any, get_args

import click

from medmesh.cli import say
from medmesh.cli.session import ask_code, show, with_gateway
from medmesh.client.gateway import Gateway
from medmesh.contracts.governance import EmergencyReason


@click.group()
def emergency() -> None:
    """Emergency access to an organisation's models, data and labels.  紧急访问（破窗）。

    It opens at once and for an hour at most, tells the security administrator and the hospital, and is reviewed by somebody else
    within 24 hours. Everything done meanwhile is recorded with its id.

    \b
      medmesh emergency open renji --reason resuscitation --note "no colleague of the ward can be reached"
      medmesh emergency list
      medmesh emergency end ID
    """


@emergency.command(name="open")
@click.argument("organisation")
@click.option("--reason", required=True, type=click.Choice(get_args(EmergencyReason)))
@click.option("--note", required=True, help="One line about the situation: no names, numbers, dates.")
@click.option("--minutes", type=click.IntRange(1, 60), default=60, show_default=True)
@click.option("--code", help="Of your authenticator; asked for when it is not given.")
def open_(organisation: str, reason: str, note: str, minutes: int, code: str | None) -> int:
    """Open one to ORGANISATION, in this session.  开启紧急访问。

    It opens reading models, data and labels, and asking models; nothing that administers, approves or exports.
    """

    async def run(gateway: Gateway) -> Any:
        body = {"organisation": organisation, "reason": reason, "note": note, "minutes": minutes, "code": code or await ask_code()}
        return await gateway.request("POST", "/v1/emergencies", body)

    show(with_gateway(run))
    click.echo(say("Everything you do from now on is recorded with this id.", "此后的操作均以该编号记入审计。"), err=True)
    return 0


@emergency.command(name="list")
@click.option("--state", type=click.Choice(["open", "ended", "overdue", "justified", "unjustified"]))
def list_emergencies(state: str | None) -> int:
    """Yours, or everybody's when you review or audit.  查看紧急访问。"""
    query = {"state": state} if state else None
    show(with_gateway(lambda gateway: gateway.request("GET", "/v1/emergencies", query=query))["emergencies"])
    return 0


@emergency.command()
@click.argument("emergency_id")
def end(emergency_id: str) -> int:
    """End it before its time.  提前结束。"""
    show(with_gateway(lambda gateway: gateway.command("POST", f"/v1/emergencies/{emergency_id}/end")))
    return 0


@emergency.command()
@click.argument("emergency_id")
@click.option("--justified/--not-justified", required=True, default=None)
@click.option("--comment", default="", help="Needed when it was not justified: no names, numbers, dates.")
def review(emergency_id: str, justified: bool, comment: str) -> int:
    """Say whether somebody else's was justified.  审查紧急访问。

    What was done under it: medmesh audit search --entity emergency:ID. Not justified ends the person's sessions and takes the
    privilege away until the security administrator restores it.
    """
    body = {"justified": justified, "comment": comment}
    show(with_gateway(lambda gateway: gateway.command("POST", f"/v1/emergencies/{emergency_id}/review", body)))
    return 0


@emergency.command()
@click.argument("name")
def restore(name: str) -> int:
    """Let NAME open emergency accesses again.  恢复紧急访问权限。"""
    with_gateway(lambda gateway: gateway.command("POST", f"/v1/users/{name}/emergency"))
    click.echo(say(f"{name}: restored", f"{name}：已恢复"))
    return 0
