"""`medmesh dataset|annotation`: what may leave only after a second person agreed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import click

from medmesh.cli import datasets, say
from medmesh.cli.asking import request_approval
from medmesh.cli.pipelines import apply, steps
from medmesh.cli.quality import clean, quality
from medmesh.cli.session import show, with_gateway
from medmesh.cli.timelines import timeline
from medmesh.client.gateway import Gateway

A_DAY = 86_400
"""Seconds that taking in may last while its command waits."""


@click.group()
def dataset() -> None:
    """Data set versions.  数据集。

    A version is its maker's alone until a second person approved its release.
    """


dataset.add_command(quality)
dataset.add_command(clean)
dataset.add_command(steps)
dataset.add_command(apply)
dataset.add_command(datasets.doubts)
dataset.add_command(datasets.export)
dataset.add_command(timeline)


@dataset.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--as", "importer", help="The importer to use instead of the one that recognises PATH.")
@click.option("--json", "as_json", is_flag=True, help="The whole plan as JSON.")
def inspect(path: Path, importer: str | None, as_json: bool) -> int:
    """What PATH is (a folder, zip, tar, tar.gz or file), and what an import would bring; writes nothing.  检查数据，不写入。

    Ends with 1 when something in it must be mended first: each error names the file and the line or key.
    """
    from medmesh.cli import language
    from medmesh.cli.inspecting import show_plan, ticking
    from medmesh.importing import registry
    from medmesh.importing.sources import opened

    with opened(path) as source:
        chosen = registry.named(importer) if importer else registry.recognised(source)
        plan = chosen.plan(source, ticking(chosen.name))
    if as_json:
        click.echo(json.dumps(plan.document(language()), ensure_ascii=False, indent=1))
    else:
        show_plan(plan)
    return 1 if plan.errors else 0


@dataset.command(name="import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="The data set of which this becomes the next version.")
@click.option("--columns", type=datasets.FILE, help="What is kept of tables that are no published ones (TOML).  列说明文件。")
@click.option("--vouched", type=datasets.FILE, help="Words, one a line, that name nobody: see medmesh dataset doubts.  已核对的词。")
@click.option("--volumes", is_flag=True, help="DICOM files of one series are one volume.  同一序列合为一个三维体数据。")
def import_dataset(path: Path, name: str, columns: Path | None, vouched: Path | None, volumes: bool) -> int:
    """Inspect PATH, upload it and make it the next version of a data set on the platform.  导入为数据集的新版本。

    Images, volumes and masks become items; questions, texts and rows of tables become tables of the version. A text in which rules doubt
    whether somebody is named is put aside. Broken off, the same command goes on where it stopped; the same data again is the same version.
    Ends with 1 when the data has errors: then nothing is sent.

    With --volumes a DICOM series is one item, labelled in labels.csv by any of its files, and an object of several frames is one; a series
    that is no volume, as slices are missing, is left out by its reason. The same data with and without it are two versions.

    --columns is a file columns.toml, which may also lie beside the tables; no other column is kept:

    \b
      ["heart.csv"]
      patient = "id"                # becomes a pseudonym
      label = "num"                 # what a split spreads alike
      ["heart.csv".columns]
      age = { kind = "number", low = 0, high = 120, unit = "a" }
      num = { kind = "code", codes = ["0", "1"] }
      report = { kind = "text" }    # also: whole, time, identifier
    """
    import tempfile

    from medmesh.cli.inspecting import moving, show_plan, ticking
    from medmesh.client.transfer import upload
    from medmesh.importing import registry
    from medmesh.importing.packing import pack
    from medmesh.importing.sources import opened

    beside = datasets.beside(columns, vouched)
    with opened(path) as source, tempfile.NamedTemporaryFile(prefix="medmesh-", suffix=".zip") as packed:
        chosen = registry.recognised(source)
        plan = chosen.plan(source, ticking(chosen.name))
        show_plan(plan)
        if plan.errors:
            return 1
        datasets.check(source, plan, beside)
        with moving(say("packing", "打包"), sum(map(source.size, source.names))) as moved:
            pack(source, cast(BinaryIO, packed), moved, beside)
        packed.flush()
        file = Path(packed.name)

        async def run(gateway: Gateway) -> Any:
            with moving(say("sending", "上传"), file.stat().st_size) as moved:
                archive = await upload(gateway, file, progress=lambda done, _total: moved(done))
            click.echo(say("taking in …", "接收中……"), err=True)
            wanted = {"dataset": name, "archive": archive.model_dump()} | ({"volumes": True} if volumes else {})
            made = await gateway.command("POST", "/v1/datasets", wanted, seconds=A_DAY)
            return await gateway.request("GET", f"/v1/datasets/{made['dataset']}", query={"version": made["version"]})

        show(with_gateway(run))
    return 0


@dataset.command(name="catalogue")
@click.option("--disease", help="ICD code or its beginning: J18, I2.  疾病编码。")
@click.option("--modality", help="MR, CT, ECG, table, …  模态。")
@click.option("--labelled", help="Has samples with this label.  标签。")
@click.option("--hospital", help="Of this hospital.  医院。")
@click.option("--name", help="Has this in its name.  名称。")
@click.option("--patients", type=click.IntRange(0), help="Of at least so many patients.  患者数下限。")
@click.option("--samples", type=click.IntRange(0), help="Of at least so many samples.  样本数下限。")
@click.option("--json", "as_json", is_flag=True)
def list_descriptors(as_json: bool, **asked: str | int | None) -> int:
    """What data hospitals have, newest first; the data stay there.  检索各医院的数据目录。

    Counts are rounded, and hidden where they are of fewer than five patients: such a data set is not found by its size.

    数量均已取整；不足 5 名患者的不显示，此类数据集不能按规模检索。
    """
    narrowed = {name: str(value) for name, value in asked.items() if value is not None}
    found = with_gateway(lambda gateway: gateway.request("GET", "/v1/catalogue", query=narrowed))
    if as_json:
        show(found)
        return 0
    for entry in found["descriptors"]:
        for line in _described(entry["hospital"], entry["descriptor"]):
            click.echo(line)
    if not found["descriptors"]:
        click.echo(say("Nothing that you may see fits.", "没有符合条件且您可见的数据集。"), err=True)
    return 0


def _described(hospital: str, told: dict[str, Any]) -> Iterator[str]:
    """A descriptor for people; None is a count that is hidden."""

    def count(number: int | None) -> str:
        return say("few", "少量") if number is None else f"{number:,}"

    of = f"{count(told['samples'])} {say('samples of', '个样本，')} {count(told['patients'])} {say('patients', '名患者')}"
    yield f"{hospital}/{told['dataset']} v{told['version']}  {told['modality']}  {of}"
    if told["labels"]:
        yield "    " + say("labels", "标签") + ": " + ", ".join(f"{label} {count(number)}" for label, number in told["labels"].items())
    if told.get("diseases"):
        most = sorted(told["diseases"].items(), key=lambda pair: (-pair[1], pair[0]))[:12]
        yield "    " + say("ill with", "疾病") + ": " + ", ".join(f"{code.rpartition('/')[2]} {count(number)}" for code, number in most)


@dataset.command(name="show")
@click.argument("name")
@click.option("--version", type=int, default=0, help="The newest you may see by default.")
def show_dataset(name: str, version: int) -> int:
    """What a version holds.  查看数据集版本。"""
    show(with_gateway(lambda gateway: gateway.request("GET", f"/v1/datasets/{name}", query={"version": version})))
    return 0


@dataset.command()
@click.argument("name")
@click.argument("before", type=int)
@click.argument("after", type=int)
@click.option("--items", is_flag=True, help="Also which items, by their ids.")
def diff(name: str, before: int, after: int, items: bool) -> int:
    """What became of the items from version BEFORE to AFTER: new, gone, relabelled, in another split; and of tables.  比较两个版本。"""
    from medmesh.client.datasets import content, difference

    async def run(gateway: Gateway) -> Any:
        return difference(await content(gateway, name, before), await content(gateway, name, after)).document(items=items)

    show(with_gateway(run))
    return 0


@dataset.command()
@click.argument("name")
@click.argument("version", type=int)
@click.option("--ratios", default="8:1:1", show_default=True, help="Shares of train, val and test.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--anew", is_flag=True, help="Also what was published with a split.")
def split(name: str, version: int, ratios: str, seed: int, anew: bool) -> int:
    """Split VERSION into a next one, rows of tables too: no patient, group or picture on two sides.  按患者安全划分为新版本。

    Published splits are kept unless --anew. The same split again is the same version.
    """
    parts = ratios.split(":")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise click.BadParameter(say("three numbers such as 8:1:1", "三个数，例如 8:1:1"), param_hint="--ratios")
    wanted = {"version": version, "ratios": [int(part) for part in parts], "seed": seed, "anew": anew}
    show(with_gateway(lambda gateway: gateway.command("POST", f"/v1/datasets/{name}/splits", wanted, seconds=A_DAY)))
    return 0


@dataset.command()
@click.argument("name")
@click.argument("version", type=int)
def release(name: str, version: int) -> int:
    """Ask for the approval of releasing VERSION, bound to every sample in it.  申请发布数据集版本。"""

    async def run(gateway: Gateway) -> Any:
        found = await gateway.request("GET", f"/v1/datasets/{name}", query={"version": version})
        summary = {"samples": str(found["samples"]), "content": found["content"]["sha256"]}
        wanted = {"action": "dataset.release", "target": f"{name}/{version}", "digest": found["release_digest"], "summary": summary}
        return await request_approval(gateway, wanted)

    show(with_gateway(run))
    return 0


@click.group()
def annotation() -> None:
    """Labels by people.  标注。"""


@annotation.command()
@click.argument("project")
def export(project: str) -> int:
    """Freeze the accepted labels of PROJECT and ask for the approval of taking them out.  申请导出标签。"""

    async def run(gateway: Gateway) -> Any:
        frozen = await gateway.command("POST", f"/v1/annotation/{project}/exports")
        if frozen["state"] != "waiting":
            return frozen
        wanted = {"action": "annotation.export", "target": frozen["target"], "digest": frozen["digest"]}
        summary = {"accepted": str(frozen["accepted"])}
        return {**frozen, **await request_approval(gateway, {**wanted, "summary": summary})}

    show(with_gateway(run))
    return 0


@annotation.command(name="exported")
@click.argument("project")
@click.argument("version", type=int)
def exported(project: str, version: int) -> int:
    """How an export stands; approved, where its labels are.  查看标签导出。"""
    show(with_gateway(lambda gateway: gateway.request("GET", f"/v1/annotation/{project}/exports/{version}")))
    return 0
