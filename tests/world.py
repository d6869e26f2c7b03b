"""A small world: gateway, governance and audit (and what a test adds) on real servers, people and hospitals to act in it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cryptography.hazmat.primitives.serialization import Encoding

from medmesh.client import Authenticator, Gateway, sign_in
from medmesh.client.approvals import decide
from medmesh.client.credentials import Node
from medmesh.client.doors import open_door
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.security import signing, totp
from medmesh.security.authority import Authority, key_pem
from medmesh.security.keyring.file import FileKeys
from medmesh.security.keys import Identity
from medmesh.service.spec import ServiceSpec
from medmesh_audit.service import SERVICE as AUDIT
from medmesh_edge import roster as rosters
from medmesh_edge.settings import Layout
from medmesh_federation.service import SERVICE as FEDERATION
from medmesh_gateway.service import SERVICE as GATEWAY
from medmesh_governance.service import SERVICE as GOVERNANCE
from medmesh_ingestion.service import SERVICE as INGESTION
from medmesh_registry.service import SERVICE as REGISTRY
from tests.platform import Platform, platform
from tests.records import arrived

TOKEN, PASSWORD = "one-time-token", "Correct-Horse-7-Battery"


@dataclass
class World:
    p: Platform
    url: str
    audit: str
    ca: Path
    anybody: Gateway
    authenticators: dict[str, Authenticator] = field(default_factory=dict)

    def node(self, hospital: str) -> Gateway:
        self.p.hospital(hospital)
        key, certificate = self.p.nodes[hospital]
        files = self.p.folder / f"{hospital}.pem", self.p.folder / f"{hospital}.key"
        files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        files[1].write_bytes(key_pem(key))
        return Gateway(self.url, ca=self.ca, identity=files, credentials=Node(key, certificate))

    async def admin(self) -> Gateway:
        """The first security administrator."""
        await self.anybody.request("POST", "/v1/bootstrap", {"token": TOKEN, "name": "sun", "display_name": "S", "password": PASSWORD})
        return await self.sign_in("sun")

    async def user(self, admin: Gateway, name: str, *roles: str, organisation: str = "platform") -> Gateway:
        body = {"name": name, "display_name": name, "organisation": organisation, "roles": roles}
        made = await admin.request("POST", "/v1/users", body)
        await self.anybody.request("POST", "/v1/activations", {"name": name, "code": made["code"], "password": PASSWORD})
        return await self.sign_in(name)

    async def decide(self, approver: Gateway, approval: str, name: str = "wu", *, approve: bool = True) -> dict[str, Any]:
        """A person decides, signed with a key of their own, which the roster has from then on."""
        return await decide(approver, approval, self.p.rosters.signer(f"person:{name}@platform"), approve=approve)

    def roster(self, node: Path) -> None:
        """A hospital's node: its keepers put its key into the roster, and it pins that by the fingerprint read to it."""
        self.p.rosters.add(signing.public_of(Layout(node).organisation_key))
        rosters.pin(Layout(node), self.p.rosters.book.versions, self.p.rosters.pin)

    async def records(self, auditor: Gateway, **query: Any) -> list[dict[str, Any]]:
        """What the log holds of what was answered until now, newest or oldest as it answers; waits until there is something."""
        await arrived(self.p)
        async with await open_door(auditor, "audit", self.audit) as door, asyncio.timeout(20):
            while not (found := (await door.request("GET", "/v1/events", query=query))["events"]):
                await asyncio.sleep(0.1)
        return [entry["record"] for entry in found]

    async def sign_in(self, name: str) -> Gateway:
        """With the authenticator of this person, which is enrolled at the first time where a role needs one."""
        return await sign_in(self.anybody, name, PASSWORD, self.authenticators.setdefault(name, Authenticator()))


@asynccontextmanager
async def small_world(
    servers: RunningServers, folder: Path, ports: Ports, *more: ServiceSpec, settings: dict[str, dict[str, Any]] | None = None
) -> AsyncIterator[World]:
    """See the module."""
    (folder / "bootstrap").write_text(hashlib.sha256(TOKEN.encode()).hexdigest())
    (folder / "ca").mkdir()
    FileKeys(folder / "seal").ensure("seal")
    authority = Authority.ensure(folder / "ca")
    for name, content in zip(("server.pem", "server.key"), authority.issue_server(["127.0.0.1"]), strict=True):
        (folder / name).write_bytes(content)
    for name in ("log", "release"):
        Identity.ensure(folder / "keys" / f"{name}.nk")
    gateway, audit = ports.take("gateway", "audit")
    tls = {"tls_certificate": folder / "server.pem", "tls_key": folder / "server.key"}
    needed: dict[str, dict[str, Any]] = {
        "governance": {"authority": folder / "ca", "bootstrap_token": folder / "bootstrap", "seal_keys": str(folder / "seal")},
        "gateway": {"client_ca": folder / "ca" / "ca.pem", "port": gateway, **tls},
        "audit": {"log_key": folder / "keys" / "log.nk", "port": audit, "client_ca": folder / "ca" / "ca.pem", **tls},
        "registry": {"release_key": folder / "keys" / "release.nk"},
    }
    for name, values in (settings or {}).items():
        needed[name] = {**needed.get(name, {}), **values}
    async with AsyncExitStack() as stack:
        # Whoever signs in several times need not wait half a minute for each next code.
        stack.enter_context(patch.object(totp, "STEP_SECONDS", 10))
        p = await stack.enter_async_context(platform(servers, folder, AUDIT, GOVERNANCE, GATEWAY, *more, settings=needed))
        ca = folder / "ca" / "ca.pem"
        anybody = await stack.enter_async_context(Gateway(f"https://127.0.0.1:{gateway}", ca=ca))
        yield World(p, anybody.url, f"https://127.0.0.1:{audit}", ca, anybody)


@asynccontextmanager
async def federating_world(servers: RunningServers, folder: Path, ports: Ports) -> AsyncIterator[World]:
    """A small one in which hospitals train together, and release what they made."""
    settings = {"federation": {"tick_seconds": 0.1}, "ingestion": {"key": folder / "keys" / "ingestion.key"}}
    async with small_world(servers, folder, ports, FEDERATION, REGISTRY, INGESTION, settings=settings) as made:
        yield made
