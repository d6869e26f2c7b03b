"""Base64 in a copy has one spelling, as the standard library's strict decoder and encoder together say."""

from __future__ import annotations

import base64
import random

from medmesh.ledger.copies import _decoded

LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\n -_"


def test_what_is_read_is_the_one_spelling_of_its_bytes() -> None:
    dice, refused = random.Random(7), 0
    for _ in range(30_000):
        text = bytearray(base64.b64encode(dice.randbytes(dice.randrange(9))))
        for _ in range(dice.randrange(3) if text else 0):
            text[dice.randrange(len(text))] = dice.choice(LETTERS)
        if dice.random() < 0.2:
            text.insert(dice.randrange(len(text) + 1), dice.choice(LETTERS))
        try:
            wanted = base64.b64decode(text, validate=True)
            canonical = base64.b64encode(wanted) == text
        except ValueError:
            canonical = False
        try:
            assert _decoded(bytes(text)) == wanted
            assert canonical, text
        except ValueError:
            assert not canonical, text
            refused += 1
    assert 10_000 < refused < 25_000
