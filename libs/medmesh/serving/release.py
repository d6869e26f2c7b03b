"""A release is believed for three reasons at once: the release key signed it, approvers approved exactly it, it is well formed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json

from pydantic import ValidationError

from medmesh.canonical import canonical
from medmesh.contracts.registry import Manifest, ModelReleased
from medmesh.errors import Problem
from medmesh.security import approvals, keys
from medmesh.security.roster import Roster
from medmesh.security.tokens import TrustBundle

ACTION = "model.release"


def verify_release(event: ModelReleased, trust: TrustBundle, roster: Roster, *, hospital: str | None) -> Manifest:
    """The manifest a release carries, proven; `roster` is the one that was pinned, whatever the platform says.

    `hospital` is who wants to install it; None for the platform itself, which serves every release. The approval may have
    expired since: it was spent in time by the registry, whose signature says so. Raises `Problem` (`serving.signature`,
    `serving.approval`, `serving.manifest`, `serving.not_for_us`, and `roster.*` or `statement.*` where an approver's own signature fails).
    """
    try:
        body = base64.b64decode(event.manifest, validate=True)
    except binascii.Error:
        raise Problem("serving.manifest", release=event.release, reason="not base64") from None
    # Nothing of the bytes is parsed before their signature holds.
    if not _signed(body, event.signature, trust.release_key):
        raise Problem("serving.signature", release=event.release)
    if not _approved(body, event, trust.governance, roster):
        raise Problem("serving.approval", release=event.release)
    manifest = _read(body, event.release)
    if (manifest.model, manifest.version) != (event.model, event.version):
        raise Problem("serving.manifest", release=event.release, reason="it names another model or version than the release")
    if hospital is not None and hospital not in manifest.hospitals:
        raise Problem("serving.not_for_us", release=event.release, hospital=hospital)
    return manifest


def _signed(body: bytes, signature: str, release_key: str) -> bool:
    try:
        return keys.verify(release_key, body, base64.b64decode(signature, validate=True))
    except (binascii.Error, Problem):  # a trust bundle without a release key believes no release
        return False


def _approved(body: bytes, event: ModelReleased, governance_key: str, roster: Roster) -> bool:
    digest = hashlib.sha256(body).hexdigest()
    try:
        found = approvals.verify(event.approval, governance_key, roster, action=ACTION, digest=digest, at=None)
    except Problem as problem:
        if problem.code in ("security.approval_signature", "security.approval_other"):
            return False
        raise
    # The approval of one release is not that of another with the same bytes: a withdrawn version comes back by a new decision only.
    return found.target == event.release


def _read(body: bytes, release: str) -> Manifest:
    try:
        if canonical(json.loads(body)) != body:
            raise Problem("serving.manifest", release=release, reason="its bytes are not canonical")
        return Manifest.model_validate_json(body, extra="ignore")
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['type']}" for e in error.errors(include_input=False, include_url=False)[:5])
        raise Problem("serving.manifest", release=release, reason=where) from None
    except (ValueError, RecursionError):
        raise Problem("serving.manifest", release=release, reason="not canonical JSON") from None
