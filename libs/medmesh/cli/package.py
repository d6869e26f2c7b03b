"""`medmesh package`: training packages.  训练包。"""

from __future__ import annotations

from pathlib import Path

import click

from medmesh.cli import say


@click.group()
def package() -> None:
    """Training packages: a folder with medmesh.toml and code.  训练包。"""


@package.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write the packed bytes here.")
def pack(folder: Path, out: Path | None) -> int:
    """Check FOLDER and print the hash that hospitals approve.  打包并打印哈希。"""
    from medmesh.learning.package import pack

    made = pack(folder)
    about = made.manifest.package
    click.echo(f"{about.name} {about.version} ({about.framework}), {len(made.archive)} B")
    click.echo(f"{say('leaves a hospital', '离开医院的张量')}: {len(made.manifest.tensors)}")
    click.echo(f"sha256 {made.digest}")
    if out:
        out.write_bytes(made.archive)
    return 0
