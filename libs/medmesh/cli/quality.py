"""`medmesh dataset quality|clean`: what a folder is worth, and the same without who it is about; nothing leaves.  数据质量与清理。"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from medmesh.cli import language, say
from medmesh.cli.session import show


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with pictures and distributions there.")
@click.option("--block", multiple=True, help="A rule that keeps items out, instead of those that do by themselves; may be given again.")
def quality(path: Path, page: Path | None, block: tuple[str, ...]) -> int:
    """Check the files of PATH by content: a folder, an archive or one file.  检查数据质量。

    Prints what was found by rule, and ends with 1 when items would be kept out. The page names files, so it stays inside the hospital.
    """
    from medmesh.importing.sources import opened
    from medmesh.quality.html import page as drawn
    from medmesh.quality.inspecting import Inspection, inspect
    from medmesh.quality.rules import BLOCKING, known

    blocking = known(block) if block else BLOCKING
    with opened(path) as source:
        made = Inspection(source.name, blocking)
        total, label, quiet = len(source.names), say("checking", "检查中"), not sys.stderr.isatty()
        with click.progressbar(inspect(made, source), length=total, label=label, hidden=quiet, file=sys.stderr) as bar:
            for _ in bar:
                pass
    report = made.finish()
    if page is not None:
        page.touch(mode=0o600)
        page.write_text(drawn(report, language()), encoding="utf-8")
    show(report.document(language()))
    return 1 if report.blocked else 0


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def clean(path: Path, folder: Path) -> int:
    """Write the files of PATH to FOLDER without identity: names, comments, times, identifying columns.  清除文件中的身份信息。

    Every format but DICOM, which `medmesh edge ingest` de-identifies. Samples stay bit for bit; each result was read again to prove that
    nothing is left, and is called by its hash. Which became which is printed, and stays inside the hospital. Ends with 1 when files were
    left out.
    """
    from medmesh.errors import Problem
    from medmesh.importing.formats.files import without_identity
    from medmesh.importing.sources import opened

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    became: dict[str, list[str]] = {}
    left: dict[str, str] = {}
    with opened(path) as source:
        for name, made in without_identity(source):
            if isinstance(made, Problem):
                left[name] = made.detail(language())
                continue
            for target, data in made.items():
                (folder / target).write_bytes(data)
            became[name] = sorted(made)
    show({"files": became, "left_out": left})
    return 1 if left else 0
