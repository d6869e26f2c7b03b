"""Suites, held against the examples of the standards and, for the Chinese ones, against a second implementation."""

from __future__ import annotations

import hashlib
import os

import gmssl_pyx
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from medmesh.errors import Problem
from medmesh.security import suites

INTL, SM = suites.suite("intl-1"), suites.suite("sm-1")


def h(text: str) -> bytes:
    return bytes.fromhex(text.replace(" ", ""))


def test_hashes_by_fips_180_4_and_gb_t_32905() -> None:
    assert INTL.digest(b"abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert SM.digest(b"abc") == "sm3:66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"
    assert SM.digest(b"abcd" * 16) == "sm3:debe9ff92275b8a138604889c18e5a4d6fdb70e5387e5765293dcba39c0c5732"


def test_sm4_by_gb_t_32907() -> None:
    key = h("0123456789abcdef fedcba9876543210")
    block = Cipher(algorithms.SM4(key), modes.ECB()).encryptor()
    assert block.update(key) == h("681edf34d206965e86b3e94f536e4246")


def test_sm4_gcm_by_rfc_8998() -> None:
    key, nonce = h("0123456789ABCDEFFEDCBA9876543210"), h("00001234567800000000ABCD")
    associated = h("FEEDFACEDEADBEEFFEEDFACEDEADBEEFABADDAD2")
    plain = h("AA" * 8 + "BB" * 8 + "CC" * 8 + "DD" * 8 + "EE" * 8 + "FF" * 8 + "EE" * 8 + "AA" * 8)
    sealed = h(
        "17F399F08C67D5EE19D0DC9969C4BB7D5FD46FD3756489069157B282BB200735D82710CA5C22F0CCFA7CBF93D496AC15"
        "A56834CBCF98C397B4024A2691233B8D 83DE3541E4C2B58177E065A9BF7B62EC"
    )
    assert SM.aead(key).encrypt(nonce, plain, associated) == sealed
    assert SM.aead(key).decrypt(nonce, sealed, associated) == plain


def test_aes_256_gcm_by_the_examples_of_its_authors() -> None:
    # Cases 14 and 16 of "The Galois/Counter Mode of Operation", which NIST's validation took over.
    assert INTL.aead(bytes(32)).encrypt(bytes(12), bytes(16), b"") == h("cea7403d4d606b6e074ec5d3baf39d18 d0d1c8a799996bf0265b98b5d48ab919")
    key = h("feffe9928665731c6d6a8f9467308308" * 2)
    plain = h("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39")
    sealed = h(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662 76fc6ece0f4e1768cddf8853bb2d551b"
    )
    associated = h("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    assert INTL.aead(key).encrypt(h("cafebabefacedbaddecaf888"), plain, associated) == sealed


def test_ed25519_by_rfc_8032() -> None:
    private = h("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = h("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = h(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert INTL.sign(suites.Pair(private, public), b"\x72") == signature
    assert INTL.verify(public, b"\x72", signature)
    assert not INTL.verify(public, b"\x73", signature)
    assert not INTL.verify(b"short", b"\x72", signature)


def test_sm2_by_gb_t_32918_5() -> None:
    public = h(
        "09F9DF311E5421A150DD7D161E4BC5C672179FAD1833FC076BB08FF356F35020CCEA490CE26775A52DC6EA718CC1AA600AED05FBF35E084A6632F6072DA9AD13"
    )
    r = int("F5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3", 16)
    s = int("B1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA", 16)
    assert SM.verify(public, b"message digest", encode_dss_signature(r, s))
    assert not SM.verify(public, b"message digesu", encode_dss_signature(r, s))
    assert not SM.verify(bytes(64), b"message digest", encode_dss_signature(r, s))


def test_sm4_gcm_is_what_another_implementation_makes() -> None:
    for length in (1, 15, 16, 17, 1000):
        key, nonce, data, associated = os.urandom(16), os.urandom(12), os.urandom(length), os.urandom(length % 7 + 1)
        assert SM.aead(key).encrypt(nonce, data, associated) == b"".join(gmssl_pyx.sm4_gcm_encrypt(key, nonce, associated, data))


@pytest.mark.parametrize("name", sorted(suites.ALL))
def test_a_suite_signs_and_seals_and_notices_every_change(name: str) -> None:
    suite = suites.suite(name)
    pair = suite.generate()
    signature = suites.signed(name, pair, b"data")
    assert signature.startswith(f"{name}:")
    assert suites.holds(signature, pair.public, b"data", {name})
    assert not suites.holds(signature, pair.public, b"date", {name})
    assert not suites.holds(signature, suite.generate().public, b"data", {name})
    cipher = suite.aead(suite.new_key())
    sealed = cipher.encrypt(bytes(12), b"data", b"whose")
    for place in range(len(sealed)):
        altered = bytearray(sealed)
        altered[place] ^= 1
        with pytest.raises(InvalidTag):
            cipher.decrypt(bytes(12), bytes(altered), b"whose")
    for wrong in (sealed[:-1], b"", sealed + b"\0"):
        with pytest.raises((InvalidTag, ValueError)):
            cipher.decrypt(bytes(12), wrong, b"whose")
    assert suites.matches(suite.digest(b"data"), b"data", {name})
    assert not suites.matches(suite.digest(b"data"), b"date", {name})


def test_a_verifier_decides_which_suites_count_not_the_artefact() -> None:
    pair = SM.generate()
    signature = suites.signed("sm-1", pair, b"data")
    for refused in (
        lambda: suites.holds(signature, pair.public, b"data", {"intl-1"}),
        lambda: suites.matches(SM.digest(b"data"), b"data", {"intl-1"}),
        lambda: suites.matches("md5:" + hashlib.md5(b"data", usedforsecurity=False).hexdigest(), b"data", suites.ALL),
        lambda: suites.suite("none"),
        lambda: suites.holds("data", pair.public, b"data", suites.ALL),
    ):
        with pytest.raises(Problem) as caught:
            refused()
        assert caught.value.code == "security.suite"
    # An Ed25519 signature that is said to be SM2 is none.
    honest = INTL.generate()
    lie = suites.signed("intl-1", honest, b"data").replace("intl-1", "sm-1")
    assert not suites.holds(lie, honest.public, b"data", suites.ALL)
