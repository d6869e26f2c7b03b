"""The roster: only its keepers change it, a version at a time, and no key under it disappears or comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.rosters import decision, roster_of

from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.security import roster, signing
from medmesh.security.roster import Roster, believe
from medmesh.security.roster_file import RosterFile, Workbook, begun, log_only
from medmesh.security.signing import Signer
from medmesh.security.statements import Acceptance, CodeApproval, Decision, sign

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
LOG = Signer.create("medmesh/log")
ZHAO, QIAN, SUN = (Signer.create(f"keeper:{name}") for name in ("zhao", "qian", "sun"))
WU, RENJI = Signer.create("person:wu@platform"), Signer.create("hospital:renji")


def code(call: Callable[..., object], *arguments: object, **named: object) -> str:
    try:
        call(*arguments, **named)
    except Problem as problem:
        return problem.code
    return ""


def book() -> Workbook:
    """Two of three keepers, one approver."""
    made = begun("medmesh", [ZHAO.vkey, QIAN.vkey, SUN.vkey], 2, log_only(LOG.vkey), NOW)
    return made.with_member(NOW, WU.vkey, ["approver"]).signed(ZHAO).signed(QIAN)


def forged(before: str, by: list[Signer], **changed: object) -> str:
    """The version after `before`, as somebody writes it who can write anything and has these keys."""
    text = note.split(before)[0]
    former = roster.read(text)
    import hashlib

    step = {"version": former.version + 1, "previous": hashlib.sha256(text.encode()).hexdigest(), **changed}
    content = roster.text(former.model_copy(update=step))
    lines = [note.signature_line(note.parse_key(one.vkey), note.split(one.sign(content))[1][0][1][4:]) for one in by]
    return f"{content}\n{''.join(lines)}"


def test_a_version_counts_when_enough_keepers_of_the_former_and_of_its_own_signed_it() -> None:
    first = book()
    assert [first.believed().roster.version, first.believed().roster.people[0].name] == [1, "person:wu@platform"]
    draft = first.with_member(NOW, RENJI.vkey)
    assert len(draft.versions) == 1, "a change counts for nothing before it is signed"
    one = draft.signed(SUN)
    assert (len(one.versions), len(one.lines)) == (1, 1)
    assert len(one.signed(SUN).versions) == 1, "the same keeper twice is one keeper"
    whole = one.signed(ZHAO)
    assert whole.believed().roster.has_hospital(RENJI.vkey)
    assert whole.believed().pin == first.believed().pin, "the pin is the first version's, for ever"
    assert code(draft.signed, WU) == "roster.not_a_keeper"
    assert code(draft.edited(NOW, made=NOW).signed, Signer.create(ZHAO.name)) == "roster.not_a_keeper"


def test_keepers_are_replaced_by_those_before_and_cannot_appoint_themselves() -> None:
    first = book()
    he, li = Signer.create("keeper:he"), Signer.create("keeper:li")
    changed = first.edited(NOW, keepers=(he.vkey, li.vkey))
    alone = changed.signed(he).signed(li)
    assert len(alone.versions) == 1, "the new ones sign it, and the old ones did not"
    assert len(alone.signed(ZHAO).signed(QIAN).versions) == 2
    assert code(first.believed().extended, [forged(first.versions[0], [he, li], keepers=(he.vkey, li.vkey))]) == "roster.unsigned"


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("one keeper of two", "roster.unsigned"),
        ("nobody who is a keeper", "roster.unsigned"),
        ("a version left out", "roster.version"),
        ("another history", "roster.not_successor"),
        ("another platform", "roster.not_successor"),
        ("somebody taken out", "roster.taken_out"),
        ("a threshold of none", "roster.form"),
        ("a person among hospitals", "roster.form"),
        ("one key under two names", "roster.form"),
        ("no approver needed", "roster.form"),
        ("a text changed after signing", "ledger.signature"),
    ],
)
def test_whatever_is_wrong_with_a_version_it_is_not_taken(what: str, wanted: str) -> None:
    first = book()
    before, both = first.versions[0], [ZHAO, QIAN]
    people = first.believed().roster.people
    twice = people[0].model_copy(update={"key": str(note.VerifierKey("person:he@platform", 1, note.parse_key(WU.vkey).public))})
    versions = {
        "one keeper of two": lambda: forged(before, [ZHAO]),
        "nobody who is a keeper": lambda: forged(before, [WU, LOG]),
        "a version left out": lambda: forged(before, both, version=3),
        "another history": lambda: forged(before, both, previous="0" * 64),
        "another platform": lambda: forged(before, both, platform="other"),
        "somebody taken out": lambda: forged(before, both, people=()),
        "a threshold of none": lambda: forged(before, both, threshold=0),
        "a person among hospitals": lambda: forged(before, both, hospitals=people),
        "one key under two names": lambda: forged(before, both, people=(*people, twice)),
        "no approver needed": lambda: forged(before, both, approvals={"*": 0}),
        "a text changed after signing": lambda: forged(before, both).replace('"medmesh"', '"medmeSh"', 1),
    }
    believed = first.believed()
    assert code(believed.extended, [versions[what]()]) == wanted
    assert believed.extended([forged(before, both)]).roster.version == 2, "the same without the mistake is taken"


def test_a_fingerprint_pins_one_first_version() -> None:
    first = book()
    other = begun("medmesh", [Signer.create("keeper:zhao").vkey], 1, log_only(LOG.vkey), NOW)
    pin = first.believed().pin
    assert [len(group) for group in pin.split()] == [5] * 8
    assert believe(first.versions, pin.replace(" ", "")).roster.version == 1
    wrong = f"{(int(pin[0]) + 1) % 10}{pin[1:]}"
    assert code(believe, first.versions, wrong) == "roster.pin"
    key = Signer("keeper:zhao", ZHAO.key)
    lone = replace(other, draft=roster.read(roster.text(other.draft.model_copy(update={"keepers": (key.vkey,)})))).signed(key)  # type: ignore[union-attr]
    assert code(believe, lone.versions, pin) == "roster.pin", "a keeper's key alone makes no second beginning"
    grown = first.with_member(NOW, RENJI.vkey).signed(ZHAO).signed(SUN)
    assert believe(grown.versions, grown.believed().present).notes == grown.versions[1:], "a later version can be pinned as well"


def test_an_ended_key_judges_by_when_it_was_signed_and_a_compromised_one_by_when_it_was_seen() -> None:
    def said(made: datetime, present: Roster, seen: datetime) -> str:
        about = {"approval": "a", "action": "x", "target": "t", "digest": "0" * 64, "requester": "r", "expires": made}
        return code(present.person, decision(WU, made=made, **about), Decision, seen, ["approver"])

    first = book()
    later = NOW + timedelta(days=10)
    ended = first.ended(later, WU.name, later, False).signed(ZHAO).signed(QIAN).believed().roster
    stolen = first.ended(later, WU.name, later, True).signed(ZHAO).signed(QIAN).believed().roster
    before, after = later - timedelta(days=1), later + timedelta(days=1)
    assert said(before, first.believed().roster, after) == said(before, ended, after) == ""
    assert said(after, ended, after) == said(after, stolen, after) == "roster.ended"
    assert said(before, stolen, after) == "roster.ended", "who has the key can write any date"
    assert said(before, stolen, before) == "", "a log that was witnessed in time says that it was there"
    assert said(NOW - timedelta(days=1), ended, after) == "roster.early"
    assert said(after, first.believed().roster, before) == "roster.early", "signed in the future"
    back = forged(
        first.ended(later, WU.name, later, True).signed(ZHAO).signed(QIAN).versions[1], [ZHAO, QIAN], people=first.newest().people
    )
    assert (
        code(roster.successor, first.ended(later, WU.name, later, True).signed(ZHAO).signed(QIAN).versions[1], back) == "roster.taken_out"
    )


def test_a_statement_is_of_one_kind_by_one_signer_over_its_exact_text() -> None:
    present = roster_of(WU, RENJI)
    seen = datetime.now(UTC)
    accepted = Acceptance(made=seen, federation="f", plan="0" * 64, hospital="renji")
    signed = sign(accepted, RENJI)
    assert present.hospital(signed, Acceptance, seen, "renji") == accepted
    assert code(present.hospital, signed, CodeApproval, seen, "renji") == "statement.kind"
    assert code(present.hospital, signed, Acceptance, seen, "xiehe") == "roster.unknown"
    assert code(present.hospital, sign(accepted, WU), Acceptance, seen, "renji") == "roster.unknown", "a person is no hospital"
    assert code(present.hospital, signed.replace('"f"', '"g"'), Acceptance, seen, "renji") == "ledger.signature"
    loose = RENJI.sign(signed.split("\n\n")[0].replace('"f"', ' "f"') + "\n")
    assert code(present.hospital, loose, Acceptance, seen, "renji") == "statement.form"
    for nonsense in ("", "x", "medmesh-acceptance-v1\n{}\n", "\0"):
        assert code(present.hospital, nonsense, Acceptance, seen, "renji").startswith(("ledger.", "roster."))
    stranger = note.split(WU.sign("x\n"))[1]
    padded = signed + note.signature_line(note.parse_key(WU.vkey), stranger[0][1][4:])
    assert present.hospital(padded, Acceptance, seen, "renji") == accepted, "lines of others are passed over"
    he = Signer.create("person:he@platform")
    approval = sign(CodeApproval(made=seen, package="0" * 64, hospital="renji", by="wu"), WU)
    line = note.signature_line(note.parse_key(he.vkey), note.split(he.sign(f"{note.split(approval)[0]}"))[1][0][1][4:])
    both = (approval + line, roster_of(WU, he), CodeApproval, seen)
    assert code(both[1].person, both[0], *both[2:], ()) == "roster.unknown", "two who may sign: nobody says which of them it is"


def test_a_key_file_opens_with_its_passphrase_alone(private: Path) -> None:
    file = private / "signing.key"
    assert code(signing.save, file, WU, "short") == "signing.passphrase_short"
    signing.save(file, WU, "four words are enough")
    assert file.stat().st_mode & 0o777 == 0o600
    assert WU.key.private_bytes_raw().hex() not in file.read_text()
    assert signing.public_of(file) == WU.vkey
    assert signing.load(file, "four words are enough").vkey == WU.vkey
    assert code(signing.load, file, "four words are not") == code(signing.load, file) == "signing.passphrase"
    assert code(signing.save, file, RENJI, "four words are enough") == "signing.key_exists"
    exchanged = file.read_text().replace(WU.vkey, RENJI.vkey)
    file.write_text(exchanged)
    assert code(signing.load, file, "four words are enough") == "signing.passphrase", "bound to whose it is"
    file.chmod(0o644)
    assert code(signing.public_of, file) == "security.key_exposed"


def test_the_file_is_read_again_when_it_changes_and_refused_when_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    read = RosterFile(path)
    assert code(read) == "roster.none"
    now = datetime.now(UTC)
    made = begun("medmesh", [ZHAO.vkey], 1, log_only(LOG.vkey), now).signed(ZHAO)
    made.save(path)
    assert read().version == 1
    made.with_member(now, RENJI.vkey).save(path)
    assert read().version == 1, "what is not signed is not read"
    made.with_member(now, RENJI.vkey).signed(ZHAO).save(path)
    assert read().version == 2
    begun("medmesh", [ZHAO.vkey], 1, log_only(LOG.vkey), now - timedelta(days=401)).signed(ZHAO).save(path)
    assert code(read) == "roster.expired"
    path.write_text('{"versions": "x"}')
    assert code(read) in ("roster.form", "ledger.note")


def test_which_requests_must_be_signed_is_the_keepers_word_and_older_rosters_say_nothing_of_it() -> None:
    begun_book = book()
    before = begun_book.versions[-1]
    assert "signed_requests" not in before, "what keepers signed before there was such a list still reads the same"
    strict = begun_book.edited(NOW, signed_requests=("federation.start",)).signed(ZHAO).signed(QIAN)
    assert strict.believed().roster.signed_requests == ("federation.start",)
    assert code(begun_book.edited, NOW, signed_requests=("hospital.enrol",)) == "roster.form"
    assert code(believe, [before, forged(before, [SUN], signed_requests=("model.release",))]) == "roster.unsigned"
