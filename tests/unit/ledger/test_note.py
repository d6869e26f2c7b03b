"""Signed notes, cosignatures and policies: what is believed, what is ignored, and what is said of the rest."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger.cosignature import cosign, witness_key
from medmesh.ledger.note import Checkpoint, open_note, parse_checkpoint, parse_key, signature_line, split
from medmesh.ledger.policy import demanding, parse_policy

# Always the same ones: they stand in the names of cases, which every worker of a run must find alike.
LOG, OTHER, FIRST, SECOND, THIRD = (Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in range(1, 6))
ORIGIN = "log.example/1"
VKEY = note.verifier_key(ORIGIN, LOG.public_key())
CHECKPOINT = Checkpoint(ORIGIN, 7, b"r" * 32)
TEXT = CHECKPOINT.text()
NOTE = note.sign(TEXT, ORIGIN, LOG)


def vkey(name: str, key: Ed25519PrivateKey) -> str:
    return str(witness_key(name, key))


def code(work: Any, *arguments: Any) -> str:
    with pytest.raises(Problem) as caught:
        work(*arguments)
    return caught.value.code


# --- notes ------------------------------------------------------------------------------------------------------------


def test_lines_of_unknown_keys_are_ignored_and_those_of_known_ones_must_be_right() -> None:
    strangers = "".join(signature_line(witness_key(f"w{i}.example", THIRD), bytes(72)) for i in range(16))
    same_name = signature_line(parse_key(note.verifier_key(ORIGIN, OTHER.public_key())), bytes(64))
    known = cosign(TEXT, "first.example", FIRST, 1_700_000_000)
    opened = open_note(NOTE + strangers + same_name + known, [parse_key(VKEY)], [witness_key("first.example", FIRST)])
    assert opened.text == TEXT
    assert opened.signers == {parse_key(VKEY): None, witness_key("first.example", FIRST): 1_700_000_000}
    assert len(split(NOTE + strangers + same_name + known)[1]) == 19

    wrong = signature_line(parse_key(VKEY), bytes(64))
    assert code(open_note, NOTE + wrong, [parse_key(VKEY)]) == "ledger.signature"
    assert code(open_note, f"{TEXT}\n{same_name}", [parse_key(VKEY)]) == "ledger.unsigned"
    assert code(open_note, NOTE + known.replace("first", "first"), [witness_key("second.example", SECOND)]) == "ledger.unsigned"


@pytest.mark.parametrize(
    "broken",
    [
        NOTE.replace("\n\n", "\n"),  # no signatures
        NOTE[:-1],  # last line cut
        NOTE.replace("7\n", "7\r\n"),
        NOTE.replace("7\n", "7\t\n"),
        NOTE.replace("— ", "- "),
        NOTE.replace("— ", "—  "),
        NOTE.replace("— log", "— l+og"),
        NOTE.replace("— log", "— l\u00a0og"),
        NOTE.encode().replace(b"7\n", b"\xff\n"),
        NOTE[:-3] + "\n",  # base64 cut
        f"{TEXT}\n— {ORIGIN} AAAA\n",  # nothing behind the key id
        NOTE + "\n",
        f"{TEXT}\n" + signature_line(parse_key(VKEY), bytes(64)) * 65,
        "",
        "\n\n",
    ],
)
def test_what_is_no_note_is_refused_before_any_key_is_looked_at(broken: str | bytes) -> None:
    assert code(open_note, broken, [parse_key(VKEY)]) == "ledger.note"


def test_a_signature_has_one_spelling() -> None:
    """Base64 has spare bits at its end; if they were free, a witness line could be altered unseen."""
    encoded = NOTE.rstrip("\n").rpartition(" ")[2]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    padding = len(encoded) - len(encoded.rstrip("="))
    assert padding
    last = encoded[-padding - 1]
    twin = encoded[: -padding - 1] + alphabet[alphabet.index(last) ^ 1] + "=" * padding
    assert base64.b64decode(twin) == base64.b64decode(encoded)
    assert code(note.verify, NOTE.replace(encoded, twin), VKEY) == "ledger.note"


@pytest.mark.parametrize(
    "text",
    [
        "o\n7\n", "o\n07\n" + base64.b64encode(bytes(32)).decode() + "\n", "o\n-1\n" + base64.b64encode(bytes(32)).decode() + "\n",
        "o\n٧\n" + base64.b64encode(bytes(32)).decode() + "\n", "o\n9223372036854775808\n" + base64.b64encode(bytes(32)).decode() + "\n",
        "o\n7\n" + base64.b64encode(bytes(31)).decode() + "\n", "\n7\n" + base64.b64encode(bytes(32)).decode() + "\n",
        TEXT + "\n", TEXT[:-1],
    ],
)  # fmt: skip
def test_what_is_no_checkpoint(text: str) -> None:
    assert code(parse_checkpoint, text) == "ledger.checkpoint"


def test_extension_lines_are_allowed_and_signed() -> None:
    assert parse_checkpoint(TEXT + "extension\n") == CHECKPOINT
    extended = note.sign(TEXT + "extension\n", ORIGIN, LOG)
    assert note.verify(extended, VKEY).endswith("extension\n")
    assert code(note.verify, extended.replace("extension", "Extension"), VKEY) == "ledger.signature"


@pytest.mark.parametrize("broken", ["", "a+b", VKEY.replace("log", "log "), VKEY[:-4], VKEY.replace("+", "+0", 1), VKEY + "A", "x" + VKEY])
def test_keys_are_of_one_piece(broken: str) -> None:
    assert code(parse_key, broken) == "ledger.key"
    assert str(parse_key(VKEY)) == VKEY


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_problem(data: bytes) -> None:
    for work in (lambda: split(data), lambda: parse_key(data.decode("latin-1")), lambda: parse_policy(data)):
        try:
            work()
        except Problem:
            continue


# --- cosignatures -----------------------------------------------------------------------------------------------------


def test_a_cosignature_is_over_its_time_and_the_whole_text() -> None:
    line = cosign(TEXT, "first.example", FIRST, 1_700_000_000)
    raw = base64.b64decode(line.split(" ")[2])
    FIRST.public_key().verify(raw[12:], f"cosignature/v1\ntime 1700000000\n{TEXT}".encode())  # tlog-cosignature, Ed25519 signed message
    moved = signature_line(witness_key("first.example", FIRST), (1_700_000_001).to_bytes(8, "big") + raw[12:])
    assert code(open_note, NOTE + moved, [parse_key(VKEY)], [witness_key("first.example", FIRST)]) == "ledger.signature"
    other = note.sign(Checkpoint(ORIGIN, 8, b"r" * 32).text(), ORIGIN, LOG)
    assert code(open_note, other + line, [parse_key(VKEY)], [witness_key("first.example", FIRST)]) == "ledger.signature"
    assert parse_key(vkey("first.example", FIRST)) == witness_key("first.example", FIRST)
    # A log's signature is no witness's, although the same key may have made both.
    assert witness_key(ORIGIN, LOG) != parse_key(VKEY)


# --- policies ---------------------------------------------------------------------------------------------------------

LINES = f"""# two hospitals and the regulator
log {VKEY} https://audit.example/log
witness renji {vkey("renji.example", FIRST)} http://renji.example:8443
witness\thuashan\t{vkey("huashan.example", SECOND)}
witness regulator {vkey("regulator.example", THIRD)}

  group hospitals any renji huashan
group both all hospitals regulator
quorum both
"""
COSIGNED = {
    "renji": cosign(TEXT, "renji.example", FIRST, 1), "huashan": cosign(TEXT, "huashan.example", SECOND, 2),
    "regulator": cosign(TEXT, "regulator.example", THIRD, 3),
}  # fmt: skip


@pytest.mark.parametrize(
    ("who", "enough"),
    [
        ((), False), (("renji",), False), (("renji", "huashan"), False), (("regulator",), False),
        (("renji", "regulator"), True), (("regulator", "huashan"), True), (("renji", "huashan", "regulator"), True),
    ],
)  # fmt: skip
def test_a_policy_says_whether_it_is_fulfilled_what_it_wants_and_what_it_got(who: tuple[str, ...], enough: bool) -> None:
    policy = parse_policy(LINES.encode())
    signed = NOTE + "".join(COSIGNED[name] for name in who)
    if enough:
        found = policy.verify(signed)
        assert found.checkpoint == CHECKPOINT
        assert set(found.witnesses) == set(who)
        return
    with pytest.raises(Problem) as caught:
        policy.verify(signed)
    assert caught.value.code == "ledger.quorum"
    assert caught.value.params == {"wanted": "2 of (1 of (renji, huashan), regulator)", "got": ", ".join(sorted(who)) or "-"}


def test_a_policy_wants_its_log_under_its_own_name() -> None:
    policy = parse_policy(f"log {VKEY}\nquorum none\n".encode())
    assert policy.verify(NOTE).log == parse_key(VKEY)
    foreign = note.sign(Checkpoint("another.example/log", 7, b"r" * 32).text(), ORIGIN, LOG)
    assert code(policy.verify, foreign) == "ledger.origin"
    assert code(policy.verify, note.sign(TEXT, ORIGIN, OTHER)) == "ledger.unsigned"
    assert code(policy.verify, note.sign("no checkpoint\n", ORIGIN, LOG)) == "ledger.checkpoint"
    assert code(demanding, vkey("w", FIRST)) == code(demanding, VKEY, VKEY) == "ledger.key"
    demand = demanding(VKEY, vkey("renji.example", FIRST), vkey("huashan.example", SECOND))
    assert code(demand.verify, NOTE + COSIGNED["renji"]) == "ledger.quorum"
    assert demand.verify(NOTE + COSIGNED["renji"] + COSIGNED["huashan"]).checkpoint == CHECKPOINT


W = f"witness a {vkey('a.example', FIRST)}\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1), ("quorum a\n", 1), (f"{W}quorum none\nquorum none\n", 3), (f"{W}{W}quorum a\n", 2), (f"{W}group a any a\nquorum a\n", 2),
        (f"{W}group g 0 a\nquorum g\n", 2), (f"{W}group g 2 a\nquorum g\n", 2), (f"{W}group g 01 a\nquorum g\n", 2),
        (f"{W}group g any b\nquorum g\n", 2), (f"{W}group g any none\nquorum g\n", 2), (f"{W}group g any\nquorum g\n", 2),
        (f"{W}group g any a\ngroup h any a\nquorum g\n", 3), (f"{W}group g 2 a a\nquorum g\n", 2),
        (f"witness none {W[10:]}quorum none\n", 1),
        (f"witness a {VKEY}\nquorum a\n", 1), (f"log {vkey('a', FIRST)}\nquorum none\n", 1), (f"log {VKEY}\nlog {VKEY}\nquorum none\n", 2),
        (f"log {VKEY}\n\x0bquorum none\n", 2), (f"log {VKEY}\r\nquorum none\n", 1), (f"{W}quorum none", 2), ("policy x\nquorum none\n", 1),
        (f"{W}", 2),
    ],
)  # fmt: skip
def test_what_is_no_policy_and_in_which_line(text: str, line: int) -> None:
    with pytest.raises(Problem) as caught:
        parse_policy(text.encode())
    assert (caught.value.code, caught.value.params["line"]) == ("ledger.policy", line), caught.value


def test_names_in_a_policy_are_bytes_and_many_are_accepted() -> None:
    keys = [Ed25519PrivateKey.generate() for _ in range(32)]
    lines = [f"witness 医院{i} {vkey(f'w{i}', key)}".encode() for i, key in enumerate(keys)]
    lines += [b"group all 17 " + b" ".join(line.split(b" ")[1] for line in lines), b"# \xff\xfe", b"quorum all", b""]
    assert parse_policy(b"\n".join(lines)).groups["all"].threshold == 17
    kelvin = f"witness K {vkey('a', FIRST)}\nwitness \u212a {vkey('b', SECOND)}\nquorum K\n"
    assert len(parse_policy(kelvin.encode()).witnesses) == 2
