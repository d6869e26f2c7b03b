"""The platform's side of a secure sum: it passes messages on, and takes from the sum what did not cancel."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import islice

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from medmesh.errors import Problem
from medmesh.federated.secure import shamir
from medmesh.federated.secure.session import Session, agreed
from medmesh.federated.secure.vectors import Mask
from medmesh.security.statements import Keys


def corrections(
    session: Session,
    keys: Mapping[str, Keys],
    sharers: Sequence[str],
    survivors: Sequence[str],
    revealed: Mapping[str, Mapping[str, str]],
) -> list[Mask]:
    """The masks that the sum of the survivors' vectors still bears, with the sign that takes them away.

    `sharers` are those whose shares were passed on, `revealed` is hospital to (hospital to share). Raises `Problem` (`secure.few`)
    with fewer than the threshold, (`secure.share`) naming whose secret does not fit what it committed to.
    """
    if len(revealed) < session.threshold:
        raise Problem("secure.few", got=len(revealed), wanted=session.threshold)
    made = []
    for name in sorted(survivors):
        seed = _secret(session, name, revealed)
        if hashlib.sha256(seed).hexdigest() != keys[name].seed:
            raise Problem("secure.share", hospital=name)
        made.append(Mask(seed, -1))
    for name in sorted(set(sharers) - set(survivors)):
        private = X25519PrivateKey.from_private_bytes(_secret(session, name, revealed))
        if private.public_key().public_bytes_raw().hex() != keys[name].mask:
            raise Problem("secure.share", hospital=name)
        for other in sorted(survivors):
            # The survivor added this mask with 1 where its own name comes first: the opposite is due.
            made.append(Mask(agreed(session, "mask", (name, private), (other, keys[other].mask)), -1 if other < name else 1))
    return made


def _secret(session: Session, of: str, revealed: Mapping[str, Mapping[str, str]]) -> bytes:
    try:
        shares = {session.point(name): int(given[of], 16) for name, given in sorted(revealed.items()) if of in given}
        if len(shares) < session.threshold:
            raise Problem("secure.few", got=len(shares), wanted=session.threshold)
        return shamir.combine(dict(islice(shares.items(), session.threshold))).to_bytes(32, "big")
    except (ValueError, OverflowError):
        raise Problem("secure.share", hospital=of) from None
