"""Who is signed in at this terminal: a file 0600 with the gateway's address, its CA and the session."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509

from medmesh.cli import language, say
from medmesh.client.credentials import Person
from medmesh.client.gateway import Gateway
from medmesh.client.people import certificate_files
from medmesh.embedded import files
from medmesh.errors import Problem
from medmesh.security.keys import read_secret

T = TypeVar("T")


def place() -> Path:
    """`$MEDMESH_SESSION` or `~/.config/medmesh/session.json`."""
    return Path(os.environ.get("MEDMESH_SESSION", Path.home() / ".config" / "medmesh" / "session.json"))


def save(url: str, ca: Path, session: str, name: str, *, certificate: bool = False) -> None:
    """Remember a session, and whether it belongs to the certificate of its person on this machine."""
    place().parent.mkdir(parents=True, exist_ok=True)
    kept = {"url": url, "ca": str(ca.absolute()), "session": session, "name": name, "certificate": name if certificate else ""}
    files.write(place(), json.dumps(kept))


def certificates() -> Path:
    """Where the keys and certificates of this account's people lie, 0700."""
    return place().parent / "certificates"


def identity(name: str) -> tuple[Path, Path] | None:
    """(certificate, key) of a person on this machine; None when there is none, or it is over."""
    if not name:
        return None
    files_ = certificate_files(name, certificates())
    if not all(file.exists() for file in files_):
        return None
    until = x509.load_pem_x509_certificate(files_[0].read_bytes()).not_valid_after_utc
    return files_ if until > datetime.now(UTC) else None


def forget() -> None:
    """Signed out."""
    place().unlink(missing_ok=True)


def load() -> dict[str, str]:
    """Raises `Problem` (`cli.signed_out`)."""
    if not place().exists():
        raise Problem("cli.signed_out")
    found: dict[str, str] = json.loads(read_secret(place()))
    return found


async def ask_code() -> str:
    """The code of the signed-in person's authenticator, from the terminal."""
    import click

    return str(click.prompt(say("code of your authenticator", "动态口令"), err=True))


async def ask_password() -> str:
    """The password again, in a session of a certificate."""
    import click

    return str(click.prompt(say("your password", "口令"), hide_input=True, err=True))


@asynccontextmanager
async def signed_in() -> AsyncIterator[Gateway]:
    """A client of the person whom `medmesh login` signed in on this machine. Raises `Problem` (`cli.signed_out`)."""
    found = load()
    shown = identity(found.get("certificate", ""))
    person = Person(found["session"], ask_password, "password") if shown else Person(found["session"], ask_code)
    async with Gateway(found["url"], ca=Path(found["ca"]), identity=shown, credentials=person, language=language()) as gateway:
        yield gateway


def with_gateway(work: Callable[[Gateway], Awaitable[T]]) -> T:
    """Run `work` with a client of the signed-in person."""

    async def run() -> T:
        async with signed_in() as gateway:
            return await work(gateway)

    return asyncio.run(run())


def show(document: Any) -> None:
    """Print a document for people who also like to pipe it."""
    import click

    click.echo(json.dumps(document, ensure_ascii=False, indent=1, default=str))
