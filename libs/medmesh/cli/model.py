"""`medmesh model`: versions, conversion, release.  模型。"""

from __future__ import annotations

from typing import Any

import click

from medmesh.cli.asking import request_approval
from medmesh.cli.session import show, with_gateway
from medmesh.client.gateway import Gateway


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
        return {**prepared, **await request_approval(gateway, body)}

    show(with_gateway(run))
    return 0
