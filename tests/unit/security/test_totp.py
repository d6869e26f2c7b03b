"""One-time codes against the vectors of RFC 6238 appendix B, and what counts as a right one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest

from medmesh.errors import Problem
from medmesh.security import totp
from medmesh.security.keyring.file import FileKeys
from medmesh.security.sealing import Seal

# RFC 6238 appendix B with erratum 2866: seeds of 20, 32 and 64 bytes.
SEEDS = {name: (b"1234567890" * 7)[:size] for name, size in (("sha1", 20), ("sha256", 32), ("sha512", 64))}
VECTORS = [
    (59, "94287082", "46119246", "90693936"),
    (1111111109, "07081804", "68084774", "25091201"),
    (1111111111, "14050471", "67062674", "99943326"),
    (1234567890, "89005924", "91819424", "93441116"),
    (2000000000, "69279037", "90698825", "38618901"),
    (20000000000, "65353130", "77737706", "47863826"),
]
NOW = datetime(2026, 3, 1, 12, 0, 7, tzinfo=UTC)
SECRET = SEEDS["sha1"]


@pytest.mark.parametrize("vector", VECTORS, ids=[str(v[0]) for v in VECTORS])
def test_the_codes_of_the_rfc(vector: tuple[int, str, str, str]) -> None:
    step = totp.step_at(datetime.fromtimestamp(vector[0], UTC))
    for algorithm, expected in zip(SEEDS, vector[1:], strict=True):
        assert totp.code_for(SEEDS[algorithm], step, digits=8, algorithm=algorithm) == expected
    assert totp.code_for(SECRET, step) == vector[1][2:], "six digits are the last six of eight"


def test_a_code_is_good_for_one_step_to_either_side_and_only_once() -> None:
    step = totp.step_at(NOW)
    for off, good in ((-2, False), (-1, True), (0, True), (1, True), (2, False)):
        assert (totp.accept(SECRET, totp.code_for(SECRET, step + off), NOW, 0) == step + off) is good, off
    code = totp.code_for(SECRET, step)
    assert totp.accept(SECRET, code[:3] + " " + code[3:], NOW, step - 1) == step, "people type it with a space"
    assert totp.accept(SECRET, code, NOW, step) is None, "a used step is refused"
    assert totp.accept(SECRET, totp.code_for(SECRET, step - 1), NOW, step) is None, "and so is one before it"
    assert totp.accept(SECRET, code, NOW + timedelta(seconds=90), 0) is None


def test_what_is_not_a_code_is_refused() -> None:
    for written in ("", "12345", "1234567", "abcdef", "１２３４５６"):
        assert totp.accept(SECRET, written, NOW, 0) is None


def test_an_authenticator_reads_the_address() -> None:
    parts = urlparse(totp.uri(SECRET, "li", "medmesh"))
    values = {name: value[0] for name, value in parse_qs(parts.query).items()}
    assert (parts.scheme, parts.netloc, parts.path) == ("otpauth", "totp", "/medmesh:li")
    assert (values["issuer"], values["digits"], values["period"]) == ("medmesh", "6", "30")
    assert totp.read(values["secret"]) == totp.read(totp.text(SECRET)) == SECRET


def test_a_sealed_secret_opens_only_for_its_owner_and_unaltered(private: Path) -> None:
    keys = FileKeys(private / "keys").ensure("seal")
    seal = Seal(keys)
    sealed = seal.close(SECRET, "li")
    assert SECRET not in sealed
    assert seal.open(sealed, "li") == SECRET
    altered = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for content, owner in ((sealed, "wu"), (altered, "li"), (b"", "li")):
        with pytest.raises(Problem) as caught:
            seal.open(content, owner)
        assert caught.value.code == "security.sealed_unreadable"
    with pytest.raises(Problem):
        Seal(FileKeys(private / "others").ensure("seal")).open(sealed, "li")
    assert not seal.is_old(sealed)
    keys.create("seal", "wrap", "sm-1")
    assert seal.is_old(sealed)
    assert seal.open(seal.close(seal.open(sealed, "li"), "li"), "li") == SECRET
    assert not seal.is_old(seal.close(SECRET, "li"))
