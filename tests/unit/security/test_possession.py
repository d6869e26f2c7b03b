"""Proof of possession beside a token, by the RFCs' own examples, and what is taken for none."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from medmesh.errors import Problem
from medmesh.security.authority import new_key
from medmesh.security.possession import Proof, prove, public_jwk, thumbprint, verify

NOW = datetime(2026, 11, 27, 4, 0, tzinfo=UTC)
URL, HOST, PATH, TOKEN = "https://audit.example:8443/v1/events?actor=person:li", "audit.example:8443", "/v1/events", "a.b.c"
RFC_9449_FIGURE_2 = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMi"
    "LCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoi"
    "UE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4"
    "PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
)


def test_the_examples_of_the_rfcs() -> None:
    when = datetime.fromtimestamp(1562262616, UTC)
    found = verify(RFC_9449_FIGURE_2, "POST", "server.example.com", "/token", now=when)
    assert found == Proof("0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I", "-BwC3ESc6acc2lTc")  # RFC 9449 §4.1, §6.1
    x = base64.urlsafe_b64decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    assert thumbprint(Ed25519PublicKey.from_public_bytes(x)) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"  # RFC 8037 A.3


@pytest.mark.parametrize("key", [Ed25519PrivateKey.generate(), new_key()], ids=["EdDSA", "ES256"])
def test_exactly_the_request_that_was_signed_is_proven(key: Any) -> None:
    made = prove(key, "GET", URL, TOKEN, now=NOW)
    assert verify(made, "GET", HOST, PATH, TOKEN, now=NOW).key == thumbprint(key.public_key())
    assert verify(made, "GET", HOST.upper(), PATH, TOKEN, now=NOW + timedelta(minutes=4)).key
    spaced = prove(key, "GET", "https://h/v1/events/a%20b", now=NOW)
    assert verify(spaced, "GET", "h", "/v1/events/a b", now=NOW).key
    for method, host, path, token, now, reason in (
        ("POST", HOST, PATH, TOKEN, NOW, "request"),
        ("GET", "other.example", PATH, TOKEN, NOW, "request"),
        ("GET", HOST, "/v1/bodies", TOKEN, NOW, "request"),
        ("GET", HOST, PATH, "a.b.d", NOW, "token"),
        ("GET", HOST, PATH, "", NOW, "token"),
        ("GET", HOST, PATH, TOKEN, NOW + timedelta(minutes=6), "security.clock"),
        ("GET", HOST, PATH, TOKEN, NOW - timedelta(minutes=6), "security.clock"),
    ):
        with pytest.raises(Problem) as caught:
            verify(made, method, host, path, token, now=now)
        assert caught.value.params.get("reason", caught.value.code) == reason
    with pytest.raises(Problem) as caught:
        verify(prove(key, "GET", URL, now=NOW), "GET", HOST, PATH, TOKEN, now=NOW)
    assert caught.value.params["reason"] == "token", "one without a token is for asking for a token"


def test_what_is_no_proof() -> None:
    key, other = new_key(), new_key()
    claims = {"jti": "0123456789", "htm": "GET", "htu": URL.partition("?")[0], "iat": int(NOW.timestamp())}
    head = {"typ": "dpop+jwt", "jwk": public_jwk(key.public_key())}

    def refused(by: Any = key, algorithm: str = "ES256", *, header: dict[str, Any] | None = None, **changed: Any) -> str:
        body = {name: value for name, value in {**claims, **changed}.items() if value is not None}
        with pytest.raises(Problem) as caught:
            verify(jwt.encode(body, by, algorithm=algorithm, headers=header or head), "GET", HOST, PATH, now=NOW)
        return str(caught.value.params["reason"])

    assert verify(jwt.encode(claims, key, algorithm="ES256", headers=head), "GET", HOST, PATH, now=NOW).id == "0123456789"
    whole = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key))
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    rsa_jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key.public_key()))
    assert refused(other) == "form", "another key than it names"
    assert refused(header={**head, "typ": "JWT"}) == "form"
    assert refused(header={"typ": "dpop+jwt"}) == "form"
    assert refused(header={**head, "jwk": whole}) == "form", "a private key that was sent is everybody's"
    assert refused(rsa_key, "RS256", header={**head, "jwk": rsa_jwk}) == "form"
    assert refused("x" * 32, "HS256") == "form"
    assert refused(header={**head, "jwk": {**head["jwk"], "crv": "P-384"}}) == "form"
    for name in claims:
        assert refused(**{name: None}) == "form"
    assert refused(jti="short") == "request"
    assert refused(iat=10**30) == "form"
    for nonsense in ("", "x", "a.b.c", "e" * 5000, jwt.encode(claims, None, algorithm="none", headers=head)):
        with pytest.raises(Problem):
            verify(nonsense, "GET", HOST, PATH, now=NOW)
