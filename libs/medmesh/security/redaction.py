"""What may not stand in a log: secrets by the name of their field, and anything that looks like a token or a key."""

from __future__ import annotations

import re
from typing import Any

_NAMES = re.compile(r"password|passwd|secret|seed|token|authorization|cookie|patient_?name|private|credential", re.IGNORECASE)
_LOOKS = re.compile(
    r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"  # JWT
    r"|S[UNOAC][A-Z2-7]{56}"  # NKEY seed
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|(?<![A-Za-z0-9+/_-])(?=[A-Za-z0-9+/_-]*[A-Z])(?=[A-Za-z0-9+/_-]*[a-z])(?=[A-Za-z0-9+/_-]*[0-9])[A-Za-z0-9+/_-]{60,}={0,2}"
)
HIDDEN = "[redacted]"


def redact(value: Any) -> Any:
    """`value` without secrets; dictionaries and lists are walked, everything else is taken as it is."""
    if isinstance(value, str):
        return _LOOKS.sub(HIDDEN, value) if len(value) > 24 else value
    if isinstance(value, dict):
        return {key: HIDDEN if isinstance(key, str) and _NAMES.search(key) else redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value


_IDENTIFYING = re.compile(
    r"(?:\d[\s./:_-]{0,2}){5,}\d"  # six digits, however spaced: numbers of people, cards and telephones, dates of birth
    r"|\d{1,2}\s*月\s*\d{1,2}\s*日|@"
    r"|(?<![A-Za-z])(?:mr|mrs|ms|miss|dr)\.?\s+[A-Z]"
    r"|姓名|名叫|身份证|病案号|住院号|门诊号|床号|先生|女士|小姐|同志|\bMRN\b",
    re.IGNORECASE,
)


def identifying(text: str) -> str:
    """What in a free text looks as if it told who somebody is; empty when nothing does. A name alone cannot be told from a word."""
    found = _IDENTIFYING.search(text)
    return found.group(0) if found else ""
