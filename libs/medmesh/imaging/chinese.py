"""Chinese names as pinyin, and the numbers that identify people in China."""

from __future__ import annotations

import os
import re
import unicodedata
from functools import cache, lru_cache

_HAN = re.compile(r"[\u4e00-\u9fff\u3400-\u4dbf]+")
_IDENTITY = re.compile(rb"(?<![\d.])[1-9]\d{5}(?:18|19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\d|\.\d)")
_MOBILE = re.compile(rb"(?<![\d.+-])(?:\+?86[- ]?)?1[3-9]\d([- ]?)\d{4}\1\d{4}(?!\d|\.\d)")
_BETWEEN = r"[1-5]?[\s,^=_.'’-]*"  # the number of a tone, and what stands between syllables


def han(text: str) -> str:
    """The Chinese characters of a text, joined."""
    return "".join(_HAN.findall(text))


def plain(text: str) -> str:
    """Lower case, full-width letters narrow, without accents: "Wáng Lì" and "ＷＡＮＧ ＬＩ" become "wang li"."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))


@lru_cache(1024)
def pinyin(name: str) -> re.Pattern[str] | None:
    """What finds a Chinese name (family name first, "^" or nothing between) in a `plain` text as pinyin: any reading of each character,
    joined or apart, with the numbers of tones or without, in both orders; None for fewer than two characters."""
    parts = [one for one in map(han, name.split("^")) if one]
    if len(parts) == 1 and len(parts[0]) > 1:
        length = 2 if len(parts[0]) > 3 else 1
        parts = [parts[0][:length], parts[0][length:]]
    if len(parts) < 2:
        return None
    spelt = [_BETWEEN.join(f"(?:{'|'.join(_readings(character))})" for character in part) for part in parts[:2]]
    both = "|".join(_BETWEEN.join(order) for order in (spelt, spelt[::-1]))
    return re.compile(rf"(?<![a-z])(?:{both})(?![a-z])")


def personal_numbers(data: bytes) -> set[str]:
    """`identity card` and `mobile telephone`, if numbers of these kinds stand in `data`: an identity number has its date and its check
    character (GB 11643, ISO 7064 MOD 11-2), a mobile number its length and its prefix."""
    found = {"identity card"} if any(identity_card(match[0].decode()) for match in _IDENTITY.finditer(data)) else set()
    return found | ({"mobile telephone"} if _MOBILE.search(data) else set())


def identity_card(text: str) -> bool:
    """Whether the check character of an 18-digit identity number is right."""
    if not re.fullmatch(r"\d{17}[\dXx]", text):
        return False
    total = sum(int(digit) * (2 ** (17 - place) % 11) for place, digit in enumerate(text[:17]))
    return "10X98765432"[total % 11] == text[17].upper()


@cache
def _readings(character: str) -> list[str]:
    os.environ.setdefault("PYPINYIN_NO_PHRASES", "1")  # readings of single characters are all that is needed: 45 MB less
    os.environ.setdefault("PYPINYIN_NO_DICT_COPY", "1")
    from pypinyin import Style
    from pypinyin import pinyin as look_up

    found = {plain(one) for one in look_up(character, style=Style.NORMAL, heteronym=True, errors="ignore", v_to_u=False)[0]}
    return sorted({form for one in found for form in (one, one.replace("v", "u"), one.replace("v", "yu"))}, key=len, reverse=True) or ["?"]
