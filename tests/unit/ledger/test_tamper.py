"""The tamper matrix: whatever is done to a copy of the log is found, by the check that is named here, and nothing clean is accused.

The attacker owns every file and may own the log's key; he does not own the witnesses' keys nor the checkpoint an auditor kept.
"""

from __future__ import annotations

import base64
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests import ledgers
from tests.ledgers import Ledger, entries, entry, flip, ledger, policy

from medmesh.ledger import tiles
from medmesh.ledger.report import INCOMPLETE, TAMPERED, WHOLE

SIZE = 700
SEQ = 300
THIEF = Ed25519PrivateKey.generate()


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return ledger(tmp_path_factory.mktemp("ledger"), SIZE)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return ledger(tmp_path_factory.mktemp("small"), 260)


@pytest.fixture
def copy(original: Ledger, tmp_path: Path) -> Ledger:
    shutil.copytree(original.folder, tmp_path / "copy")
    return replace(original, folder=tmp_path / "copy")


def lines(copy: Ledger, change: Callable[[list[bytes]], Any]) -> None:
    """Change the list of stored bodies."""
    file = copy.folder / "bodies.jsonl"
    content = file.read_bytes().splitlines(keepends=True)
    change(content)
    file.write_bytes(b"".join(content))


def renumbered(seq: int, of: int) -> bytes:
    return b'{"seq": %d, %s' % (seq, entry(of).line)


def bundle(copy: Ledger, number: int, change: Callable[[list[bytes]], Any]) -> None:
    """Change the leaves of a bundle."""
    file = copy.folder / tiles.path("entries", number, min(256, SIZE - number * 256))
    leaves = tiles.unbundle(file.read_bytes())
    change(leaves)
    file.write_bytes(tiles.bundle(leaves))


def rechained(copy: Ledger, change: Callable[[list[ledgers.Entry]], Any], key: Ed25519PrivateKey | None = None) -> None:
    """Another history, hashed anew from end to end; signed with `key`, else with the old signature under the new root."""
    content = list(entries(SIZE))
    change(content)
    old = copy.note()
    shutil.rmtree(copy.folder)
    new = ledgers.write(copy.folder, content, key=key or THIEF, witnesses=False)
    if key is None:
        text = old.split("\n\n")[1]
        (copy.folder / "checkpoint").write_text(f"{new.text()}\n{text}")


def forged(content: list[ledgers.Entry]) -> None:
    """Another body at SEQ, with a leaf that fits."""
    content[SEQ] = entry(SEQ, salt=b"another salt 16b")


def put(items: list[Any], place: int, item: Any) -> None:
    items[place] = item


def exchange(items: list[Any], a: int, b: int) -> None:
    items[a], items[b] = items[b], items[a]


def one_bit_of_a_body(copy: Ledger) -> None:
    seq, salt, body = SEQ, entry(SEQ).salt, bytearray(entry(SEQ).body)
    body[body.index(b'"out":0') + 6] ^= 4
    line = b'{"seq": %d, "salt": "%s", "body": "%s"}\n' % (seq, base64.b64encode(salt), base64.b64encode(bytes(body)))
    lines(copy, lambda content: put(content, SEQ, line))


def one_bit_of(path: str) -> Callable[[Ledger], None]:
    return lambda copy: flip(copy.folder / path, random.Random(path)) and None


def one_bit_of_signature(line: int) -> Callable[[Ledger], None]:
    """Of the base64 of the n-th signature line, so that it stays base64."""

    def change(copy: Ledger) -> None:
        text = copy.note().split("\n")
        dash, name, encoded = text[4 + line].split(" ")
        raw = bytearray(base64.b64decode(encoded))
        raw[40] ^= 1
        text[4 + line] = " ".join((dash, name, base64.b64encode(raw).decode()))
        (copy.folder / "checkpoint").write_text("\n".join(text))

    return change


def without_line(line: int) -> Callable[[Ledger], None]:
    def change(copy: Ledger) -> None:
        text = copy.note().split("\n")
        del text[4 + line]
        (copy.folder / "checkpoint").write_text("\n".join(text))

    return change


def rolled_back(copy: Ledger) -> None:
    shutil.rmtree(copy.folder)
    ledgers.write(copy.folder, entries(SIZE - 100))


def removed(path: str) -> Callable[[Ledger], None]:
    return lambda copy: (copy.folder / path).unlink()


MATRIX: dict[str, tuple[Callable[[Ledger], None], str, int, dict[str, Any]]] = {
    "one bit of a body": (one_bit_of_a_body, "body", TAMPERED, {"seq": SEQ, "field": "out"}),
    "one bit of a leaf": (
        lambda c: bundle(c, 1, lambda leaves: put(leaves, SEQ - 256, leaves[SEQ - 256].replace(b"2026-11-01", b"2026-11-00"))),
        "leaf", TAMPERED, {"seq": SEQ},
    ),
    "one bit of a bundle's length": (
        lambda c: (c.folder / "tile/entries/001").write_bytes(b"\1" + (c.folder / "tile/entries/001").read_bytes()[1:]),
        "entries", TAMPERED, {"seq": 256},
    ),
    "one bit of a leaf's tile": (one_bit_of("tile/0/001"), "tile", TAMPERED, {}),
    "one bit of a partial tile": (one_bit_of("tile/0/002.p/188"), "tile", TAMPERED, {}),
    "one bit of an upper tile": (one_bit_of("tile/1/000.p/2"), "tile", TAMPERED, {}),
    "one digit of the size": (
        lambda c: (c.folder / "checkpoint").write_text(c.note().replace("\n700\n", "\n600\n")), "checkpoint", TAMPERED, {},
    ),
    "one bit of the log's signature": (one_bit_of_signature(0), "checkpoint", TAMPERED, {"name": ledgers.ORIGIN}),
    "one bit of a witness's line": (one_bit_of_signature(1), "checkpoint", TAMPERED, {"name": ledgers.WITNESSES[0]}),
    "the log's line dropped": (without_line(0), "checkpoint", TAMPERED, {"wanted": ledgers.ORIGIN}),
    "a witness's line dropped": (without_line(2), "witness", TAMPERED, {"got": ledgers.WITNESSES[0]}),
    "a body dropped": (lambda c: lines(c, lambda content: content.pop(SEQ)), "missing", TAMPERED, {"seq": SEQ}),
    "two bodies swapped": (
        lambda c: lines(c, lambda content: (put(content, 10, renumbered(10, 11)), put(content, 11, renumbered(11, 10)))),
        "body", TAMPERED, {"seq": 10},
    ),
    "two lines swapped": (lambda c: lines(c, lambda content: exchange(content, 10, 11)), "order", TAMPERED, {"seq": 10}),
    "a body twice": (lambda c: lines(c, lambda content: content.insert(SEQ, content[SEQ])), "order", TAMPERED, {"seq": SEQ}),
    "a body inserted": (lambda c: lines(c, lambda content: content.append(renumbered(SIZE, SIZE))), "order", TAMPERED, {"seq": SIZE}),
    "a line that is none": (lambda c: lines(c, lambda content: put(content, SEQ, b"{}\n")), "order", TAMPERED, {"after": SEQ - 1}),
    "the bodies cut": (lambda c: lines(c, lambda content: content.__delitem__(slice(SEQ, None))), "missing", TAMPERED, {"seq": SEQ}),
    "all bodies gone": (removed("bodies.jsonl"), "missing", INCOMPLETE, {}),
    "a leaf dropped": (lambda c: bundle(c, 1, lambda leaves: leaves.pop(44)), "entries", TAMPERED, {"seq": 256, "got": 255}),
    "two leaves swapped": (lambda c: bundle(c, 1, lambda leaves: exchange(leaves, 3, 9)), "leaf", TAMPERED, {"seq": 259}),
    "a leaf twice": (lambda c: bundle(c, 1, lambda leaves: put(leaves, 44, leaves[43])), "leaf", TAMPERED, {"seq": SEQ}),
    "a leaf inserted": (lambda c: bundle(c, 1, lambda leaves: leaves.insert(44, leaves[43])), "entries", TAMPERED, {"got": 257}),
    "a bundle gone": (removed("tile/entries/001"), "entries", INCOMPLETE, {"seq": 256}),
    "a tile gone": (removed("tile/0/001"), "tile", INCOMPLETE, {"part": "tile/0/001"}),
    "the checkpoint of a shorter log": (
        lambda c: (c.folder / "checkpoint").write_text(ledgers.signed(replace(c.checkpoint, size=512))), "root", TAMPERED, {"size": 512},
    ),
    "hashed anew without the key": (lambda c: rechained(c, forged), "checkpoint", TAMPERED, {"name": ledgers.ORIGIN}),
    "hashed anew with another key": (lambda c: rechained(c, forged, THIEF), "checkpoint", TAMPERED, {"wanted": ledgers.ORIGIN}),
    "hashed anew with the log's key": (lambda c: rechained(c, forged, ledgers.KEY), "witness", TAMPERED, {"got": "-"}),
}  # fmt: skip


@pytest.mark.parametrize("name", MATRIX)
def test_what_is_done_is_found_by_its_check(copy: Ledger, name: str) -> None:
    attack, check, code, named = MATRIX[name]
    attack(copy)
    report = copy.verify()
    found = {fault.check: fault.problem for fault in report.faults}
    assert report.code == code, report.faults
    assert check in found, found
    assert named.items() <= found[check].params.items()
    assert found[check].detail("zh") != found[check].detail("en")


def test_a_clean_copy_accuses_nobody(original: Ledger) -> None:
    report = original.verify(kept=original.note())
    assert (report.code, report.faults, report.notices) == (WHOLE, [], [])
    assert (report.leaves, report.bodies, report.size) == (SIZE, SIZE, SIZE)
    assert set(report.witnesses) == set(ledgers.WITNESSES)
    assert report.emitters["gateway"] == {"first": 1, "last": 140, "records": 140, "gaps": 0, "missing": 0}


@pytest.mark.parametrize("drop", ["body", "entry", "nothing"])
def test_with_the_logs_key_and_its_witnesses_asleep_only_a_kept_checkpoint_tells(copy: Ledger, drop: str) -> None:
    """An attacker with the log's key, and an auditor who demands no witness but kept what he saw last time."""
    kept = copy.note()
    changes: dict[str, Callable[[list[ledgers.Entry]], Any]] = {
        "body": forged,
        "entry": lambda content: content.__delitem__(slice(SEQ, SEQ + 1)),
        "nothing": lambda content: None,
    }
    rechained(copy, changes[drop], ledgers.KEY)
    alone = copy.verify(policy=policy(witnesses=False))
    report = copy.verify(policy=policy(witnesses=False), kept=kept)
    if drop == "nothing":
        assert (alone.code, report.code) == (WHOLE, WHOLE)
        return
    # Without the kept checkpoint a forged body is not to be seen; a dropped entry leaves a gap in its emitter's numbers.
    assert [fault.check for fault in alone.faults] == ([] if drop == "body" else ["counter"])
    assert "kept" in {fault.check for fault in report.faults}
    assert report.code == TAMPERED


def test_a_rolled_back_log_is_found_by_the_kept_checkpoint(copy: Ledger) -> None:
    kept = copy.note()
    rolled_back(copy)
    assert copy.verify().code == WHOLE  # every signature is genuine
    report = copy.verify(kept=kept)
    assert [(fault.check, fault.problem.code) for fault in report.faults] == [("kept", "ledger.rolled_back")]


def test_rewritten_history_is_found_by_resuming_too(copy: Ledger, tmp_path: Path) -> None:
    kept = copy.note()
    shutil.rmtree(copy.folder)
    content = list(entries(SIZE + 100))
    forged(content)
    ledgers.write(copy.folder, content)
    report = copy.verify(kept=kept, resume=True)
    assert ("kept", "ledger.not_an_extension") in [(fault.check, fault.problem.code) for fault in report.faults]


@pytest.mark.parametrize("before", [1, 255, 256, 257, 512, 699, 700])
def test_resuming_reads_only_what_is_new_and_trusts_nothing_else(original: Ledger, tmp_path: Path, before: int) -> None:
    earlier = ledger(tmp_path / "earlier", before)
    report = original.verify(kept=earlier.note(), resume=True)
    assert (report.code, report.start, report.bodies) == (WHOLE, before, SIZE - before), report.faults
    lines(replace(original, folder=_copied(original, tmp_path)), lambda content: put(content, SIZE - 1, content[SIZE - 2]))
    altered = replace(original, folder=tmp_path / "altered").verify(kept=earlier.note(), resume=True)
    assert (altered.code == TAMPERED) == (before < SIZE)


def _copied(original: Ledger, tmp_path: Path) -> Path:
    shutil.copytree(original.folder, tmp_path / "altered")
    return tmp_path / "altered"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda body: body.replace(b"person:li", b"person:lu"), "agents[0].who"),
        (lambda body: body.replace(b'"id":"f-300"', b'"id":"f-301"'), "entities[0].id"),
        (lambda body: body.replace(b'"rounds":', b'"rounds";'), "detail"),
        (lambda body: body.replace(b'"pou":"HRESCH"', b'"pou":"TREATX"'), "-"),  # six letters: nobody can say what stood there
        (lambda body: body.replace(b'"n":61', b'"n":1234'), "n"),
    ],
)
def test_the_field_that_differs_is_named_where_it_can_be_told(copy: Ledger, change: Callable[[bytes], bytes], field: str) -> None:
    made = entry(SEQ)
    body = change(made.body)
    assert body != made.body
    lines(copy, lambda content: put(content, SEQ, b'{"seq": %d, %s' % (SEQ, replace(made, body=body).line)))
    (fault,) = copy.verify().faults
    assert fault.problem.params == {"seq": SEQ, "field": field}


def test_lost_records_and_dates_that_run_back_are_told_apart(tmp_path: Path) -> None:
    content = [entry(seq, tick=seq * 100) for seq in range(20)]
    content[10] = entry(10, n=5)  # federation's third record is its fifth: two are missing
    content[12] = entry(12, tick=0)
    made = Ledger(tmp_path, ledgers.write(tmp_path, content))
    report = made.verify()
    assert [(fault.check, fault.problem.params["seq"]) for fault in report.faults] == [("counter", 10)]
    assert report.emitters["federation"]["missing"] == 2
    assert made.verify(tolerance=5).backwards >= 1
    assert report.backwards == 0  # within a quarter of an hour a clock may be set


def test_back_dated_records_are_noticed_with_their_field(tmp_path: Path) -> None:
    hour = 360_000
    content = [entry(seq, tick=3 * hour + seq) for seq in range(20)]
    content[12] = entry(12, tick=hour)
    report = Ledger(tmp_path, ledgers.write(tmp_path, content)).verify()
    assert report.code == WHOLE
    assert {(notice.params["seq"], notice.params["field"]) for notice in report.notices} == {(12, "h"), (12, "t"), (12, "tr")}


def test_a_body_has_one_spelling(copy: Ledger) -> None:
    """Otherwise bits of the file could be altered that nothing speaks for."""
    whole = renumbered(SEQ, SEQ)
    padded = whole.rindex(b'="}')
    first = padded - 1 if whole[padded - 1 : padded] == b"=" else padded
    twin = bytearray(whole)
    twin[first - 1] += 1  # the bits behind the last byte
    stray = whole.replace(b'"body": "', b'"body": "*')
    for other in (bytes(twin), stray, whole.replace(b'"seq": ', b'"seq":')):
        lines(copy, lambda content, other=other: put(content, SEQ, other))  # type: ignore[misc]
        assert other != whole
        assert (copy.verify().code == TAMPERED) == (other != whole.replace(b'"seq": ', b'"seq":'))


@pytest.mark.parametrize("seed", range(40))
def test_one_bit_of_any_file_is_found(small: Ledger, tmp_path: Path, seed: int) -> None:
    shutil.copytree(small.folder, tmp_path / "copy")
    random_ = random.Random(seed)
    files = sorted(path for path in (tmp_path / "copy").rglob("*") if path.is_file())
    chosen = random_.choice(files)
    place = flip(chosen, random_)
    assert replace(small, folder=tmp_path / "copy").verify().code == TAMPERED, (chosen, place)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_false_alarm_and_bounded_memory_over_a_million_entries(tmp_path: Path) -> None:
    import resource

    made = ledger(tmp_path, 1_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = made.verify()
    assert (report.code, report.faults, report.notices, report.bodies) == (WHOLE, [], [], 1_000_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024  # KiB
