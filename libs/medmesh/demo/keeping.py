"""The keepers of the demonstration's roster, played by one key that lies outside the platform's folder."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from medmesh.embedded import files
from medmesh.security import signing
from medmesh.security.roster import Roster
from medmesh.security.roster_file import NAME, Workbook, begun, log_only
from medmesh.security.signing import Signer


class Keepers:
    """Makes the roster, puts keys into it, signs and installs each version on the platform below `data`."""

    def __init__(self, data: Path) -> None:
        trust = json.loads((data / "trust.json").read_text())
        self._key, self._target = Signer.create("keeper:ding"), data / NAME
        draft = begun(trust["platform"], [self._key.vkey], 1, log_only(trust["log_key"]), datetime.now(UTC))
        self._book: Workbook = draft.signed(self._key)
        self._install()

    @property
    def pin(self) -> str:
        """What is read aloud to hospitals and auditors."""
        return self._book.believed().pin

    @property
    def roster(self) -> Roster:
        """The newest version."""
        return self._book.believed().roster

    def add(self, *vkeys: str, roles: tuple[str, ...] = ()) -> None:
        """A version with these keys, as after a ceremony."""
        for vkey in vkeys:
            self._book = self._book.with_member(datetime.now(UTC), vkey, roles)
        self._book = self._book.signed(self._key)
        self._install()

    def add_hospitals(self, *folders: Path) -> None:
        """The hospitals of these nodes, each of which read the fingerprint of its own key."""
        self.add(*(signing.public_of(folder / "secrets" / "organisation.key") for folder in folders))

    def watched(self, policy: str) -> None:
        """A version that demands these witnesses of the log."""
        self._book = self._book.edited(datetime.now(UTC), policy=policy).signed(self._key)
        self._install()

    def _install(self) -> None:
        files.write(self._target, self._book.believed().document(), 0o644)
