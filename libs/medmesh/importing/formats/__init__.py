"""Files by their content: what format a file has, what stands in it, and the same file without who it is about.

One module a format; `cleaned` is what a file becomes before anything keeps it.
"""

from __future__ import annotations

import io

from medmesh.errors import Problem
from medmesh.importing.formats.arrays import NPY, NPZ
from medmesh.importing.formats.content import START, THIS, Content, Format, inflated
from medmesh.importing.formats.dicom import DICOM
from medmesh.importing.formats.edf import EDF
from medmesh.importing.formats.identity import proven
from medmesh.importing.formats.jpeg import JPEG
from medmesh.importing.formats.nifti import NIFTI
from medmesh.importing.formats.png import PNG
from medmesh.importing.formats.tables import CSV
from medmesh.importing.formats.vcf import VCF
from medmesh.importing.formats.wav import WAV
from medmesh.importing.formats.wfdb import WFDB

FORMATS: tuple[Format, ...] = (DICOM, NIFTI, PNG, JPEG, NPY, NPZ, EDF, WAV, VCF, WFDB, CSV)
"""The surest first: text without a magic comes last."""


def found(start: bytes) -> Format | None:
    """The format of a file that begins so (its first `START` bytes)."""
    return next((form for form in FORMATS if form.matches(start)), None)


def cleaned(data: bytes) -> tuple[Format, Content, bytes]:
    """The format of `data`, what stands in it without identity, and its bytes without identity, read again to prove it.

    Equal data give equal bytes. Raises `Problem`: `formats.unknown`, `formats.damaged`, `formats.unsupported` (DICOM among them, which is
    de-identified instead), `formats.too_large`, `formats.identifying`.
    """
    form = found(data[:START])
    if form is None:
        raise Problem("formats.unknown", place=THIS)
    made = proved(form, data, form.clean(data))
    return form, form.describe(io.BytesIO(made), len(made)), made


def proved(form: Format, data: bytes, made: bytes) -> bytes:
    """`made`, if nothing that `data` says of anybody is in it. Raises `formats.identifying`."""
    before = form.describe(io.BytesIO(data), len(data))
    after = form.describe(io.BytesIO(made), len(made))
    return proven(form, before, made, inflated(made), after)
