"""Which objects and encodings are taken over the network."""

from __future__ import annotations

from collections.abc import Sequence

IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_ENCAPSULATED = "1.2.840.10008.1.2.4."
_RLE = "1.2.840.10008.1.2.5"
_STORAGE = (
    "1.2.840.10008.5.1.4.1.1.",
    "1.2.840.10008.5.1.4.34.7",
    "1.2.840.10008.5.1.4.43.1",
    "1.2.840.10008.5.1.4.44.1",
    "1.2.840.10008.5.1.4.45.1",
)
_DICOM = "1.2.840.10008."


def storable(sop_class: str) -> bool:
    """Whether instances of it are kept: every storage class of the standard, those to come, and private ones (PS3.4 annex B)."""
    return bool(sop_class) and (sop_class.startswith(_STORAGE) or not sop_class.startswith(_DICOM))


def chosen(proposed: Sequence[str]) -> str | None:
    """The transfer syntax to take: the peer's first one, but Implicit VR and Big Endian only where nothing else is proposed."""
    known = [one for one in proposed if one in (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED, _RLE) or one.startswith(_ENCAPSULATED)]
    return min(known, key=lambda one: (one == BIG_ENDIAN) * 2 + (one == IMPLICIT), default=None)
