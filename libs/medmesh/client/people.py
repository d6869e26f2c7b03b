"""Signing in as programs do: with a second factor where one is needed, enrolled at the first time, shown again when asked for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime

from medmesh.client.credentials import Person
from medmesh.client.gateway import Gateway
from medmesh.errors import Problem
from medmesh.security import totp
from medmesh.security.assertions import PrivateKey, sign


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
