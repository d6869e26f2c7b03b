"""`medmesh federation rehearse`: a package on invented data, before hospitals are asked.  演练。"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medmesh.cli import language, say
from medmesh.cli.plan_options import training, training_of
from medmesh.cli.session import show, with_gateway
from medmesh.figures import size

if TYPE_CHECKING:
    from medmesh.client.gateway import Gateway
    from medmesh.contracts.training import RehearsalReport

STAGES = {
    "read": ("read the code for what it can do", "静态检查代码的能力"),
    "open": ("open the package in its sandbox", "在沙箱中打开训练包"),
    "initial": ("make the first weights", "生成初始权重"),
    "train": ("train at pretended hospitals", "在虚拟医院训练"),
    "aggregate": ("combine their updates", "聚合更新"),
    "next": ("train again, a round later", "下一轮训练"),
    "evaluate": ("evaluate the model", "评估模型"),
    "personal": ("make a hospital's own model", "生成本院专属模型"),
}


def tell(stage: str) -> None:
    """Say that a stage began."""
    click.echo(f"  … {say(*STAGES.get(stage, (stage, stage)))}", err=True)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@training
@click.option("--json", "as_json", is_flag=True, help="For programs, with plain numbers.  供程序使用，数值不作换算。")
def rehearse(folder: Path, as_json: bool, **options: Any) -> int:
    """Run the training package in FOLDER at the platform on data that are invented from its data schema.

    在平台上以虚构数据演练训练包，数据按其数据结构生成。

    As hospitals would run it: in the sandbox, two rounds, with their updates combined in between. Finds tensors of another name, shape or
    type than the package declares, numbers that are none, mistakes in code, too much memory, too much time. Give the options of the
    federation. `create` does the same by itself where a package has code. Exit code 1 when it failed.

    与医院的运行方式相同：在沙箱中训练两轮，其间聚合各方更新。可发现张量的名称、形状或类型与训练包声明不符，数值无效，代码错误，内
    存或时间过多。请给出联邦的相同选项。训练包含代码时 `create` 会自动演练。演练失败时退出码为 1。
    """
    from medmesh.client import federation as client
    from medmesh.client.transfer import upload
    from medmesh.learning.package import pack

    package = pack(folder)

    async def run(gateway: Gateway) -> Any:
        with tempfile.NamedTemporaryFile() as file:
            file.write(package.archive)
            file.flush()
            archive = await upload(gateway, Path(file.name))
        return await client.rehearse(gateway, package, archive, client.rehearsing(training_of(options)), tell=tell)

    report, ref = with_gateway(run)
    if as_json:
        show({"report": ref.model_dump(), **report.model_dump(mode="json"), "passed": report.passed})
    else:
        describe(report, ref.sha256)
    return 0 if report.passed else 1


def describe(report: RehearsalReport, digest: str) -> None:
    """A report in words."""
    from medmesh.errors import Problem

    for stage in report.stages:
        mark, colour = ("ok", "green") if stage.problem is None else ("!!", "red")
        click.secho(f" {mark} ", fg=colour, nl=False)
        click.echo(f"{say(*STAGES[stage.name])}  {stage.milliseconds} ms")
        if stage.problem is not None:
            problem = Problem.from_document(stage.problem)
            click.secho(f"    {problem.detail(language())} {problem.hint(language())}", fg="red")
    step, much = report.step_microseconds / 1000, size(report.update_bytes)
    measured = f"{report.memory_mib} MiB of memory, {step:.1f} ms a step, a model of {much}"
    click.echo(say(measured, f"内存 {report.memory_mib} MiB，每步 {step:.1f} 毫秒，模型 {much}"))
    click.echo(f"{say('package', '训练包')} sha256 {report.package}\n{say('report', '报告')}  sha256 {digest}")
