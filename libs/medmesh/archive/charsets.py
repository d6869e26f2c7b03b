"""Text of DICOM elements in its declared character sets (PS3.5 §6.1, PS3.3 C.12.1.1.2) as Python's.

What declares nothing and is not ASCII is read as UTF-8 where it is valid UTF-8, else as GB18030, else as ISO 8859-1: makers leave
(0008,0005) out, and what cannot be searched for is lost to its patient. What cannot be decoded becomes U+FFFD and raises nothing.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

Decode = Callable[[bytes], str]
_ESCAPES = re.compile(r"\x1b(?:\$[()*]?.|[(-].)")  # ISO 2022's, which some decoders leave in


def undeclared(raw: bytes) -> str:
    """Text that says nothing of its character set."""
    for codec in ("utf-8", "gb18030"):
        try:
            return raw.decode(codec)
        except UnicodeDecodeError:
            pass
    return raw.decode("latin-1")


@lru_cache(64)
def decoder(terms: tuple[str, ...]) -> Decode:
    """How text is read under these values of Specific Character Set, in their order."""
    from pydicom.charset import decode_bytes, python_encoding
    from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

    spelt = [
        term.strip().upper().replace("ISO IR", "ISO_IR").replace("ISO-IR", "ISO_IR").replace("ISO_2022_IR", "ISO 2022 IR") for term in terms
    ]
    known: list[str] = [python_encoding[term] for term in spelt if term in python_encoding]
    if not known or spelt in ([""], ["ISO_IR 6"]):
        return undeclared
    codec, delimiters = known[0], PN_DELIMS | TEXT_VR_DELIMS

    def plain(raw: bytes) -> str:
        return raw.decode(codec, "replace")

    def extended(raw: bytes) -> str:
        if b"\x1b" not in raw:
            return raw.decode(codec, "replace")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Any = decode_bytes(raw, known, delimiters)
        return _ESCAPES.sub("", str(found)).encode("utf-8", "replace").decode()

    return extended if len(terms) > 1 or spelt[0].startswith("ISO 2022") else plain
