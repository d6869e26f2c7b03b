"""Images that go through no pipeline."""

from __future__ import annotations

import subprocess
import sys

MADE = """
import io, sys
from PIL import Image
from medmesh.contracts.data import ImageSchema
from medmesh.pipelines.samples import sample

picture = io.BytesIO()
Image.new("L", (16, 16), 51).save(picture, "PNG")
schema = ImageSchema(modality="MR", classes=("a", "b"), image_size=8)
made = sample(picture.getvalue(), schema)
assert made.shape == schema.shape and (made == 51).all(), made
print(*sorted(name for name in sys.modules if name.startswith("medmesh.pipelines.")))
"""


def test_nothing_that_pipelines_are_made_of_is_loaded_for_a_plain_image() -> None:
    """It is 2 MiB of every node."""
    done = subprocess.run([sys.executable, "-c", MADE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"medmesh.pipelines.samples", "medmesh.pipelines.words"}
