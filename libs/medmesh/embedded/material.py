"""What a platform needs before anything of it runs: keys, the authority, certificates, passwords, the trust bundle, settings.

Secrets are made once and never replaced; what follows from them is written anew each time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cryptography import x509

from medmesh.bus.topology import OPERATOR, TOPOLOGY, administrators, permissions
from medmesh.embedded import files
from medmesh.embedded.layout import Layout
from medmesh.embedded.nats import NatsUser
from medmesh.ledger.note import verifier_key
from medmesh.security.authority import Authority, key_pem, load_key, new_key
from medmesh.security.keyring.file import FileKeys
from medmesh.security.keys import Identity, read_secret, write_secret
from medmesh.security.sealing import LABEL as SEAL
from medmesh.security.tokens import TrustBundle
from medmesh.service.spec import ServiceSpec, services
from medmesh.store.objects.open import LABEL as OBJECTS

ORIGIN = "medmesh/log"
_RENEW = timedelta(days=60)
"""Before their end certificates are issued again, whenever somebody passes by."""


@dataclass(frozen=True)
class Prepared:
    """What was made or found."""

    layout: Layout
    specs: dict[str, ServiceSpec]
    identities: dict[str, Identity]
    authority: Authority
    trust: TrustBundle
    passwords: dict[str, str] = field(repr=False)

    def users(self) -> list[NatsUser]:
        """Everybody the bus lets in, each with exactly the subjects it declared."""
        granted = [*(permissions(spec) for spec in self.specs.values()), *administrators()]
        return [NatsUser(g.identity, self.identities[g.identity].public, g.publish, g.subscribe, g.responses) for g in granted]


def prepare(layout: Layout, names: Callable[[str], Sequence[str]]) -> Prepared:
    """Make what is missing. `names` answers by which names and addresses a service with HTTP is reached, for its certificate."""
    specs = services()

    def place(owner: str, what: str) -> Path:
        path = layout.private(owner, what)
        files.folder(path.parent)
        return path

    identities = {name: Identity.ensure(place(name, "identity.nk")) for name in (*specs, TOPOLOGY, OPERATOR)}
    release, log_key = Identity.ensure(place("registry", "release_key.nk")), Identity.ensure(place("audit", "log_key.nk"))
    if not (pseudonyms := place("ingestion", "project.key")).exists():
        write_secret(pseudonyms, os.urandom(32))
    for label in (OBJECTS, SEAL):
        FileKeys(files.folder(place("", label))).ensure(label)
    authority = Authority.ensure(place("governance", "ca.key").parent)
    for name, spec in specs.items():
        if spec.http:
            certify(authority, place(name, "tls.crt"), place(name, "tls.key"), names(name))
    digest = place("governance", "bootstrap_token")
    if not digest.exists():
        code = files.password(place(OPERATOR, "bootstrap_code"))
        files.write(digest, hashlib.sha256(code.encode()).hexdigest())
    trust = TrustBundle(
        platform="medmesh",
        services={name: identities[name].public for name in (*specs, OPERATOR)},
        release_key=release.public,
        log_key=verifier_key(ORIGIN, log_key.private_key.public_key()),
        sm_log_key=_second_key(place("audit", "sm_key.json")),
        ca_pem=authority.certificate_pem,
    )
    bundle = layout.public("trust.json")
    if bundle.exists():
        trust.revoked = TrustBundle.load(bundle).revoked
    files.write(bundle, json.dumps(trust.document(), indent=1, sort_keys=True), 0o644)
    files.write(layout.public("ca.pem"), authority.certificate_pem, 0o644)
    passwords = {name: files.password(place(name, "database_password")) for name in specs}
    return Prepared(layout, specs, identities, authority, trust, passwords)


def _second_key(file: Path) -> str:
    """The key of the log's second tree, made where `medmesh[sm]` is installed; empty where it is not."""
    if find_spec("gmssl_pyx") is None:
        return ""
    from medmesh.ledger import sm

    if not file.exists():
        sm.write_key(file, ORIGIN)
    return str(sm.read_key(read_secret(file))[0])


def certify(authority: Authority, certificate: Path, key: Path, names: Sequence[str]) -> None:
    """See that a server's certificate is good for `names` and for a while; its key stays, and so do names it had before."""
    if not key.exists():
        files.write(key, key_pem(new_key()).decode())
    found = x509.load_pem_x509_certificate(certificate.read_bytes()) if certificate.exists() else None
    before = _names(found) if found else []
    missing = [name for name in names if name not in before]
    if found is None or missing or found.not_valid_after_utc - datetime.now(UTC) < _RENEW:
        issued, _ = authority.issue_server([*before, *missing], key=load_key(key))
        files.write(certificate, issued.decode())


def _names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def settings(layout: Layout, spec: ServiceSpec, database: str, values: dict[str, Any]) -> Path:
    """Write a service's settings file; answers where. `database` is the administrator's URL, `values` what the deployment decides.

    Fields that neither decides stay as somebody set them.
    """

    def private(what: str) -> Path:
        return layout.private(spec.name, what)

    scheme, _, rest = database.partition("//")
    decided: dict[str, Any] = {
        "identity": private("identity.nk"),
        "database_url": f"{scheme}//medmesh_{spec.name}@{rest.rpartition('@')[2]}",
        "database_password": private("database_password"),
        "trust": layout.public("trust.json"),
        "state": private("state"),
        **values,
    }
    special: dict[str, Callable[[], Any]] = {
        "authority": lambda: private("ca.key").parent,
        "bootstrap_token": lambda: private("bootstrap_token"),
        "key": lambda: private("project.key"),
        "seal_keys": lambda: str(private(SEAL)),
        "release_key": lambda: private("release_key.nk"),
        "log_key": lambda: private("log_key.nk"),
        "sm_keys": lambda: [private("sm_key.json")] if private("sm_key.json").exists() else [],
        "origin": lambda: ORIGIN,
        "witness_policy": lambda: layout.public("witnesses.policy"),  # whoever wants witnesses writes it; there is none at first
        "client_ca": lambda: layout.public("ca.pem"),
    }
    decided |= {name: make() for name, make in special.items() if name in spec.settings.model_fields}
    if spec.http:
        decided |= {"tls_certificate": private("tls.crt"), "tls_key": private("tls.key")}
    path = private("settings.json")
    files.folder(path.parent)
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = {name: value for name, value in before.items() if name in spec.settings.model_fields}
    files.write(path, json.dumps(kept | decided, default=str, indent=1))
    return path
