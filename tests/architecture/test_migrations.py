"""Every service's migrations are one line: two that were written beside each other are put after each other before they are merged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.architecture.sources import ROOT

FOLDERS = sorted((ROOT / "services").glob("*/medmesh_*/migrations"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_one_follows_the_other(folder: Path) -> None:
    before = None
    for place, path in enumerate(sorted(folder.glob("[0-9]*.py")), start=1):
        text = path.read_text()
        (revision,) = re.findall(r"^revision = \"(\d+)\"", text, re.M)
        follows = re.findall(r"^down_revision = (?:\"(\d+)\"|None)", text, re.M)
        assert (path.name[:4], revision, follows) == (f"{place:04}", f"{place:04}", [before or ""])
        before = revision
    assert before is not None
