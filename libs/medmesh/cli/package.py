"""`medmesh package`: training packages.  训练包。"""

from __future__ import annotations

from pathlib import Path

import click

from medmesh.cli import language, say
from medmesh.cli.key import KEY, unlock


@click.group()
def package() -> None:
    """Training packages: a folder with medmesh.toml and code.  训练包。"""


@package.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write the packed bytes here.")
def pack(folder: Path, out: Path | None) -> int:
    """Check FOLDER and print the hash that hospitals approve.  打包并打印哈希。"""
    from medmesh.learning import capabilities
    from medmesh.learning.package import pack

    made = pack(folder)
    about = made.manifest.package
    click.echo(f"{about.name} {about.version} ({about.framework}), {len(made.archive)} B")
    click.echo(f"{say('leaves a hospital', '离开医院的张量')}: {len(made.manifest.tensors)}")
    for line in capabilities.explain(made.manifest, language()):
        click.echo(line)
    click.echo(f"sha256 {made.digest}")
    if out:
        out.write_bytes(made.archive)
    return 0


@package.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@KEY
@click.option("--note", default="", help="What the review says, beside the name.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="By default NAME-VERSION.WHO.review here.")
@click.option("--yes", is_flag=True, help="Ask nothing: I have read it.")
def review(folder: Path, file: Path, note: str, out: Path | None, yes: bool) -> int:
    """Sign that you have read the code in FOLDER (or in a packed file) and that it does what it declares and no more.  审查并签署代码。

    Shows what the code declares and where it does it. Hospitals ask for two people of the roster who are not the one who asks for the
    training; give the file to that person, for `medmesh federation create --review`.
    """
    from datetime import UTC, datetime

    from medmesh.errors import Problem
    from medmesh.learning import capabilities
    from medmesh.learning.package import pack, read
    from medmesh.security import statements
    from medmesh.security.statements import CodeReview

    made = pack(folder) if folder.is_dir() else read(folder.read_bytes())
    about = made.manifest.package
    click.secho(f"{about.name} {about.version}  sha256 {made.digest}", bold=True)
    for name, content in made.files.items():
        click.echo(f"  {name}  {len(content)} B")
    for line in capabilities.explain(made.manifest, language()):
        click.echo(line)
    if not made.manifest.custom:
        raise Problem("review.no_code")
    found = capabilities.check(made)
    for kind, places in {**found.imports, "files": found.files, "processes": found.processes, "dynamic": found.dynamic}.items():
        if places:
            click.echo(f"  {kind}: {', '.join(places[:10])}")
    if not yes:
        click.confirm(say("Have you read every line of it, and sign that?", "是否已逐行阅读并愿意签署？"), abort=True)
    signer = unlock(file)
    signed = statements.sign(CodeReview(made=datetime.now(UTC), package=made.digest, note=note), signer)
    person = signer.name.removeprefix("person:").partition("@")[0]
    target = out or Path(f"{about.name}-{about.version}.{person}.review")
    target.write_text(signed, encoding="utf-8")
    click.echo(say(f"signed by {signer.name}: {target}", f"签署人 {signer.name}：{target}"))
    return 0
