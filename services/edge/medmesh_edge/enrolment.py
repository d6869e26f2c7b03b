"""Enrolment: one-time code, signing request, a second person's approval at the platform, certificate."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from medmesh.client.gateway import Gateway
from medmesh.embedded import files
from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.security import signing
from medmesh.security.authority import hospital_of, key_pem, load_key, new_key, node_request, verify_node
from medmesh.security.keys import write_secret
from medmesh.security.roster import notes_of
from medmesh.security.signing import Signer
from medmesh.security.tokens import TrustBundle
from medmesh_edge import roster as rosters
from medmesh_edge.policy import DEFAULT
from medmesh_edge.settings import Layout, Settings

Say = Callable[[str], None]


async def enrol(
    folder: Path,
    settings: Settings,
    ca_pem: bytes,
    code: str,
    *,
    pin: str | None = None,
    roster: bytes | None = None,
    say: Say = lambda state: None,
    seconds: float = 86_400,
) -> None:
    """Enrol a node; interrupted, it goes on with the same key and the same request. Raises `Problem`.

    `ca_pem` is handed over with the code, by another way than the network: it is what the platform is recognised by. So is the roster:
    its fingerprint (`pin`), or the file itself (`roster`); without either it is pinned later, and until then nothing is accepted.
    """
    layout = Layout(folder)
    if layout.certificate.exists():
        raise Problem("edge.enrolled", hospital=Settings.load(folder).hospital)
    _prepare(layout, settings, ca_pem)
    key = load_key(layout.key)
    request = {
        "hospital": settings.hospital,
        "node": settings.node,
        "code": code,
        "csr_pem": _request(layout, settings),
        "protocol": 1,
        "organisation_key": signing.public_of(layout.organisation_key),
    }
    async with Gateway(settings.gateway, ca=layout.ca, proxy=settings.proxy) as gateway:
        if pin is not None or roster is not None:
            rosters.pin(layout, notes_of(roster) if roster is not None else await rosters.served(gateway), pin)
        state = await gateway.request("POST", "/v1/enrolments", request)
        say(state["state"])
        asked = {"hospital": settings.hospital, "code": code}
        end = asyncio.get_running_loop().time() + seconds
        while state["state"] == "pending":
            if asyncio.get_running_loop().time() > end:
                raise Problem("edge.pending", approval=state.get("approval") or "")
            await asyncio.sleep(1)
            state = await gateway.request("POST", f"/v1/enrolments/{state['enrolment']}/status", asked)
    if state["state"] != "enrolled":
        raise Problem("edge.refused")
    certificate = x509.load_pem_x509_certificate(state["certificate_pem"].encode())
    check_certificate(certificate, key.public_key(), ca_pem, settings.hospital, datetime.now(UTC))
    trust = TrustBundle(**state["trust"])
    if trust.ca_pem.strip() != ca_pem.decode().strip():
        raise Problem("edge.foreign_ca")
    trust.save(layout.trust)
    settings.save(folder)
    files.write(layout.certificate, state["certificate_pem"])
    layout.enrolment.unlink(missing_ok=True)
    say("enrolled")


def _prepare(layout: Layout, settings: Settings, ca_pem: bytes) -> None:
    files.folder(layout.folder)
    files.folder(layout.key.parent)
    made = {
        layout.key: key_pem(new_key()),
        layout.site_key: secrets.token_hex(32).encode(),
        layout.local_token: secrets.token_urlsafe(32).encode(),
    }
    for path, content in made.items():
        if not path.exists():
            write_secret(path, content)
    if not layout.organisation_key.exists():
        signing.save(layout.organisation_key, Signer.create(f"hospital:{settings.hospital}"), None)
    if note.parse_key(signing.public_of(layout.organisation_key)).name != f"hospital:{settings.hospital}":
        raise Problem("edge.foreign_organisation", hospital=settings.hospital)
    if not layout.policy.exists():
        layout.policy.write_text(DEFAULT, encoding="utf-8")
    layout.ca.write_bytes(ca_pem)


def _request(layout: Layout, settings: Settings) -> str:
    """The signing request, the same at every try: the platform answers a repeated one alike."""
    if layout.enrolment.exists():
        return str(json.loads(layout.enrolment.read_text())["csr_pem"])
    csr = node_request(load_key(layout.key), settings.hospital, settings.node)
    files.write(layout.enrolment, json.dumps({"csr_pem": csr}))
    return csr


def check_certificate(certificate: x509.Certificate, public: object, ca_pem: bytes, hospital: str, now: datetime) -> None:
    """The certificate is for our key, from the authority we were handed, and names us. Raises `Problem`."""
    ours = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    theirs = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if ours != theirs or hospital_of(certificate)[0] != hospital:
        raise Problem("edge.foreign_certificate")
    verify_node(certificate, x509.load_pem_x509_certificate(ca_pem), at=now)


def ca_fingerprint(ca_pem: bytes) -> str:
    """What people read to each other over the telephone: the first 16 hexadecimal digits."""
    der = x509.load_pem_x509_certificate(ca_pem).public_bytes(Encoding.DER)
    return hashlib.sha256(der).hexdigest()[:16]
