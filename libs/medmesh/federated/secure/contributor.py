"""A hospital's side of a secure sum: its messages, each made from what the platform passed on and checked as if it came from an enemy.

What protects the hospital against a platform that lies: keys are signed with each hospital's own key of the roster, the contributors are
those of the signed plan, and shares are given only for a list that more than two thirds of the contributors signed. A hospital claims one
list for a round, whatever its attempts: before it gives shares for any, and before it signs one that lacks somebody. Two lists would need a
common honest claimant, so at most one sum of a round is ever opened. The list of everybody is signed with the vector, and claimed only
when it is opened: until then a smaller one may take its place (decision 0122).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from medmesh.canonical import canonical, parse
from medmesh.errors import Problem
from medmesh.federated.secure import shamir
from medmesh.federated.secure.session import Session, agreed
from medmesh.federated.secure.vectors import Mask
from medmesh.security.roster import Roster
from medmesh.security.signing import Signer
from medmesh.security.statements import Keys, SecureKeys, SecureStatement, SecureSurvivors, SecureWhole, sign

S = TypeVar("S", bound=SecureStatement)
Claim = Callable[[str, int, str], str]
"""(federation, round, list) -> the list that this hospital claimed for the round: this one if there was none before. It must be durable
before it returns: a hospital that forgets what it claimed could be asked twice."""


def statement_of(session: Session, roster: Roster, signed: str, kind: type[S], hospital: str, seen: datetime) -> S:
    """What a contributor signed for exactly this attempt. Raises `Problem` (`roster.*`, `statement.*`, `secure.stranger`)."""
    if hospital not in session.contributors:
        raise Problem("secure.stranger", hospital=hospital[:80])
    found = roster.hospital(signed, kind, seen, hospital)
    said = (found.federation, found.plan, found.round, found.attempt, found.hospital)
    if said != (session.federation, session.plan, session.round, session.attempt, hospital):
        raise Problem("statement.other", what="round")
    return found


def keys_of(session: Session, roster: Roster, signed: Mapping[str, str], seen: datetime) -> dict[str, SecureKeys]:
    """Everybody's keys. Raises `Problem`."""
    return {name: statement_of(session, roster, one, SecureKeys, name, seen) for name, one in sorted(signed.items())}


@dataclass(frozen=True)
class Revealed:
    """What a hospital gives for the one sum of a round."""

    shares: dict[str, str]
    """Hospital to one share (hexadecimal); empty where what it sealed for this one cannot be opened."""
    following: dict[str, Keys]
    """Hospital to its keys for the next round, as it signed them with its list; empty where somebody did not."""


def listed(survivors: Sequence[str]) -> str:
    """A survivor list as it is signed."""
    return hashlib.sha256(canonical(sorted(survivors))).hexdigest()


@dataclass
class Contributor:
    """One attempt. `document` and `restore` carry it over the death of its process; what they hold is secret."""

    session: Session
    hospital: str
    cipher: bytes = field(default_factory=lambda: X25519PrivateKey.generate().private_bytes_raw())
    mask: bytes = field(default_factory=lambda: X25519PrivateKey.generate().private_bytes_raw())
    seed: bytes = field(default_factory=lambda: os.urandom(32))
    peers: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Hospital to its (cipher, mask) keys."""
    channels: dict[str, str] = field(default_factory=dict)
    """Hospital to the key of the shares between it and this one: agreed on once, used to seal and, in two phases, to open."""
    sealed: dict[str, str] = field(default_factory=dict)
    """Hospital to the shares it sent, still sealed: those whose masks are in this hospital's vector."""

    def advertise(self, signer: Signer, now: datetime) -> str:
        """Message 1: the public keys of this attempt, signed with the hospital's own key."""
        return sign(SecureKeys(made=now, **self._about(), **self.public().model_dump()), signer)

    def public(self) -> Keys:
        """What others know of this attempt's secrets."""
        cipher, mask = (X25519PrivateKey.from_private_bytes(k).public_key().public_bytes_raw().hex() for k in (self.cipher, self.mask))
        return Keys(cipher=cipher, mask=mask, seed=hashlib.sha256(self.seed).hexdigest())

    def share(self, keys: Mapping[str, Keys]) -> dict[str, str]:
        """Message 2: hospital to sealed shares of this hospital's two secrets, under keys that their hospitals were found to have signed:
        by `keys_of`, or by `reveal` in the round before. Raises `Problem`; a second list of keys is refused."""
        if strangers := sorted(set(keys) - set(self.session.contributors)):
            raise Problem("secure.stranger", hospital=strangers[0][:80])
        if len(keys) < self.session.threshold:
            raise Problem("secure.few", got=len(keys), wanted=self.session.threshold)
        found = {name: (one.cipher, one.mask) for name, one in sorted(keys.items())}
        own = self.public()
        if found.get(self.hospital) != (own.cipher, own.mask):
            raise Problem("secure.key", hospital=self.hospital)
        if self.peers and self.peers != found:
            raise Problem("secure.changed", what="keys")
        flat = [key for pair in found.values() for key in pair]
        if len(set(flat)) != len(flat):
            raise Problem("secure.key", hospital="*")
        self.peers, self.channels = found, self._agreed(found)
        points = [self.session.point(name) for name in found]
        shares = [shamir.split(int.from_bytes(s, "big"), self.session.threshold, points) for s in (self.mask, self.seed)]
        return {
            name: self._seal(name, {"mask": f"{shares[0][point]:x}", "seed": f"{shares[1][point]:x}"})
            for name in found
            for point in [self.session.point(name)]
        }

    def take(self, sealed: Mapping[str, str]) -> None:
        """Keep the others' sealed shares: with them the masks are fixed. What a few sealed wrongly is kept as well, and only their secrets
        have a share less: who was sent it is not to blame. Raises `Problem`; other shares than before are refused."""
        given = dict(sealed)
        if not set(given) <= set(self.peers) or self.hospital not in given:
            raise Problem("secure.stranger", hospital=next(iter(sorted(set(given) - set(self.peers))), self.hospital)[:80])
        if len(given) < self.session.threshold:
            raise Problem("secure.few", got=len(given), wanted=self.session.threshold)
        if self.sealed and self.sealed != given:
            raise Problem("secure.changed", what="shares")
        wrong = [name for name in sorted(given) if self._unseal(name, given[name]) is None]
        if len(given) - len(wrong) < self.session.threshold:
            raise Problem("secure.sealed", hospital=wrong[0])
        self.sealed = given

    def masks(self, sealed: Mapping[str, str]) -> list[Mask]:
        """Message 3 is the vector under these masks: the hospital's own, and one with everybody whose shares arrived. Raises `Problem`."""
        if not self.sealed or self.sealed != sealed:
            self.take(sealed)
        private = X25519PrivateKey.from_private_bytes(self.mask)
        made = [Mask(self.seed, 1)]
        for name in sorted(self.sealed):
            if name != self.hospital:
                key = agreed(self.session, "mask", (self.hospital, private), (name, self.peers[name][1]))
                made.append(Mask(key, 1 if self.hospital < name else -1))
        return made

    def whole(self, signer: Signer, now: datetime, following: Keys | None = None) -> str:
        """With message 3: the list of everybody whose masks are in it, and this hospital's keys for the next round, signed. The list is
        not claimed yet."""
        return sign(SecureWhole(made=now, **self._about(), survivors=listed(list(self.sealed)), following=following), signer)

    def survive(self, survivors: Sequence[str], signer: Signer, now: datetime, claim: Claim) -> str:
        """Message 4, where somebody's is missing: the list of those whose vectors arrived, signed: once for a round.
        Raises `Problem` (`secure.opened`, ...)."""
        names = self._survivors(survivors)
        self._claim(names, claim)
        return sign(SecureSurvivors(made=now, **self._about(), survivors=listed(names)), signer)

    def reveal(self, roster: Roster, survivors: Sequence[str] | None, signed: Mapping[str, str], seen: datetime, claim: Claim) -> Revealed:
        """Message 5: of each hospital one share, of its own mask's seed if it survived, of its pairwise key if it dropped out; never of
        both. `survivors` is the list of message 4, None for that of everybody. Raises `Problem` unless as many as the threshold signed
        exactly this list, and (`secure.opened`) when another was claimed for the round."""
        names = self._survivors(self.sealed if survivors is None else survivors)
        kind = SecureWhole if survivors is None else SecureSurvivors
        if len(set(signed) & set(names)) != len(signed):
            raise Problem("secure.stranger", hospital=sorted(set(signed) - set(names))[0][:80])
        said = {name: statement_of(self.session, roster, one, kind, name, seen) for name, one in sorted(signed.items())}
        if any(one.survivors != listed(names) for one in said.values()):
            raise Problem("secure.changed", what="survivors")
        if len(signed) < self.session.threshold or self.hospital not in signed:
            raise Problem("secure.few", got=len(signed), wanted=self.session.threshold)
        self._claim(names, claim)
        opened = {name: self._unseal(name, sealed) for name, sealed in sorted(self.sealed.items())}
        following = {name: one.following for name, one in said.items() if isinstance(one, SecureWhole) and one.following is not None}
        shares = {name: found["seed" if name in names else "mask"] if found else "" for name, found in opened.items()}
        return Revealed(shares, following if set(following) == set(names) else {})

    def document(self) -> dict[str, Any]:
        """As JSON."""
        binary = {name: getattr(self, name).hex() for name in ("cipher", "mask", "seed")}
        peers = {name: list(keys) for name, keys in self.peers.items()}
        return {
            "session": asdict(self.session),
            "hospital": self.hospital,
            "peers": peers,
            "channels": self.channels,
            "sealed": self.sealed,
            **binary,
        }

    @classmethod
    def restore(cls, document: Mapping[str, Any]) -> Contributor:
        """The attempt again."""
        session = Session(**{**document["session"], "contributors": tuple(document["session"]["contributors"])})
        cipher, mask, seed = (bytes.fromhex(document[name]) for name in ("cipher", "mask", "seed"))
        peers = {name: (keys[0], keys[1]) for name, keys in document["peers"].items()}
        return cls(session, document["hospital"], cipher, mask, seed, peers, dict(document.get("channels", {})), dict(document["sealed"]))

    def _agreed(self, peers: Mapping[str, tuple[str, str]]) -> dict[str, str]:
        private = X25519PrivateKey.from_private_bytes(self.cipher)
        return {name: agreed(self.session, "seal", (self.hospital, private), (name, key)).hex() for name, (key, _) in peers.items()}

    def _about(self) -> dict[str, Any]:
        s = self.session
        return {"federation": s.federation, "plan": s.plan, "round": s.round, "attempt": s.attempt, "hospital": self.hospital}

    def _claim(self, names: Sequence[str], claim: Claim) -> None:
        digest = f"{self.session.attempt}:{listed(names)}"
        if claim(self.session.federation, self.session.round, digest) != digest:
            raise Problem("secure.opened", federation=self.session.federation, round=self.session.round)

    def _survivors(self, survivors: Collection[str]) -> list[str]:
        names = sorted(survivors)
        if len(set(names)) != len(names) or not set(names) <= set(self.sealed) or self.hospital not in names:
            raise Problem("secure.stranger", hospital=next(iter(sorted(set(names) - set(self.sealed))), self.hospital)[:80])
        if len(names) < self.session.threshold:
            raise Problem("secure.few", got=len(names), wanted=self.session.threshold)
        return names

    def _channel(self, other: str) -> AESGCM:
        if not self.channels:  # as an attempt was kept before there were any
            self.channels = self._agreed(self.peers)
        return AESGCM(bytes.fromhex(self.channels[other]))

    def _seal(self, to: str, shares: dict[str, str]) -> str:
        nonce = os.urandom(12)
        sealed = self._channel(to).encrypt(nonce, canonical(shares), self.session.context("shares", self.hospital, to))
        return base64.b64encode(nonce + sealed).decode()

    def _unseal(self, sender: str, sealed: str) -> dict[str, str] | None:
        """None of what the sender did not seal as it should."""
        try:
            raw = base64.b64decode(sealed, validate=True)
            opened = self._channel(sender).decrypt(raw[:12], raw[12:], self.session.context("shares", sender, self.hospital))
            found = parse(opened)
            if set(found) != {"mask", "seed"} or any(not 0 <= int(found[part], 16) < shamir.PRIME for part in found):
                return None
        except (InvalidTag, binascii.Error, ValueError, TypeError, json.JSONDecodeError):
            return None
        return {str(part): str(value) for part, value in found.items()}
