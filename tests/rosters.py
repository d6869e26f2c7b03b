"""A roster for tests: one keeper, and whoever a test names gets a key and an entry, as after a ceremony."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from medmesh.contracts.governance import ApprovalView
from medmesh.embedded import files
from medmesh.ledger import note
from medmesh.security.roster import Member, Roster
from medmesh.security.roster_file import Workbook, begun, log_only
from medmesh.security.signing import Signer
from medmesh.security.statements import Acceptance, Decision, sign

CHECKER = "person:checker@platform"


@dataclass
class Rosters:
    """The keeper's desk of a test: `path` is the file that services read."""

    path: Path
    keeper: Signer
    book: Workbook
    signers: dict[str, Signer] = field(default_factory=dict)

    @classmethod
    def create(cls, path: Path, policy: str = "", platform: str = "medmesh") -> Rosters:
        """A first version with nobody in it, laid down."""
        keeper = Signer.create("keeper:ding")
        policy = policy or log_only(Signer.create("medmesh/log").vkey)
        made = cls(path, keeper, begun(platform, [keeper.vkey], 1, policy, datetime.now(UTC)).signed(keeper))
        made.lay_down()
        return made

    def lay_down(self) -> None:
        """For the services."""
        files.write(self.path, self.book.believed().document(), 0o644)

    @property
    def pin(self) -> str:
        """What would be read aloud."""
        return self.book.believed().pin

    def add(self, vkey: str, *roles: str) -> None:
        """Put a key into the next version, sign it, lay it down; a known one stays."""
        known = self.book.believed().roster
        if all(member.key != vkey for member in (*known.people, *known.hospitals)):
            self.book = self.book.with_member(datetime.now(UTC), vkey, roles).signed(self.keeper)
            self.lay_down()

    def add_hospitals(self, *names: str) -> None:
        """Keys of their own for all of them, in one version."""
        if not names:
            return
        now = datetime.now(UTC)
        for name in names:
            made = self.signers[f"hospital:{name}"] = Signer.create(f"hospital:{name}")
            self.book = self.book.with_member(now, made.vkey)
        self.book = self.book.signed(self.keeper)
        self.lay_down()

    def known(self, *hospitals: str) -> None:
        """Those that have no key yet get one."""
        self.add_hospitals(*self.present().lacks(hospitals))

    def end(self, name: str, until: datetime, *, compromised: bool = False) -> None:
        """End somebody's keys."""
        self.book = self.book.ended(datetime.now(UTC), name, until, compromised).signed(self.keeper)
        self.lay_down()

    def rule(self, **changed: object) -> None:
        """Change a rule of the roster."""
        self.book = self.book.edited(datetime.now(UTC), **changed).signed(self.keeper)
        self.lay_down()

    def signer(self, name: str, *roles: str) -> Signer:
        """The key of somebody, who is in the roster from the first use on."""
        if name not in self.signers:
            self.signers[name] = Signer.create(name)
            self.add(self.signers[name].vkey, *(roles or (("approver",) if name.startswith("person:") else ())))
        return self.signers[name]

    def present(self) -> Roster:
        """The newest version."""
        return self.book.believed().roster


def roster_of(*signers: Signer, role: str = "approver", needed: int = 1) -> Roster:
    """A roster as it is after it was verified, for rules that need no file."""
    start = datetime(2026, 1, 1, tzinfo=UTC)

    def members(kind: str, roles: Sequence[str]) -> tuple[Member, ...]:
        return tuple(Member(key=one.vkey, roles=tuple(roles), since=start) for one in signers if one.name.startswith(kind))

    return Roster(
        platform="medmesh",
        version=1,
        made=start,
        expires=datetime.now(UTC) + timedelta(days=400),
        keepers=(Signer.create("keeper:ding").vkey,),
        threshold=1,
        people=members("person:", (role,)),
        hospitals=members("hospital:", ()),
        approvals={"*": needed},
        policy=log_only(Signer.create("medmesh/log").vkey),
    )


def decision(signer: Signer, view: ApprovalView | None = None, **said: object) -> str:
    """A signed decision on what `view` shows; `said` is what it says instead."""
    values: dict[str, object] = {"made": datetime.now(UTC), "approve": True}
    if view is not None:
        values |= {name: getattr(view, name) for name in ("approval", "action", "target", "digest", "requester", "expires")}
    return sign(Decision.model_validate(values | said), signer)


def acceptance(signer: Signer, federation: str, plan: str, hospital: str | None = None) -> str:
    """A hospital's signed acceptance."""
    name = hospital or note.parse_key(signer.vkey).name.removeprefix("hospital:")
    return sign(Acceptance(made=datetime.now(UTC), federation=federation, plan=plan, hospital=name), signer)
