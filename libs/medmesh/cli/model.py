"""`medmesh model`: versions, conversion, release.  模型。"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from medmesh.cli import language, say
from medmesh.cli.asking import request_approval
from medmesh.cli.session import show, with_gateway
from medmesh.client.gateway import Gateway
from medmesh.figures import size

if TYPE_CHECKING:
    from medmesh.contracts.registry import VersionView

STATES = {
    "registered": "已登记",
    "converted": "已转换",
    "open": "待审批",
    "released": "已发布",
    "refused": "未获批准",
    "withdrawn": "已撤回",
}
"""Of versions and releases, in Chinese."""


@click.group()
def model() -> None:
    """Models: versions, conversion, release.  模型。"""


@model.command(name="list")
def list_models() -> int:
    """Every version you may see, newest first, as JSON.

    列出您可见的全部版本（JSON），最新的在前。
    """
    show(with_gateway(lambda gateway: gateway.request("GET", "/v1/models"))["models"])
    return 0


@model.command(name="show")
@click.argument("name")
@click.argument("version", type=int)
@click.option("--json", "as_json", is_flag=True, help="For programs, with plain numbers.  供程序使用，数值不作换算。")
def show_model(name: str, version: int, as_json: bool) -> int:
    """Where VERSION of a model comes from, its files, and where it was released; hospitals in it that left since are named.

    查看模型某一版本的来源、文件与发布情况；其中已退出的医院会注明。
    """
    view = with_gateway(lambda gateway: _version(gateway, name, version))
    if as_json:
        show(view.model_dump(mode="json"))
        return 0
    click.secho(f"{view.model} {view.version}  {say(view.state, STATES[view.state])}", bold=True)
    for line in _described(view):
        click.echo(f"  {line}")
    _departed(view)
    return 0


async def _version(gateway: Gateway, name: str, version: int) -> VersionView:
    from medmesh.contracts.registry import VersionView

    return await gateway.ask(f"/v1/models/{name}/versions/{version}", VersionView)


def _described(view: VersionView) -> list[str]:
    lineage = view.lineage
    made = {
        say("federation", "联邦"): lineage.federation,
        say("job", "任务"): lineage.job,
        say("hospitals", "医院"): ", ".join(lineage.hospitals),
        say("data sets", "数据集"): ", ".join(lineage.datasets),
        say("rounds undone", "已撤销轮次"): ", ".join(map(str, lineage.undone)),
    }
    lines = [f"{what} {value}" for what, value in made.items() if value]
    lines.append(f"{say('package', '训练包')} {view.package.sha256}")
    for file in view.artefacts:
        apart = "" if file.parity_max_abs is None else f"{file.parity_max_abs:.1e}"
        parity = apart and say(f"  differs by {apart}", f"  最大偏差 {apart}")
        lines.append(f"{file.format} {size(file.object.bytes)}  {file.object.sha256}{parity}")
    for one in view.releases:
        lines.append(f"{say('release', '发布')} {one.release}  {say(one.state, STATES[one.state])}")
        lines += [f"  {install.hospital}  {say('installed', '已安装') if install.installed else install.code}" for install in one.installs]
    return lines


def _departed(view: VersionView) -> None:
    """Say on stderr, beside whatever is shown of the version, that hospitals in it left."""
    from medmesh.contracts.registry import departures

    if (said := departures(view.model, view.version, view.withdrawn)) is not None:
        click.secho(f"{said.detail(language())} {said.hint(language())}", fg="yellow", err=True)


@model.command()
@click.argument("name")
@click.argument("version", type=int)
def convert(name: str, version: int) -> int:
    """Convert VERSION to ONNX: refused where its answers differ from those of the training framework.

    转换为 ONNX；与训练框架的输出不一致即拒绝。
    """
    path = f"/v1/models/{name}/versions/{version}/conversion"
    show(with_gateway(lambda gateway: gateway.command("POST", path, {}, seconds=600)))
    return 0


@model.command()
@click.argument("name")
@click.argument("version", type=int)
@click.option("--hospital", "hospitals", multiple=True, required=True, help="Who gets it; once for each.  发布给哪家医院；每家一次。")
def release(name: str, version: int, hospitals: tuple[str, ...]) -> int:
    """Fix what would be released, and ask for its approval.

    准备发布并申请审批。

    Others approve it, and each hospital's node installs what verifies (`medmesh edge status`). Hospitals in the model that left since are
    named before.

    须经他人批准；各医院节点验证通过后安装（`medmesh edge status`）。模型中已退出的医院会事先注明。

    \b
    medmesh model release mri 1 --hospital xiehe --hospital renji
    """

    async def run(gateway: Gateway) -> Any:
        _departed(await _version(gateway, name, version))
        prepared = await gateway.command("POST", f"/v1/models/{name}/versions/{version}/release", {"hospitals": hospitals})
        body = {"action": "model.release", "target": prepared["release"], "digest": prepared["digest"]}
        return {**prepared, **await request_approval(gateway, body)}

    show(with_gateway(run))
    return 0
