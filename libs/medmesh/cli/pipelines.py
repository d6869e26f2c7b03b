"""`medmesh dataset steps|apply`: normalisation and features by a declaration whose hash is its version.  数据预处理流程。"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from medmesh.cli import say
from medmesh.cli.session import show


@click.command()
def steps() -> int:
    """The steps that a pipeline may have, with versions and parameters.  可用的处理步骤。"""
    from medmesh.pipelines.steps import STEPS

    for name, step in sorted(STEPS.items()):
        said = (step.__doc__ or "").split(". ")[0].split("\n\n")[0]
        fields = ", ".join(f"{field}{'' if info.is_required() else f' = {info.default}'}" for field, info in step.model_fields.items())
        click.echo(f"{name}  (version {step.version})  {fields}\n    {' '.join(said.split())}")
    return 0


@click.command()
@click.argument("declaration", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def apply(declaration: Path, path: Path, folder: Path) -> int:
    """Apply the pipeline in DECLARATION to the files of PATH; results and where they came from go to FOLDER.  应用处理流程。

    DECLARATION is a file of its own or a training package's medmesh.toml; rows of tables are passed over. FOLDER gets
    `<hash>.safetensors` and `origin.jsonl`, a line an item: its name, each step, the hashes of its input and output. What was made before
    is not made again. Ends with 1 when some items did not fit; they are named, and the others are made.
    """
    from medmesh.errors import Problem
    from medmesh.importing.formats.files import Files
    from medmesh.importing.sources import opened
    from medmesh.pipelines.cache import Cache
    from medmesh.pipelines.loading import load
    from medmesh.pipelines.pipeline import read

    pipeline = read(declaration.read_text(encoding="utf-8"))
    cache = Cache(folder)
    made, unfit = 0, []
    with opened(path) as source, (folder / "origin.jsonl").open("w", encoding="utf-8") as origin:
        for item in Files().items(source):
            if item.meta.get("format") == "csv":  # labels.csv, for example
                continue
            try:
                _, trail = cache.run(pipeline, load(source, item))
            except Problem as problem:
                unfit.append({"item": item.key, "reason": problem.detail()})
                continue
            line = {"item": item.key, "pipeline": pipeline.version, "steps": [asdict(one) for one in trail]}
            origin.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")
            made += 1
            if sys.stderr.isatty():
                click.echo(f"\r{say('made', '已处理')} {made}", err=True, nl=False)
    show({"pipeline": pipeline.name, "version": pipeline.version, "made": made, "unfit": unfit})
    return 1 if unfit else 0
