"""One file of an archive, as the de-identified DICOM file that may be kept, or the reason why not: what the platform adds to
`medmesh.importing.cleaning`, which cleans."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from medmesh.errors import Problem
from medmesh.importing.cleaning import Clean, Project
from medmesh.importing.cleaning import clean as cleaned
from medmesh.telemetry import log

_WORDS = {"intake.residual": "identifiers_left", "intake.columns_needed": "columns_needed"}


@dataclass(frozen=True, slots=True)
class Rejected:
    """`reason` is a code: of `medmesh.imaging`, of the quality rules, or of this module."""

    reason: str


def clean(data: bytes | Mapping[str, bytes], project: Project) -> Clean | Rejected:
    """Never raises for what stands in `data`: one broken file does not keep the others out."""
    try:
        made = cleaned(data, project)
    except Problem as problem:
        return Rejected(_WORDS.get(problem.code) or problem.code.removeprefix("imaging.").removeprefix("formats."))
    except Exception as error:  # the decoders are other people's, and so is the file
        log("file.failed", level=30, kind=type(error).__name__)
        return Rejected("failed")
    return Rejected(made.quality[0]) if made.quality else made


def item_of(made: Clean, key: bytes) -> str:
    """What names the source object, the same in every archive."""
    return hmac.digest(key, b"item\0" + made.source, "sha256").hex()[:16]
