"""Only what the release key signed and approvers approved is believed."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from tests.unit.serving.models import Authorities, manifest, saved

from medmesh.canonical import canonical
from medmesh.errors import Problem
from medmesh.security.keys import Identity
from medmesh.security.tokens import TrustBundle
from medmesh.serving.release import verify_release


@pytest.fixture
def authorities(private: Path) -> Authorities:
    return Authorities.create(private)


def test_a_good_release_gives_back_its_manifest(authorities: Authorities, private: Path) -> None:
    made = manifest(saved(private))
    assert verify_release(authorities.released(made), authorities.trust, authorities.roster, hospital=None) == made
    assert verify_release(authorities.released(made), authorities.trust, authorities.roster, hospital="renji") == made


def test_an_approval_that_expired_after_the_release_still_counts(authorities: Authorities, private: Path) -> None:
    made = manifest(saved(private))
    body = canonical(made.model_dump(mode="json"))
    old = authorities.approval(body, "release-1", minutes=-60)
    assert verify_release(authorities.released(made, approval=old), authorities.trust, authorities.roster, hospital=None) == made


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("another key", "serving.signature"),
        ("one byte changed", "serving.signature"),
        ("no signature", "serving.signature"),
        ("signature not base64", "serving.signature"),
        ("bundle without a release key", "serving.signature"),
        ("manifest not base64", "serving.manifest"),
        ("approval of other bytes", "serving.approval"),
        ("approval of another action", "serving.approval"),
        ("approval of another release", "serving.approval"),
        ("approval by another key", "serving.approval"),
        ("no approval", "serving.approval"),
        ("spaces", "serving.manifest"),
        ("a name twice", "serving.manifest"),
        ("a float", "serving.manifest"),
        ("a field missing", "serving.manifest"),
        ("no JSON", "serving.manifest"),
        ("another version in the event", "serving.manifest"),
        ("another model in the event", "serving.manifest"),
        ("another hospital", "serving.not_for_us"),
    ],
)
def test_whatever_is_wrong_with_a_release_it_is_refused(authorities: Authorities, private: Path, what: str, code: str) -> None:
    made = manifest(saved(private))
    document = made.model_dump(mode="json")
    body = canonical(document)
    stranger = Identity.create(private / "stranger.nk")
    other = Authorities(authorities.release, stranger)
    trust = authorities.trust
    if what == "bundle without a release key":
        trust = TrustBundle("medmesh", services=trust.services)
    short = {name: value for name, value in document.items() if name != "classes"}
    events = {
        "another key": lambda: authorities.released(made, signature=base64.b64encode(stranger.sign(body)).decode()),
        "one byte changed": lambda: authorities.released(
            made, manifest=base64.b64encode(body.replace(b'"version":1', b'"version":2')).decode(), version=2
        ),
        "no signature": lambda: authorities.released(made, signature=""),
        "signature not base64": lambda: authorities.released(made, signature="*"),
        "manifest not base64": lambda: authorities.released(made, manifest="*"),
        "approval of other bytes": lambda: authorities.released(made, approval=authorities.approval(b"other", "release-1")),
        "approval of another action": lambda: authorities.released(
            made, approval=authorities.approval(body, "release-1", action="federation.start")
        ),
        "approval of another release": lambda: authorities.released(made, approval=authorities.approval(body, "release-0")),
        "approval by another key": lambda: authorities.released(made, approval=other.approval(body, "release-1")),
        "no approval": lambda: authorities.released(made, approval=""),
        "spaces": lambda: authorities.released(made, body=json.dumps(document, sort_keys=True).encode()),
        "a name twice": lambda: authorities.released(made, body=b'{"version":2,' + body[1:]),
        "a float": lambda: authorities.released(made, body=body.replace(b'"preprocess":{}', b'"preprocess":{"mean":0.5}')),
        "a field missing": lambda: authorities.released(made, body=canonical(short)),
        "no JSON": lambda: authorities.released(made, body=b"\xff"),
        "another version in the event": lambda: authorities.released(made, version=2),
        "another model in the event": lambda: authorities.released(made, model="other"),
    }
    event = events.get(what, lambda: authorities.released(made))()
    with pytest.raises(Problem) as caught:
        verify_release(event, trust, authorities.roster, hospital="ruijin" if what == "another hospital" else "renji")
    assert caught.value.code == code
