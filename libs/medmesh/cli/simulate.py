"""`medmesh federation simulate`: a federation in this process, before hospitals are asked.  联邦仿真。"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medmesh.cli import language, say
from medmesh.cli.files import Written
from medmesh.cli.plan_options import training, training_of
from medmesh.cli.switches import under

if TYPE_CHECKING:
    from medmesh.simulation.data import Shares

DEALT = ("iid", "dirichlet", "pathological")
"""Ways in which data are dealt out to as many hospitals as are asked for."""


@click.command()
@click.argument("package", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Images, volumes, signals or tables, as for a node.  影像、体数据、信号或表格，格式与节点相同。",
)
@under("partition", "--hospitals", of=DEALT, default=4, show_default=True, help="How many the data are dealt out to.  数据分给多少家医院。")
@click.option(
    "--partition",
    type=click.Choice(["natural", *DEALT]),
    default="iid",
    show_default=True,
    help="How the data are dealt out: docs/federation/simulation.md.  数据划分方式，见 docs/federation/simulation.md。",
)
@under(
    "partition",
    "--alpha",
    of=("dirichlet",),
    default=0.5,
    show_default=True,
    help="Of dirichlet: the smaller, the less alike.  dirichlet 分布参数：越小各院差异越大。",
)
@under(
    "partition",
    "--shards",
    of=("pathological",),
    default=2,
    show_default=True,
    help="Of pathological: shards of one class a hospital.  pathological：每院的单类分片数。",
)
@training
@click.option("--workers", default=0, help="Processes that train; one a processor by default.  训练进程数；默认每处理器一个。")
@click.option(
    "--out",
    type=Written(),
    required=True,
    help="OUT.safetensors, OUT.json, OUT.csv and OUT.png are written.  写入 OUT.safetensors、OUT.json、OUT.csv 与 OUT.png。",
)
def simulate(package: Path, data: Path, hospitals: int, partition: str, alpha: float, shards: int, out: Path, **options: Any) -> int:
    """Run a federation of the training package in PACKAGE on this machine: the real coordinator and the real code of hospitals' nodes, with
    pretended hospitals among which the samples in --data are dealt out.

    在本机以训练包 PACKAGE 运行联邦：真实的协调器与真实的节点代码，将 --data 中的样本划分给虚拟医院。

    Images: DICOM or PNG beside labels.csv (file,label and, where known, split,patient). Volumes and signals: NIfTI, NumPy, series of DICOM
    files, WFDB, EDF or WAV beside the same labels.csv, through the package's pipeline as at a node. Tables: *.csv beside columns.toml.
    With --partition natural each sub-folder or table is a hospital of its own. Exit code 1 when the federation did not complete.

    影像：DICOM 或 PNG，并附 labels.csv（file、label 列，已知时另有 split、patient 列）。体数据与信号：NIfTI、NumPy、DICOM 序列、
    WFDB、EDF 或 WAV，附同样的 labels.csv，与节点一样经训练包的处理流程。表格：*.csv 并附 columns.toml。使用 --partition natural
    时，每个子文件夹或每张表即为一家医院。联邦未完成时退出码为 1。
    """
    import asyncio

    from medmesh.cli.views import draw, show_result, state
    from medmesh.learning.package import pack
    from medmesh.simulation.data import read, share
    from medmesh.simulation.hospital import would_refuse
    from medmesh.simulation.run import simulate as run

    places = read(data, pack(package).manifest.data, options["seed"])
    shares = share(places, hospitals, partition, seed=options["seed"], alpha=alpha, classes=shards)
    _tell(shares)
    model = out.with_name(f"{out.name}.safetensors")
    done = asyncio.run(run(package, shares, model, news=_news, workers=options["workers"], **training_of(options)))
    out.with_name(f"{out.name}.json").write_text(done.view.model_dump_json(indent=1), encoding="utf-8")
    if done.view.state != "completed":
        click.secho(f"{state(done.view.state)}: {done.view.failure}", fg="red", err=True)
        return 1
    for name, problem in would_refuse(done.view.plan, shares).items():
        said = say(f"as its policy begins, a hospital would refuse this: {name}: ", f"按初始策略，医院会拒绝此方案：{name}：")
        click.secho(said + problem.detail(language()), fg="yellow", err=True)
    show_result(done.view, model)
    return draw(done.view, out)


def _tell(shares: Shares) -> None:
    """Who has what: the first twenty."""
    for name, samples in list(shares.items())[:20]:
        labels = sorted({sample.label for sample in samples})
        counted = ", ".join(f"{sum(s.label == label for s in samples)} {label}" for label in labels)
        testing = sum(sample.held_out for sample in samples)
        click.echo(f"  {name:<16} {counted} ({testing} {say('held out', '留出')})")
    if len(shares) > 20:
        click.echo(say(f"  and {len(shares) - 20} more", f"  另有 {len(shares) - 20} 家"))


def _news(kind: str, fact: dict[str, Any]) -> None:
    if kind.endswith(".round.committed.v1"):
        from medmesh.cli.views import state

        who, kind = len(fact["participants"]), state(fact["kind"])
        click.echo(say(f"round {fact['round']} {kind}: {who} hospitals", f"第 {fact['round']} 轮 {kind}：{who} 家医院"))
