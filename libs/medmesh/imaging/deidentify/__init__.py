"""De-identification of DICOM objects by PS3.15 Annex E: `deidentify` with the `Options` that a project chose."""

from medmesh.imaging.deidentify.engine import Deidentified, deidentify
from medmesh.imaging.deidentify.options import Options

__all__ = ["Deidentified", "Options", "deidentify"]
