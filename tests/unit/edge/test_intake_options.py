"""What a hospital says of de-identification reaches its images: options in edge.json, rules for text in pixels in gate.toml."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmesh.errors import Problem
from medmesh.imaging.reading import read, wrap
from medmesh_edge.intake import ingest, prepare
from medmesh_edge.policy import Policy

KEY = b"the hospital's key, 32 bytes long"
RULES = '[[rules]]\nname = "strip at the top"\nmodality = ["RF"]\nthen = "mask"\nblank = [[0, 0, 40, 6]]'


def image() -> bytes:
    about = {
        "patient_name": "Zhang^Qiming",
        "study_uid": "1.2.3.4",
        "series_uid": "1.2.3.5",
        "sop_uid": "1.2.3.6",
        "study_date": "20240229",
    }
    values = {"PatientAge": "071Y"}
    return wrap(Image.linear_gradient("L").resize((40, 36)), patient_id="P-7781", modality="RF", extra=values, annotated=None, **about)


def test_rules_of_the_hospital_mask_what_would_be_refused() -> None:
    with pytest.raises(Problem) as refused:
        prepare(image(), KEY)
    assert refused.value.code == "imaging.burned_in"
    masked = read(prepare(image(), KEY, "", RULES).data)
    before, after = read(image()).pixel_array, masked.pixel_array
    assert (after[:6] == before.min()).all() and (after[6:] == before[6:]).all() and np.ptp(before[:6]) > 0
    assert "PatientAge" not in masked and not masked.StudyDate


def test_options_of_the_hospital_keep_what_they_name() -> None:
    kept = read(prepare(image(), KEY, "patient dates=keep", RULES).data)
    assert (kept.PatientAge, kept.StudyDate) == ("071Y", "20240229")
    assert [item.CodeValue for item in kept.DeidentificationMethodCodeSequence] == ["113100", "113101", "113106", "113108"]


@pytest.mark.parametrize(
    ("options", "rules", "code"), [("dates=maybe", "", "imaging.option_unknown"), ("", "[[rules]]", "imaging.gate_rules")]
)
async def test_a_wrong_word_stops_before_the_first_file(tmp_path: Any, options: str, rules: str, code: str) -> None:
    (tmp_path / "a.dcm").write_bytes(image())
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "gate.toml").write_text(rules)
    layout = SimpleNamespace(site_key=tmp_path / "key", gate=tmp_path / "gate.toml")
    site: Any = SimpleNamespace(layout=layout, settings=SimpleNamespace(deidentification=options), policy=Policy)
    with pytest.raises(Problem) as refused:
        await ingest(site, tmp_path, "brain")
    assert refused.value.code == code
