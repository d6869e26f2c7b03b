"""`medmesh federation simulate`: a federation in this process, before hospitals are asked.  联邦仿真。"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medmesh.cli import say
from medmesh.cli.plan_options import evaluation, evaluation_of

if TYPE_CHECKING:
    from medmesh.simulation.data import Shares


@click.command()
@click.argument("package", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Images or tables, as for a node."
)
@click.option("--hospitals", default=4, show_default=True, help="How many, where the data are dealt out.")
@click.option("--partition", type=click.Choice(["natural", "iid", "dirichlet", "pathological"]), default="iid", show_default=True)
@click.option("--alpha", default=0.5, show_default=True, help="Of dirichlet: the smaller, the less alike.")
@click.option("--shards", default=2, show_default=True, help="Of pathological: shards of one class a hospital.")
@click.option("--rounds", default=10, show_default=True)
@click.option("--steps", default=50, show_default=True, help="Local steps a round.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--learning-rate", default="0.05", show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--baseline", is_flag=True, help="Also train alone and evaluate every model everywhere.")
@evaluation
@click.option("--algorithm", default="fedavg", show_default=True, help="docs/federation/algorithms.md")
@click.option("--parameter", "parameters", multiple=True, metavar="NAME=VALUE", help="Of the algorithm, as mu=0.01; may be repeated.")
@click.option("--local", multiple=True, metavar="TENSOR", help="Never leaves a hospital; may be repeated.")
@click.option("--codec", type=click.Choice(["none", "fp16", "bf16", "int8", "topk"]), default="none", show_default=True)
@click.option("--secure", type=int, metavar="THRESHOLD", help="Open sums over at least so many hospitals, and no single update.")
@click.option("--workers", default=0, help="Processes that train; one a processor by default.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="OUT.safetensors, OUT.json, OUT.csv and OUT.png are written.")
def simulate(package: Path, data: Path, hospitals: int, partition: str, alpha: float, shards: int, out: Path, **options: Any) -> int:
    """Run a federation of the training package in PACKAGE in this process: the real coordinator and the real code of hospitals' nodes, with
    pretended hospitals among which the samples in --data are dealt out.  在本机仿真联邦。

    Images: DICOM or PNG beside labels.csv (file,label and, where known, split,patient). Tables: *.csv beside columns.toml. With
    --partition natural each sub-folder or table is a hospital of its own. Exit code 1 when the federation did not complete.
    """
    import asyncio

    from medmesh.cli.views import draw, show_result
    from medmesh.learning.package import pack
    from medmesh.simulation.data import read, share
    from medmesh.simulation.run import simulate as run

    places = read(data, pack(package).manifest.data, options["seed"])
    shares = share(places, hospitals, partition, seed=options["seed"], alpha=alpha, classes=shards)
    _tell(shares)
    threshold = options["secure"]
    plan = {
        "rounds": options["rounds"],
        "local_steps": options["steps"],
        "batch_size": options["batch_size"],
        "learning_rate": options["learning_rate"],
        "seed": options["seed"],
        "baseline": options["baseline"],
        **evaluation_of(options),
        "algorithm": options["algorithm"],
        "parameters": _pairs(options["parameters"]),
        "local": options["local"],
        "codec": options["codec"],
        "secure": None if threshold is None else {"threshold": threshold},
    }
    model = out.with_name(f"{out.name}.safetensors")
    done = asyncio.run(run(package, shares, model, news=_news, workers=options["workers"], **plan))
    out.with_name(f"{out.name}.json").write_text(done.view.model_dump_json(indent=1), encoding="utf-8")
    if done.view.state != "completed":
        click.secho(f"{done.view.state}: {done.view.failure}", fg="red", err=True)
        return 1
    show_result(done.view, model)
    return draw(done.view, out)


def _pairs(given: tuple[str, ...]) -> dict[str, str]:
    pairs = [part.partition("=") for part in given]
    if wrong := next((name for name, sign, value in pairs if not (name and sign and value)), None):
        raise click.BadParameter(f"{wrong!r}: NAME=VALUE, for example mu=0.01", param_hint="--parameter")
    return {name: value for name, _, value in pairs}


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
        who = len(fact["participants"])
        click.echo(say(f"round {fact['round']} {fact['kind']}: {who} hospitals", f"第 {fact['round']} 轮 {fact['kind']}：{who} 家医院"))
