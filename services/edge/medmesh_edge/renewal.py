"""The node renews its own certificate after two thirds of its life, with a new key; also one that expired while it was dark."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509

from medmesh.client.credentials import Node as NodeCredentials
from medmesh.client.gateway import Gateway
from medmesh.embedded import files
from medmesh.errors import Problem
from medmesh.security.authority import key_pem, load_key, new_key, node_request
from medmesh.security.keys import write_secret
from medmesh.security.renewal import due, prove
from medmesh.telemetry import log
from medmesh_edge.enrolment import check_certificate
from medmesh_edge.ports import Site


async def renew(site: Site, gateway: Gateway, now: datetime, *, at_once: bool = False) -> bool:
    """Renew when it is time, or `at_once`; whether there is a new certificate. Raises `Problem` (`edge.renewal_pending` while a
    second person has not approved yet)."""
    certificate = site.certificate()  # looked at every second: the key stays where it is until it is needed
    if not at_once and not due(certificate, now):
        return False
    key, layout, settings = site.credentials()[0], site.layout, site.settings
    if not layout.next_key.exists():
        write_secret(layout.next_key, key_pem(new_key()))
    next_key = load_key(layout.next_key)
    if not layout.next_request.exists():
        # Kept, because the platform answers a repeated request alike, and each signing of one gives other bytes.
        files.write(layout.next_request, node_request(next_key, settings.hospital, settings.node))
    csr = layout.next_request.read_text()
    body = {"certificate_pem": layout.certificate.read_text(), "csr_pem": csr, "proof": prove(key, csr, now)}
    if now <= certificate.not_valid_after_utc:
        answer = await gateway.request("POST", "/v1/enrolments/renewal", body)
    else:  # an expired certificate does not get through the handshake; the signature is the proof
        async with Gateway(settings.gateway, ca=layout.ca, proxy=settings.proxy, attempts=1) as bare:
            answer = await bare.request("POST", "/v1/enrolments/renewal", body)
    if answer["state"] == "pending":
        raise Problem("edge.renewal_pending", approval=answer["approval"] or "")
    if answer["state"] != "enrolled":
        layout.next_key.unlink()
        layout.next_request.unlink()
        raise Problem("edge.refused")
    renewed = x509.load_pem_x509_certificate(answer["certificate_pem"].encode())
    check_certificate(renewed, next_key.public_key(), layout.ca.read_bytes(), settings.hospital, now)
    files.write(layout.next_certificate, answer["certificate_pem"])
    layout.take_up()
    layout.next_request.unlink()
    await gateway.present((layout.certificate, layout.key), NodeCredentials(next_key, renewed))
    log("edge.certificate_renewed", until=renewed.not_valid_after_utc.isoformat())
    return True
