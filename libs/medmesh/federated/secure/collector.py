"""The platform's side of a secure sum: it passes messages on, and takes from the sum what did not cancel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, combinations, islice

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from medmesh.errors import Problem
from medmesh.federated.secure import shamir
from medmesh.federated.secure.session import Session, agreed
from medmesh.federated.secure.vectors import Mask
from medmesh.security.statements import Keys

MOST_TRIES = 512
"""Sets of shares that are tried for one secret: all that leave out one of 64 hospitals, and many that leave out two."""


def corrections(
    session: Session,
    keys: Mapping[str, Keys],
    sharers: Sequence[str],
    survivors: Sequence[str],
    revealed: Mapping[str, Mapping[str, str]],
) -> list[Mask]:
    """The masks that the sum of the survivors' vectors still bears, with the sign that takes them away.

    `sharers` are those whose shares were passed on, `revealed` is hospital to (hospital to share). A few false shares hold nothing up where
    there are more than the threshold. Raises `Problem` (`secure.few`) with fewer than that, (`secure.share`) naming whose secret none
    of those tried gives as it was committed to.
    """
    if len(revealed) < session.threshold:
        raise Problem("secure.few", got=len(revealed), wanted=session.threshold)
    made, false = [], set[str]()
    for name in sorted(survivors):
        made.append(Mask(_secret(session, name, revealed, false, (_hash, keys[name].seed)), -1))
    for name in sorted(set(sharers) - set(survivors)):
        private = X25519PrivateKey.from_private_bytes(_secret(session, name, revealed, false, (_public, keys[name].mask)))
        for other in sorted(survivors):
            # The survivor added this mask with 1 where its own name comes first: the opposite is due.
            made.append(Mask(agreed(session, "mask", (name, private), (other, keys[other].mask)), -1 if other < name else 1))
    return made


def _hash(seed: bytes) -> str:
    return hashlib.sha256(seed).hexdigest()


def _public(key: bytes) -> str:
    return X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw().hex()


def _secret(
    session: Session,
    of: str,
    revealed: Mapping[str, Mapping[str, str]],
    false: set[str],
    committed: tuple[Callable[[bytes], str], str],
) -> bytes:
    """The secret of one that fits what it committed to: (how, and what came). Who is found to have revealed a `false` share comes last for
    the next."""
    public, said = committed
    shares = {name: _number(given[of]) for name, given in sorted(revealed.items()) if of in given}
    given = sorted((name for name, share in shares.items() if share is not None), key=lambda name: (name in false, name))
    if len(given) < session.threshold:
        raise Problem("secure.few", got=len(given), wanted=session.threshold)
    for left_out in islice(_left_out(given, session.threshold), MOST_TRIES):
        used = list(islice((name for name in given if name not in left_out), session.threshold))
        secret = shamir.combine({session.point(name): shares[name] or 0 for name in used})
        if secret < 2**256 and public(found := secret.to_bytes(32, "big")) == said:
            false.update(left_out)
            return found
    raise Problem("secure.share", hospital=of)


def _left_out(given: Sequence[str], enough: int) -> Iterator[tuple[str, ...]]:
    """Nobody, each one, each two, ...: as many as can be missed."""
    return chain.from_iterable(combinations(given, count) for count in range(len(given) - enough + 1))


def _number(share: str) -> int | None:
    try:
        return int(share, 16)
    except ValueError:
        return None
