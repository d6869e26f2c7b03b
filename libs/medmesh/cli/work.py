"""`medmesh federation|model`: what researchers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medmesh.cli import language, say
from medmesh.cli.session import show, with_gateway
from medmesh.client.gateway import Gateway


@click.group()
def federation() -> None:
    """Training together.  联邦训练。"""


@federation.command(name="list")
def list_federations() -> int:
    """Every federation you may see."""
    show(with_gateway(lambda gateway: gateway.request("GET", "/v1/federations"))["federations"])
    return 0


@federation.command(name="show")
@click.argument("identifier")
@click.option("--json", "as_json", is_flag=True)
def show_federation(identifier: str, as_json: bool) -> int:
    """A federation in plain words: its plan, its rounds, its participants.  查看联邦。"""
    from medmesh.contracts.federation import FederationView
    from medmesh.federated.plan import explain

    view = with_gateway(lambda gateway: gateway.ask(f"/v1/federations/{identifier}", FederationView))
    if as_json:
        show(view.model_dump(mode="json"))
        return 0
    click.secho(f"{view.plan.name}  {view.state}", bold=True)
    for line in explain(view.plan, language()):
        click.echo(f"  {line}")
    for participant in view.participants:
        online = say("online", "在线") if participant.online else say("offline", "离线")
        click.echo(f"  {participant.hospital:<16} {participant.state:<10} {online} {participant.reason}")
    for one in view.rounds:
        click.echo(f"  {say('round', '轮')} {one.round}.{one.attempt} {one.kind:<9} {one.state:<10} {len(one.answers)}")
    return 0


def _parameters(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    pairs = [part.partition("=") for part in given]
    if wrong := next((name for name, sign, value in pairs if not (name and sign and value)), None):
        raise click.BadParameter(f"{wrong!r}: NAME=VALUE, for example mu=0.01")
    return {name: value for name, _, value in pairs}


@federation.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", required=True)
@click.option("--purpose", required=True)
@click.option("--initiator", required=True, help="You, as person:NAME@ORGANISATION.")
@click.option("--hospital", "hospitals", multiple=True, required=True)
@click.option("--rounds", default=10, show_default=True)
@click.option("--steps", default=50, show_default=True, help="Local steps a round.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--learning-rate", default="0.05", show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--min-participants", default=2, show_default=True)
@click.option("--accept-minutes", default=60.0, show_default=True, help="How long hospitals may think.")
@click.option("--start-minutes", default=0.0, help="Not before so many minutes from now; by default as soon as all have answered.")
@click.option("--round-deadline", default=600, show_default=True, help="Seconds.")
@click.option("--lease", default=15, show_default=True, help="Seconds a silent hospital keeps its place.")
@click.option("--baseline", is_flag=True, help="Also train alone and evaluate every model everywhere.")
@click.option("--algorithm", default="fedavg", show_default=True, help="How updates become a model: docs/federation/algorithms.md.")
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_parameters,
    help="Of the algorithm, as mu=0.01; may be repeated.",
)
@click.option("--local", multiple=True, metavar="TENSOR", help="Never leaves a hospital; may be repeated.")
@click.option("--codec", type=click.Choice(["none", "fp16", "bf16", "int8", "topk"]), default="none", show_default=True)
@click.option("--secure", type=int, metavar="THRESHOLD", help="Open sums over at least so many hospitals, and no single update.")
def create(folder: Path, name: str, hospitals: tuple[str, ...], accept_minutes: float, start_minutes: float, **options: Any) -> int:
    """Create a federation from the training package in FOLDER and invite the hospitals.  创建联邦并邀请医院。"""
    from medmesh.client.federation import create_federation

    async def run(gateway: Gateway) -> Any:
        return await create_federation(
            gateway,
            folder,
            name=name,
            purpose=options["purpose"],
            initiator=options["initiator"],
            hospitals=hospitals,
            accept_seconds=accept_minutes * 60,
            start_seconds=start_minutes * 60,
            rounds=options["rounds"],
            local_steps=options["steps"],
            batch_size=options["batch_size"],
            learning_rate=options["learning_rate"],
            seed=options["seed"],
            min_participants=options["min_participants"],
            round_deadline_seconds=options["round_deadline"],
            lease_seconds=options["lease"],
            baseline=options["baseline"],
            algorithm=options["algorithm"],
            parameters=options["parameters"],
            local=options["local"],
            codec=options["codec"],
            secure=None if options["secure"] is None else {"threshold": options["secure"]},
        )

    made = with_gateway(run)
    show(made)
    click.echo(
        say(
            f"next: medmesh approval request federation.start {made['federation']} {made['plan_hash']}",
            f"下一步：medmesh approval request federation.start {made['federation']} {made['plan_hash']}",
        ),
        err=True,
    )
    return 0


def _said(identifier: str, what: str, body: dict[str, Any]) -> int:
    show(with_gateway(lambda gateway: gateway.command("POST", f"/v1/federations/{identifier}/{what}", body)))
    return 0


@federation.command()
@click.argument("identifier")
@click.option("--reason", default="")
def pause(identifier: str, reason: str) -> int:
    """Open no further round; the clock of the open one stands still.  暂停。"""
    return _said(identifier, "pause", {"reason": reason})


@federation.command()
@click.argument("identifier")
def resume(identifier: str) -> int:
    """Go on after a pause.  恢复。"""
    return _said(identifier, "resume", {})


@federation.command()
@click.argument("identifier")
@click.option("--minutes", type=float, required=True)
def extend(identifier: str, minutes: float) -> int:
    """Give the open round so many more minutes.  延长本轮时限。"""
    return _said(identifier, "extension", {"seconds": round(minutes * 60)})


@federation.command()
@click.argument("identifier")
@click.option("--reason", required=True)
def cancel(identifier: str, reason: str) -> int:
    """End it; its hospitals are told. There is no way back.  取消联邦。"""
    return _said(identifier, "cancel", {"reason": reason})


@click.group()
def model() -> None:
    """Models: versions, conversion, release.  模型。"""


@model.command(name="list")
def list_models() -> int:
    """Every version you may see."""
    show(with_gateway(lambda gateway: gateway.request("GET", "/v1/models"))["models"])
    return 0


@model.command()
@click.argument("name")
@click.argument("version", type=int)
def convert(name: str, version: int) -> int:
    """Convert a version to ONNX behind the parity gate.  转换为 ONNX。"""
    path = f"/v1/models/{name}/versions/{version}/conversion"
    show(with_gateway(lambda gateway: gateway.command("POST", path, {}, seconds=600)))
    return 0


@model.command()
@click.argument("name")
@click.argument("version", type=int)
@click.option("--hospital", "hospitals", multiple=True, required=True)
def release(name: str, version: int, hospitals: tuple[str, ...]) -> int:
    """Fix what would be released, and ask for its approval.  准备发布并申请审批。"""

    async def run(gateway: Gateway) -> Any:
        prepared = await gateway.command("POST", f"/v1/models/{name}/versions/{version}/release", {"hospitals": hospitals})
        body = {"action": "model.release", "target": prepared["release"], "digest": prepared["digest"]}
        return {**prepared, **await gateway.command("POST", "/v1/approvals", body)}

    show(with_gateway(run))
    return 0
