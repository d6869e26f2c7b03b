"""Who is believed, for how long, and what a certificate, a token or a signature of another kind is worth: nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.rosters import decision, roster_of

from medmesh.errors import Problem
from medmesh.security import access, approvals, passwords, roles
from medmesh.security.authority import Authority, hospital_of, new_key, node_request, verify_node
from medmesh.security.codes import code_hash, new_code
from medmesh.security.keys import Identity, read_secret, verify, write_secret
from medmesh.security.redaction import HIDDEN, redact
from medmesh.security.requests import sign_request, verify_request
from medmesh.security.roster import Roster
from medmesh.security.signing import Signer
from medmesh.security.tokens import Actor, TrustBundle, hospital_token, person_token, service_token, verify_actor

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.fixture
def parties(private: Path) -> tuple[TrustBundle, Identity, Identity, Authority]:
    governance, registry = Identity.create(private / "governance.nk"), Identity.create(private / "registry.nk")
    (private / "ca").mkdir()
    authority = Authority.create(private / "ca")
    known = {"governance": governance.public, "registry": registry.public}
    return TrustBundle("medmesh", known, ca_pem=authority.certificate_pem), governance, registry, authority


def _code(call: object, *arguments: object, **named: object) -> str:
    with pytest.raises(Problem) as caught:
        call(*arguments, **named)  # type: ignore[operator]
    return caught.value.code


def test_a_person_is_vouched_for_by_governance_only(parties: tuple[TrustBundle, Identity, Identity, Authority]) -> None:
    trust, governance, registry, _ = parties
    li = Actor("person", "li", "platform", frozenset(("researcher",)))
    token = person_token(governance, li, now=NOW)
    assert verify_actor(token, trust, NOW) == li
    assert _code(verify_actor, person_token(registry, li, now=NOW), trust, NOW) == "security.token_signature"
    assert _code(verify_actor, token, trust, NOW + timedelta(minutes=12)) == "security.token_expired"
    assert _code(verify_actor, token, trust, NOW - timedelta(minutes=5)) == "security.token_early"
    assert _code(verify_actor, token, trust, NOW, audience="audit") == "security.token_audience"
    assert _code(verify_actor, token[:-4] + "AAAA", trust, NOW) == "security.token_signature"
    assert _code(verify_actor, "nonsense", trust, NOW) == "security.token_malformed"
    head, body, _ = token.split(".")
    assert _code(verify_actor, f"{head}.{body}.", trust, NOW) == "security.token_signature"


def test_a_service_speaks_for_itself_and_nobody_else(parties: tuple[TrustBundle, Identity, Identity, Authority]) -> None:
    trust, _, registry, _ = parties
    assert verify_actor(service_token(registry, "registry", now=NOW), trust, NOW).roles == {"service", "service:registry"}
    assert _code(verify_actor, service_token(registry, "governance", now=NOW), trust, NOW) == "security.token_signature"
    assert _code(verify_actor, service_token(registry, "unknown", now=NOW), trust, NOW) == "security.token_issuer"


def test_a_hospital_is_who_its_certificate_says_while_it_is_good(
    parties: tuple[TrustBundle, Identity, Identity, Authority], private: Path
) -> None:
    trust, _, _, authority = parties
    key = new_key()
    certificate = authority.sign_node(node_request(key, "somebody-else", "x"), "renji", "node-1", days=90, now=NOW)
    assert hospital_of(certificate) == ("renji", "node-1"), "what the request says of itself counts for nothing"
    assert verify_actor(hospital_token(key, certificate, now=NOW), trust, NOW).id == "renji"
    later = NOW + timedelta(days=91)
    assert _code(verify_actor, hospital_token(key, certificate, now=later), trust, later) == "security.certificate_expired"
    assert _code(verify_actor, hospital_token(new_key(), certificate, now=NOW), trust, NOW) == "security.token_signature"
    (private / "other").mkdir()
    foreign = Authority.create(private / "other").sign_node(node_request(key, "renji", "node-1"), "renji", "node-1", now=NOW)
    assert _code(verify_actor, hospital_token(key, foreign, now=NOW), trust, NOW) == "security.certificate_foreign"
    trust.revoked.append(f"{certificate.serial_number:x}")
    assert _code(verify_actor, hospital_token(key, certificate, now=NOW), trust, NOW) == "security.certificate_revoked"
    server = __import__("cryptography.x509", fromlist=["x"]).load_pem_x509_certificate(authority.issue_server(["localhost"])[0])
    ca = authority.certificate
    assert _code(verify_node, server, ca, at=datetime.now(UTC)) == "security.certificate_foreign"


def test_what_was_believed_once_is_believed_only_while_it_should_be(
    parties: tuple[TrustBundle, Identity, Identity, Authority], private: Path
) -> None:
    trust, governance, registry, authority = parties
    key = new_key()
    certificate = authority.sign_node(node_request(key, "renji", "node-1"), "renji", "node-1", days=90, now=NOW)
    token = hospital_token(key, certificate, minutes=200 * 24 * 60, now=NOW)
    assert verify_actor(token, trust, NOW) == verify_actor(token, trust, NOW)
    assert _code(verify_actor, token, trust, NOW + timedelta(days=91)) == "security.certificate_expired"
    assert _code(verify_actor, token, trust, NOW + timedelta(days=201)) == "security.certificate_expired"
    assert verify_actor(token, trust, NOW).id == "renji"
    trust.revoked.append(f"{certificate.serial_number:x}")
    assert _code(verify_actor, token, trust, NOW) == "security.certificate_revoked"
    person = person_token(governance, Actor("person", "li", "platform"), now=NOW)
    assert verify_actor(person, trust, NOW).id == "li"
    assert _code(verify_actor, person, trust, NOW + timedelta(minutes=12)) == "security.token_expired"
    trust.services["governance"] = registry.public
    assert _code(verify_actor, person, trust, NOW) == "security.token_signature"


def test_a_signed_request_is_bound_to_everything_it_says(parties: tuple[TrustBundle, Identity, Identity, Authority]) -> None:
    import hashlib

    _, _, _, authority = parties
    key = new_key()
    certificate = authority.sign_node(node_request(key, "renji", "n"), "renji", "n", now=NOW)
    digest = hashlib.sha256(b"body").hexdigest()
    header = sign_request(key, "POST", "/v1/x?a=1", b"body", now=NOW)
    assert len(verify_request(certificate, "POST", "/v1/x?a=1", digest, header, now=NOW)) == 32
    for method, target, body in (("PUT", "/v1/x?a=1", digest), ("POST", "/v1/x?a=2", digest), ("POST", "/v1/x?a=1", "0" * 64)):
        assert _code(verify_request, certificate, method, target, body, header, now=NOW) == "security.request_unsigned"
    assert _code(verify_request, certificate, "POST", "/v1/x?a=1", digest, header, now=NOW + timedelta(minutes=6)) == "security.clock"
    for nonsense in ("", "1,2", "x,y,z", "9" * 30 + ",n,AA=="):
        assert _code(verify_request, certificate, "POST", "/v1/x?a=1", digest, nonsense, now=NOW) == "security.request_unsigned"


def test_an_approval_is_for_one_request_by_others_than_its_maker(parties: tuple[TrustBundle, Identity, Identity, Authority]) -> None:
    trust, governance, registry, _ = parties
    claims = {"approval": "a", "action": "model.release", "target": "r", "digest": "0" * 64, "requester": "person:li@platform"}
    ends = NOW + timedelta(hours=1)
    wu, li, he = (Signer.create(f"person:{name}@platform") for name in ("wu", "li", "he"))
    roster = roster_of(wu, li)

    def token_of(*signed: str, by: Identity = governance) -> str:
        return approvals.issue(by, **claims, statements=signed, expires=ends)

    def signed(by: Signer, **said: object) -> str:
        return decision(by, **{"made": NOW, "expires": ends, **claims, **said})

    token = token_of(signed(wu))

    def check(given: str, roster: Roster = roster, **changed: object) -> str:
        named = {"action": "model.release", "digest": "0" * 64, "at": NOW, **changed}
        return _code(approvals.verify, given, trust.governance, roster, **named)

    found = approvals.verify(token, trust.governance, roster, action="model.release", digest="0" * 64, at=NOW)
    assert (found.target, found.approvers) == ("r", ("person:wu@platform",))
    assert check(token, digest="1" * 64) == check(token, action="federation.start") == "security.approval_other"
    assert check(token, at=NOW + timedelta(hours=2)) == "security.approval_expired"
    two = roster_of(wu, li, needed=2)
    assert (
        check(token, two) == check(token_of(signed(wu), signed(wu, made=NOW + timedelta(seconds=1))), two) == "security.approval_unsigned"
    )
    assert check(token_of(signed(wu), by=registry)) == "security.approval_signature"
    # Governance's own key is not enough: whatever it signs, the approvers' signatures are missing, foreign, or about something else.
    assert check(token_of()) == "security.approval_unsigned"
    assert check(token_of(signed(he))) == check(token_of(signed(Signer.create(wu.name)))) == "roster.unknown"
    assert check(token_of(signed(li))) == "security.approval_maker"
    for other in ({"approval": "b"}, {"target": "s"}, {"digest": "1" * 64}, {"action": "federation.start"}, {"approve": False}):
        assert check(token_of(signed(wu, **other))) == "statement.other"
    assert check(token, roster_of(wu, role="auditor")) == "roster.role"
    assert check(token_of(signed(wu, made=ends + timedelta(hours=1))), at=None) == "security.approval_expired"
    person = person_token(governance, Actor("person", "wu", "platform"), now=NOW)
    assert check(person) == "security.approval_signature", "a session's token is no approval"


def test_every_cell_of_the_role_table() -> None:
    for action, allowed in roles.TABLE.items():
        for role in (*roles.PERSON_ROLES, "hospital", "nobody"):
            kind = "hospital" if role == "hospital" else "person"
            actor = Actor(kind, "x", "o", frozenset((role,)), "pwd+otp", NOW)  # type: ignore[arg-type]
            assert roles.allow(actor, action, NOW).allowed == (role in allowed), (role, action)
    assert not roles.allow(Actor("person", "x", "o", frozenset(roles.PERSON_ROLES), "", NOW), "anything.else", NOW).allowed
    assert _code(roles.check_roles, ["system_administrator", "audit_administrator"]) == "security.role_exclusive"
    assert _code(roles.check_roles, ["root"]) == "security.role_unknown"


def test_what_needs_the_second_factor_again_is_refused_five_minutes_after_it() -> None:
    assert set(roles.TABLE) >= roles.STEP_UP
    for action in roles.STEP_UP:
        for role in roles.TABLE[action]:
            for strong, allowed in ((None, False), (NOW - timedelta(seconds=301), False), (NOW - timedelta(seconds=300), True)):
                actor = Actor("person", "x", "platform", frozenset((role,)), "", strong)
                decision = roles.allow(actor, action, NOW)
                assert decision.allowed == allowed, (action, role, strong)
                if not allowed:
                    assert roles.denial(decision, actor, action).code == "security.step_up"
    stranger = Actor("person", "x", "platform", frozenset(("annotator",)))
    assert _code(access.require, stranger, "approval.decide", NOW) == "access.denied", "who may not is not asked for a code"


def test_the_time_of_the_second_factor_travels_in_the_token(parties: tuple[TrustBundle, Identity, Identity, Authority]) -> None:
    trust, governance, *_ = parties
    for strong in (None, NOW - timedelta(seconds=90)):
        actor = Actor("person", "wu", "platform", frozenset(("approver",)), "pwd+otp", strong)
        assert verify_actor(person_token(governance, actor, now=NOW), trust, NOW).strong_at == strong


def test_passwords_codes_and_secrets_files(private: Path) -> None:
    for weak in ("short", "medmesh-medmesh", "aaaaaaaaaaaaaa", "alllowercaseletters", "li-Li-li-Li-77"):
        assert _code(passwords.check_policy, "li", weak) == "security.password_weak", weak
    passwords.check_policy("li", "Correct-Horse-7-Battery")
    encoded = passwords.hash_password("Correct-Horse-7-Battery")
    assert encoded.startswith("$argon2id$")
    assert passwords.verify_password(encoded, "Correct-Horse-7-Battery")
    assert not passwords.verify_password(encoded, "wrong")
    assert not passwords.verify_password(None, "anything")
    assert code_hash(new_code()) != code_hash(new_code())
    write_secret(private / "s", b"x")
    with pytest.raises(FileExistsError):
        write_secret(private / "s", b"y")
    (private / "s").chmod(0o644)
    assert _code(read_secret, private / "s") == "security.key_exposed"
    identity = Identity.create(private / "i")
    assert verify(identity.public, b"data", identity.sign(b"data"))
    assert not verify(identity.public, b"other", identity.sign(b"data"))


def test_secrets_do_not_reach_a_log() -> None:
    seed = "SUA" + "B" * 55
    shown = str(redact({"password": "x", "note": f"seed {seed}", "list": ["eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJsaSJ9.c2lnbmF0dXJl"], "ok": 3}))
    assert "password': '" + HIDDEN in shown
    assert seed not in shown
    assert "eyJ" not in shown
    assert "'ok': 3" in shown
    assert redact("federation 0199c1f0-aaaa-7bbb-8ccc-123456789abc round 3") == "federation 0199c1f0-aaaa-7bbb-8ccc-123456789abc round 3"
