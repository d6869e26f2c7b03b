"""Text in pixels: who is put aside, who is masked, and that a mask leaves everything else as it was, in every transfer syntax."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from medmesh.errors import Problem
from medmesh.imaging.deidentify import deidentify, gate, masking
from medmesh.imaging.reading import parse, read, write

US, SC = uid.UltrasoundImageStorage, uid.SecondaryCaptureImageStorage
KEY = b"the project's key, 32 bytes long"


def image(sop: str = uid.CTImageStorage, modality: str = "CT", frames: int = 1, **values: object) -> Dataset:
    """20 rows and 30 columns of the numbers 1 to 250 in turn."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = sop, "1.2.3.4444.3", modality
    dataset.PatientID, dataset.Rows, dataset.Columns = "P-7781-22", 20, 30
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.NumberOfFrames = 1, "MONOCHROME2", str(frames)
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = (np.arange(frames * 600) % 250 + 1).astype(np.uint8).tobytes()
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return dataset


def regions(*corners: tuple[int, int, int, int]) -> Sequence:
    items = []
    for left, top, right, bottom in corners:
        item = Dataset()
        item.RegionLocationMinX0, item.RegionLocationMinY0, item.RegionLocationMaxX1, item.RegionLocationMaxY1 = left, top, right, bottom
        items.append(item)
    return Sequence(items)


@pytest.mark.parametrize(
    ("dataset", "then", "rule"),
    [
        (image(), "pass", "image straight from the modality"),
        (image(BurnedInAnnotation="YES"), "quarantine", "declared as annotated"),
        (image(ImageType=["DERIVED", "SCREEN SAVE"], BurnedInAnnotation="NO"), "quarantine", "screen capture or scanned document"),
        (image(SC), "quarantine", "secondary capture"),
        (image(uid.MultiFrameTrueColorSecondaryCaptureImageStorage), "quarantine", "secondary capture"),
        (image(SC, BurnedInAnnotation="NO"), "pass", "declared as not annotated"),
        (image(US, "US"), "quarantine", "ultrasound without regions"),
        (image(US, "US", BurnedInAnnotation="NO"), "quarantine", "ultrasound without regions"),
        (image(US, "US", SequenceOfUltrasoundRegions=regions((1, 2, 3, 4))), "mask", "ultrasound with regions"),
        (image(US, "US", SequenceOfUltrasoundRegions=regions((9, 2, 3, 4))), "quarantine", "ultrasound with regions"),
        (image(SC, "US", BurnedInAnnotation="NO"), "quarantine", "ultrasound in another object"),
        (image(ConversionType="SD"), "quarantine", "scanned or drawn"),
        (image(modality="OT"), "quarantine", "visible light and documents"),
        (image(modality="NEW"), "quarantine", "no rule"),
        (image(modality=""), "quarantine", "no rule"),
    ],
)  # fmt: skip
def test_rules_judge_by_what_the_header_says(dataset: Dataset, then: str, rule: str) -> None:
    verdict = gate.judge(dataset)
    assert (verdict.then, verdict.rule) == (then, rule)
    if then == "quarantine":
        with pytest.raises(Problem) as refused:
            deidentify(dataset, KEY)
        assert refused.value.code == "imaging.burned_in" and refused.value.params == {"rule": rule}


def test_an_overlay_inside_the_pixels_is_put_aside(planted: tuple[Dataset, dict[str, str]]) -> None:
    dataset, _ = planted
    del dataset[0x60003000]  # the overlay's pixels are then in the image's own
    assert gate.judge(dataset).rule == "overlay in the pixels"


def test_outside_of_ultrasound_regions_all_is_blank_and_inside_nothing_changes() -> None:
    source = image(US, "US", frames=3, SequenceOfUltrasoundRegions=regions((2, 3, 10, 12), (20, 0, 29, 19)))
    result = read(write(deidentify(source, KEY).dataset))
    before, after = source.pixel_array, result.pixel_array
    inside = np.zeros((20, 30), dtype=bool)
    inside[3:13, 2:11] = inside[:, 20:] = True
    assert (after[:, inside] == before[:, inside]).all() and (after[:, ~inside] == 1).all()
    assert result.BurnedInAnnotation == "NO"
    assert [item.CodeValue for item in result.DeidentificationMethodCodeSequence] == ["113100", "113101"]


def test_a_hospitals_own_rule_blanks_rectangles_of_one_device() -> None:
    own = gate.read(
        '[[rules]]\nname = "film digitiser"\nmanufacturer = "acme.*"\nmodel = "f-?1"\nrows = 20\ncolumns = 30\nthen = "mask"\n'
        "blank = [[0, 0, 30, 4]]"
    )
    rules = (*own, *gate.default())
    source = image(SC, "CR", Manufacturer="ACME Medical", ManufacturerModelName="F1")
    after = read(write(deidentify(source, KEY, rules=rules).dataset)).pixel_array
    assert (after[:4] == 1).all() and (after[4:] == source.pixel_array[4:]).all()
    source.Rows, source.PixelData = 10, source.PixelData[:300]  # another size: the rectangles are not of it
    assert gate.judge(source, rules).rule == "secondary capture"


@pytest.mark.parametrize("wrong", ['then = "mask"', 'then = "maybe"', 'then = "pass"\nblank = [[0, 0, 1, 1]]', 'then = "pass"\nmodle = "x"',
                                   'then = "pass"\nmodel = "("', "name = 3 3"])  # fmt: skip
def test_rules_that_cannot_be_understood_are_refused_by_number(wrong: str) -> None:
    with pytest.raises(Problem) as refused:
        gate.read(f'[[rules]]\nname = "one"\nthen = "pass"\n\n[[rules]]\nname = "two"\n{wrong}')
    assert refused.value.code == "imaging.gate_rules" and refused.value.params["number"] in (1, 2)


def test_a_mask_of_everything_is_no_mask() -> None:
    rules = gate.read('[[rules]]\nname = "all"\nthen = "mask"\nblank = [[0, 0, 99, 99]]')
    with pytest.raises(Problem) as refused:
        deidentify(image(), KEY, rules=rules)
    assert refused.value.code == "imaging.burned_in"


def test_masking_works_in_every_transfer_syntax_there_is_a_decoder_for(folder: Path) -> None:
    """Files of pydicom in every encoding: in the rectangle blank, elsewhere what the decoder gives for the original."""
    rules = gate.read('[[rules]]\nname = "corner"\nthen = "mask"\nblank = [[0, 0, 9, 7]]')
    seen: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.dcm")):
        try:
            source = read(path.read_bytes())
            before, about = masking.decode(source)
        except Problem:
            continue
        if before.nbytes > 4_000_000 or before.shape[1] < 10:
            continue
        result = read(write(deidentify(source, KEY, rules=rules).dataset))
        after, told = masking.decode(result)
        assert result.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian, path.name
        assert (after[:, 7:] == before[:, 7:]).all() and (after[:, :7, 9:] == before[:, :7, 9:]).all(), path.name
        assert np.unique(after[:, :7, :9].reshape(-1, *after.shape[3:]), axis=0).shape[0] == 1, path.name
        assert told["samples_per_pixel"] == about["samples_per_pixel"]
        again = dcmread(BytesIO(write(result)))
        assert again.pixel_array is not None
        seen.setdefault(source.file_meta.TransferSyntaxUID.name, set()).add(str(about["photometric_interpretation"]))
    assert {"RLE Lossless", "JPEG Baseline (Process 1)", "Explicit VR Big Endian", "Implicit VR Little Endian"} <= set(seen), seen
    assert {"YBR_FULL", "RGB", "PALETTE COLOR", "MONOCHROME2"} <= set().union(*seen.values()), seen


def test_software_that_reads_text_may_only_refuse_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "detectors", lambda: (lambda frame: [(0, 0, 5, 5)] if frame[0, 0] == 1 else [],))
    with pytest.raises(Problem) as refused:
        deidentify(image(), KEY)
    assert refused.value.params == {"rule": "text was found in the pixels"}
    monkeypatch.setattr(gate, "detectors", lambda: (lambda frame: [],))
    deidentify(image(), KEY)
    with pytest.raises(Problem):
        deidentify(image(SC), KEY)  # it finds nothing, and the rule stands


def test_plain_images_say_what_was_said_of_them() -> None:
    from medmesh.imaging.reading import wrap

    about = dict.fromkeys(("patient_id", "patient_name", "study_uid", "series_uid", "study_date"), "") | {
        "sop_uid": "1.2.3",
        "modality": "OT",
    }
    known = {what: parse(wrap(Image.new("L", (8, 8)), **about, extra={}, annotated=what)) for what in (False, True, None)}  # type: ignore[arg-type]
    assert [gate.judge(known[what]).then for what in (False, True, None)] == ["pass", "quarantine", "quarantine"]
