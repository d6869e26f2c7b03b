"""`medmesh key`: a signing key of one's own, whose private half never leaves this machine.  签名密钥。"""

from __future__ import annotations

import os
from pathlib import Path

import click

from medmesh.cli import say
from medmesh.cli.session import show, with_gateway
from medmesh.errors import Problem
from medmesh.security import signing
from medmesh.security.signing import Signer, key_fingerprint


def place() -> Path:
    """`$MEDMESH_KEY` or `~/.config/medmesh/signing.key`."""
    return Path(os.environ.get("MEDMESH_KEY", Path.home() / ".config" / "medmesh" / "signing.key"))


KEY = click.option(
    "--key",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=place,
    show_default="$MEDMESH_KEY or ~/.config/medmesh/signing.key",
    help="The key file.  密钥文件。",
)


def unlock(file: Path) -> Signer:
    """The key in a file; its passphrase comes from `$MEDMESH_PASSPHRASE` or the terminal."""
    if not file.exists():
        raise Problem("signing.no_key", file=file)
    given = os.environ.get("MEDMESH_PASSPHRASE")
    return signing.load(file, given or click.prompt(say(f"passphrase of {file.name}", f"{file.name} 的口令"), hide_input=True, err=True))


def new_passphrase() -> str:
    """Asked for twice, or taken from `$MEDMESH_PASSPHRASE`."""
    if given := os.environ.get("MEDMESH_PASSPHRASE"):
        return given
    asked = click.prompt(say("passphrase for the new key", "新密钥的口令"), hide_input=True, confirmation_prompt=True, err=True)
    return str(asked)


def tell(vkey: str) -> None:
    """A public key and the digits that are read aloud."""
    click.echo(vkey)
    click.echo(say("  fingerprint  ", "  指纹  ") + click.style(key_fingerprint(vkey), bold=True))


@click.group()
def key() -> None:
    """A signing key of your own: your decisions count by it, and by nothing the platform holds.  本人签名密钥。

    Make it, announce it, and read its fingerprint to the keepers of the roster: medmesh key create, register, show.
    """


@key.command()
@KEY
@click.argument("name")
def create(file: Path, name: str) -> int:
    """Make a key for NAME (person:wu@platform), encrypted under a passphrase only you know.  生成密钥。"""
    signer = Signer.create(name)
    signing.save(file, signer, new_passphrase())
    tell(signer.vkey)
    click.echo(say(f"  private half in {file}; there is no copy anywhere", f"  私钥仅存于 {file}，无任何副本"))
    return 0


@key.command(name="show")
@KEY
def show_key(file: Path) -> int:
    """The public half and its fingerprint, to be read aloud: eight groups of five digits.  显示公钥与指纹。"""
    if not file.exists():
        raise Problem("signing.no_key", file=file)
    tell(signing.public_of(file))
    return 0


@key.command()
@KEY
def register(file: Path) -> int:
    """Announce the public half to the platform, where the keepers find it. It counts when they have put it into the roster.  登记公钥。"""
    if not file.exists():
        raise Problem("signing.no_key", file=file)
    vkey = signing.public_of(file)
    with_gateway(lambda gateway: gateway.command("POST", "/v1/keys", {"key": vkey}))
    tell(vkey)
    click.echo(say("announced; now read the fingerprint to the keepers", "已登记；请将指纹朗读给名册保管人"))
    return 0


@key.command(name="list")
def list_keys() -> int:
    """Every key that was announced, and whether the platform's roster has it.  已登记的公钥。"""
    show(with_gateway(lambda gateway: gateway.request("GET", "/v1/keys"))["keys"])
    return 0
