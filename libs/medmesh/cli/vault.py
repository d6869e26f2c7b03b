"""`medmesh vault`: the keys of the platform on this machine, by domain of trust.  密钥管理。"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from medmesh.cli import say
from medmesh.cli.on_record import on_record
from medmesh.cli.platform import DATA
from medmesh.cli.session import show
from medmesh.errors import Problem

if TYPE_CHECKING:
    from medmesh.store.objects.encrypted import EncryptedStore

T = TypeVar("T")
LABEL = click.argument("label", type=click.Choice(["objects", "seal"]))
HOLDER = click.option(
    "--key",
    "holder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with the holder's key: medmesh vault key.",
)


@click.group()
def vault() -> None:
    """Keys that wrap other keys, and keys by domain of trust.  密钥的轮换、备份与导入。

    Kept objects and the secrets of authenticators are encrypted; the keys that wrap theirs lie in secrets/objects and secrets/seal. Turning
    one over (`rotate`) re-wraps small keys and touches no object. Each domain's keys have a backup of their own (`export`), with another
    holder: whoever has one domain's cannot do what another's is for. What changes or copies a key is in the audit log, with the account.
    """


def _kept(data: Path, work: Callable[[EncryptedStore], T]) -> T:
    """Run `work` in a thread on the platform's kept objects, as a service's settings name them."""
    from medmesh.service.settings import ObjectSettings
    from medmesh.store.objects.encrypted import EncryptedStore
    from medmesh.store.objects.open import stores

    settings = json.loads((data / "settings" / "registry.json").read_text(encoding="utf-8"))["objects"]

    async def run() -> T:
        async with stores(ObjectSettings.model_validate(settings)) as opened:
            assert isinstance(opened.kept, EncryptedStore)
            return await asyncio.to_thread(work, opened.kept)

    return asyncio.run(run())


def _sealed(data: Path) -> dict[int, int]:
    """How many secrets of authenticators wait for each version of their key."""
    from medmesh.backup.create import query
    from medmesh.cli.backup import database

    columns = "SELECT convert_from({0}, 'UTF8') FROM governance.users WHERE {0} IS NOT NULL;"
    found: dict[int, int] = {}
    for line in query(*database(data), "".join(columns.format(name) for name in ("factor", "factor_new"))).split():
        version = int(line.split(".")[2])
        found[version] = found.get(version, 0) + 1
    return found


def _used(data: Path, label: str) -> dict[int, int]:
    return _kept(data, lambda store: store.versions_in_use()) if label == "objects" else _sealed(data)


@vault.command()
@DATA
def status(data: Path) -> int:
    """Versions of the wrapping keys, and how much waits for each.  密钥版本与使用情况。"""
    from medmesh.security.keyring.file import FileKeys

    data = data.absolute()
    keys = {label: FileKeys(data / "secrets" / label).versions(label) for label in ("objects", "seal")}
    show({label: {"versions": versions, "in_use": _used(data, label)} for label, versions in keys.items()})
    return 0


@vault.command()
@DATA
@LABEL
@click.option("--suite", default="intl-1", show_default=True, type=click.Choice(["intl-1", "sm-1"]))
@click.option("--resume", is_flag=True, help="Make no new version: go on with one that was interrupted.")
def rotate(data: Path, label: str, suite: str, resume: bool) -> int:
    """Make a new version of LABEL and bring everything under it, while the platform runs. Old versions stay until `retire`.  轮换。"""
    from medmesh.security.keyring.file import FileKeys

    data = data.absolute()
    keys = FileKeys(data / "secrets" / label)

    def tell(done: int) -> None:
        if done % 1000 == 0:
            click.echo(say(f"  {done} objects looked at", f"  已检查 {done} 个对象"))

    with on_record(data, "vault.rotate") as act:
        version = keys.versions(label)[-1] if resume else keys.create(label, "wrap", suite)
        act.about("key", f"{label}.{version}")
        moved = _kept(data, lambda store: store.rewrap(tell)) if label == "objects" else 0
        act.detail |= {"suite": suite, "resumed": resume, "wrapped": moved}
    if label == "objects":
        click.echo(say(f"version {version}: {moved} keys wrapped anew", f"第 {version} 版：已重新包裹 {moved} 个密钥"))
    else:
        click.echo(say(f"version {version}: governance follows within five minutes", f"第 {version} 版：治理服务将在五分钟内完成更新"))
    return 0


@vault.command()
@DATA
@LABEL
def retire(data: Path, label: str) -> int:
    """Destroy the old versions of LABEL. Refused while anything needs one: what it wrapped could never be read again.  销毁旧版本。"""
    from medmesh.security.keyring.file import FileKeys

    data = data.absolute()
    keys = FileKeys(data / "secrets" / label)
    with on_record(data, "vault.retire") as act:
        used, old = _used(data, label), keys.versions(label)[:-1]
        act.about("key", label)
        act.detail["versions"] = ",".join(map(str, old))
        for version in old:
            if used.get(version):
                raise Problem("vault.in_use", label=label, version=version, count=used[version])
        for version in old:
            keys.destroy(label, version)
    click.echo(say(f"destroyed: {old or 'nothing'}", f"已销毁：{old or '无'}"))
    return 0


@vault.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def key(folder: Path) -> int:
    """Make a holder's key in FOLDER, for `export` and `medmesh backup`. Keep it away from the platform.  生成持有人密钥。"""
    from medmesh.embedded.vault import holder

    holder(folder.absolute())
    click.echo(folder.absolute())
    return 0


@vault.command()
@DATA
@click.argument("domain")
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@HOLDER
def export(data: Path, domain: str, target: Path, holder: Path) -> int:
    """Write the keys of DOMAIN (authority, log, release, pseudonyms, objects, seal, services), encrypted, to TARGET.  备份密钥域。"""
    from medmesh.embedded import vault as work

    with on_record(data.absolute(), "vault.export") as act:
        act.about("domain", domain[:200])
        count = work.export(data.absolute(), domain, work.holder(holder.absolute()), target.absolute())
        act.detail |= {"keys": count, "file": hashlib.sha256(target.read_bytes()).hexdigest()}
    click.echo(say(f"{domain}: {count} files", f"{domain}：{count} 个文件"))
    return 0


@vault.command(name="import")
@DATA
@click.argument("domain")
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@HOLDER
def import_(data: Path, domain: str, source: Path, holder: Path) -> int:
    """Put the keys of DOMAIN back from SOURCE, into a new data folder. Keys in use are never replaced.  导入密钥域。"""
    from medmesh.embedded import files
    from medmesh.embedded import vault as work

    folder = files.folder(data.absolute(), 0o711)
    with on_record(folder, "vault.import") as act:
        act.about("domain", domain[:200])
        act.detail["file"] = hashlib.sha256(source.read_bytes()).hexdigest()
        act.detail["keys"] = count = work.bring(folder, domain, work.holder(holder.absolute()), source.absolute())
    click.echo(say(f"{domain}: {count} files", f"{domain}：{count} 个文件"))
    return 0
