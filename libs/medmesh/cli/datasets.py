"""`medmesh dataset doubts|export`, and what `import` sends beside the data: questions, texts and tables of versions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medmesh.canonical import canonical
from medmesh.cli import say
from medmesh.cli.session import show, with_gateway
from medmesh.client.gateway import Gateway
from medmesh.errors import Problem

if TYPE_CHECKING:
    from medmesh.importing.port import Plan, Source
    from medmesh.text import Sieve

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
COLUMNS, VOUCHED = "columns.toml", "vouched.txt"
"""As the platform looks for them in an archive."""
_TAKEN = frozenset(("image", "volume", "mask", "signal", "audio", "question", "text", "table", "events"))


def beside(columns: Path | None, vouched: Path | None) -> dict[str, bytes]:
    """What goes into the archive beside the data. Raises `Problem` (`importing.columns`)."""
    made = {}
    if columns is not None:
        from medmesh.importing.columns import read

        made[COLUMNS] = columns.read_bytes()
        read(made[COLUMNS])
    if vouched is not None:
        made[VOUCHED] = vouched.read_bytes()
    return made


def check(source: Source, plan: Plan, beside: Mapping[str, bytes]) -> None:
    """Refuse what would all be rejected, or not read. Raises `Problem`: `importing.not_central`, `importing.columns_needed`,
    `importing.columns`."""
    kinds = {kind for kind, _ in plan.counts}
    if not kinds & _TAKEN:
        raise Problem("importing.not_central", place=source.name, kinds=", ".join(sorted(kinds)))
    if COLUMNS in beside and plan.importer != "files":
        raise Problem("importing.columns", reason=f"{plan.importer} says itself what its columns are")
    described = COLUMNS in beside or any(name.rpartition("/")[2] == COLUMNS for name in source.names)
    if plan.importer == "files" and kinds == {"table"} and not described:
        raise Problem("importing.columns_needed", place=source.name)


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--vouched", type=FILE, help="Words, one a line, of which somebody said already that they name nobody.")
@click.option("--columns", type=FILE, help="What is kept of tables that are no published ones (TOML).")
@click.option("--json", "as_json", is_flag=True)
def doubts(path: Path, vouched: Path | None, columns: Path | None, as_json: bool) -> int:
    """The words for which texts of PATH would be put aside, the most frequent first; writes nothing.  列出规则存疑的词，不写入。

    Rules replace what they are sure of, and doubt what looks like a name and stands in no list of terms. Look at the words; those that
    name nobody go into a file, one a line, for medmesh dataset import --vouched FILE.
    """
    from medmesh.importing.sources import opened
    from medmesh.text import Sieve

    sieve = Sieve(vouched.read_text(encoding="utf-8-sig").split("\n") if vouched else ())
    rows = aside = 0
    with opened(path) as source:
        for one in _records(source, sieve, beside(columns, None)):
            rows += 1
            aside += isinstance(one, str)
    words = dict(sorted(sieve.doubted.items(), key=lambda pair: (-pair[1], pair[0])))
    if as_json:
        click.echo(json.dumps({"rows": rows, "aside": aside, "words": words}, ensure_ascii=False, indent=1))
        return 0
    for word, count in words.items():
        click.echo(f"{word}\t{count}")
    click.echo(say(f"{aside:,} of {rows:,} rows would be put aside", f"共 {rows:,} 行，其中 {aside:,} 行将被搁置"), err=True)
    return 0


def _records(source: Source, sieve: Sieve, beside: Mapping[str, bytes]) -> Iterator[Any]:
    """As the platform makes them, under a key that nobody needs."""
    from medmesh.importing import registry
    from medmesh.importing.columns import Reader, described
    from medmesh.importing.reading import plain
    from medmesh.importing.records import Names, Records

    chosen = registry.recognised(source)
    if chosen.name != "files":
        records = Records(chosen, Names(bytes(32), chosen.name), sieve)
        for item in chosen.items(source):
            yield from records.of(item)
        return
    for name, (named, about) in described(source, beside.get(COLUMNS)).items():
        with plain(source, name) as file:
            yield from Reader(named, about, Names(bytes(32), chosen.name), sieve).read(file)


@click.command()
@click.argument("name")
@click.argument("version", type=int)
@click.argument("folder", type=click.Path(path_type=Path))
def export(name: str, version: int, folder: Path) -> int:
    """Fetch all of VERSION into FOLDER: items, tables as Parquet, and content.json, which says what is what.  下载数据集版本。

    Broken off, the same command goes on where it stopped; each file is checked by its hash.
    """
    from medmesh.cli.inspecting import moving
    from medmesh.client.datasets import content, files_of, save

    async def run(gateway: Gateway) -> Any:
        document = await content(gateway, name, version)
        folder.mkdir(parents=True, exist_ok=True)
        with moving(say("fetching", "下载"), sum(file.object.bytes for file in files_of(document))) as moved:
            files = await save(gateway, document, folder, moved)
        (folder / "content.json").write_bytes(canonical(document))
        rows = {table["name"]: table["rows"] for table in document.get("tables", ())}
        return {"folder": str(folder), "files": files, "items": len(document["items"]), "tables": rows}

    show(with_gateway(run))
    return 0
