"""Signing in as programs do: with a second factor where one is needed, enrolled at the first time, shown again when asked for."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from medmesh.client.credentials import Person
from medmesh.client.gateway import Gateway
from medmesh.embedded import files
from medmesh.errors import Problem
from medmesh.security import totp
from medmesh.security.assertions import PrivateKey, sign
from medmesh.security.authority import key_pem, load_key, new_key, person_of, person_request
from medmesh.security.keys import write_secret


@dataclass
class Authenticator:
    """The authenticator of one person: each code counts once, so the next one may have to be waited for."""

    secret: bytes = field(default=b"", repr=False)
    _used: int = 0

    async def code(self) -> str:
        """A code that was not used before: of the present step, else of the next, which the platform's drift admits."""
        self._used = max(totp.step_at(datetime.now(UTC)), self._used + 1)
        opens = (self._used - totp.DRIFT) * totp.STEP_SECONDS
        await asyncio.sleep(max(0.0, opens - datetime.now(UTC).timestamp()))
        return totp.code_for(self.secret, self._used)


async def enrol(gateway: Gateway, authenticator: Authenticator) -> None:
    """Make a second factor for who is signed in, and confirm it. Raises `Problem`."""
    former = await authenticator.code() if authenticator.secret else None
    made = await gateway.request("POST", "/v1/second-factor", {"code": former} if former else {})
    authenticator.secret = totp.read(made["secret"])
    await gateway.request("POST", "/v1/second-factor/confirmation", {"code": await authenticator.code()})


async def sign_in_system(gateway: Gateway, name: str, key: PrivateKey) -> Gateway:
    """A client of a hospital's system, which was registered with the public half of `key`. Raises `Problem`."""
    opened = await gateway.request("POST", "/v1/system-sessions", {"assertion": sign(key, name)})
    return gateway.acting_as(Person(opened["session"]))


async def sign_in(gateway: Gateway, name: str, password: str, authenticator: Authenticator | None = None) -> Gateway:
    """A client of this person that shows the second factor whenever it is asked for. Raises `Problem`."""
    body = {"name": name, "password": password}
    if authenticator and authenticator.secret:
        body["code"] = await authenticator.code()
    answer = await gateway.request("POST", "/v1/sessions", body)
    if "password" in answer["must"]:
        raise Problem("governance.password_due")
    person = gateway.acting_as(Person(answer["session"], authenticator.code if authenticator else None))
    if "second_factor" in answer["must"]:
        if authenticator is None:
            raise Problem("governance.second_factor_due")
        await enrol(person, authenticator)
    return person


async def request_certificate(gateway: Gateway, name: str, folder: Path, *, code: str = "", password: str = "") -> tuple[Path, Path]:
    """A client certificate for who is signed in: (certificate, key) files in `folder`. The key is made here and stays here; interrupted,
    the same call goes on with it. Raises `Problem`."""
    body = {"csr_pem": signing_request(name, folder), "code": code, "password": password}
    made = await gateway.request("POST", "/v1/certificates", body)
    return install_certificate(name, folder, made["certificate_pem"])


def signing_request(name: str, folder: Path) -> str:
    """The request for a person's next certificate. Its key is new, made once and kept beside the present one until it is certified."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = folder / f"{name}.next.key"
    if not key.exists():
        write_secret(key, key_pem(new_key()))
    return person_request(load_key(key), name)


def install_certificate(name: str, folder: Path, pem: str) -> tuple[Path, Path]:
    """Take a certificate and its key into use. Raises `Problem` for one of another key or another person."""
    try:
        found = x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        raise Problem("client.certificate_foreign", name=name) from None
    keys = [key for key in (folder / f"{name}.next.key", folder / f"{name}.key") if key.exists()]
    if person_of(found) != name or all(found.public_key() != load_key(key).public_key() for key in keys):
        raise Problem("client.certificate_foreign", name=name)
    files.write(folder / f"{name}.next.pem", pem)
    return certificate_files(name, folder)


def certificate_files(name: str, folder: Path) -> tuple[Path, Path]:
    """(certificate, key) of a person; an installation that was interrupted is finished first."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    if (following := folder / f"{name}.next.pem").exists():
        if (next_key := folder / f"{name}.next.key").exists():
            os.replace(next_key, key)
        os.replace(following, certificate)
    return certificate, key


async def sign_in_by_certificate(gateway: Gateway, name: str, password: str) -> Gateway:
    """A client of this person on the connections of `gateway`, which shows their certificate. Raises `Problem`."""
    answer = await gateway.request("POST", "/v1/sessions", {"name": name, "password": password})
    if "password" in answer["must"]:
        raise Problem("governance.password_due")

    async def again() -> str:
        return password

    return gateway.acting_as(Person(answer["session"], again, "password"))
