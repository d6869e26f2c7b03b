"""De-identification of DICOM headers by PS3.15 Annex E, Application Level Confidentiality Profile with options.

What the table does not list is judged by its kind of value: names go, dates go or are shifted, UIDs are replaced, and text and
bytes go unless they are on the keep-list. New values are HMAC-SHA256 (RFC 2104) of the old ones under the project's key, so
that a patient or a referenced object stays the same over files, runs and machines, and nobody without the key can go back.

Most of a header is removed or kept as it is, so elements are looked at as bytes, and only those are decoded whose value counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items

from medmesh.errors import Problem
from medmesh.imaging.deidentify import content, gate
from medmesh.imaging.deidentify.gate import Rule
from medmesh.imaging.deidentify.options import MEANINGS, Options
from medmesh.imaging.deidentify.tables import EDITION, Action, Rules, rules
from medmesh.imaging.deidentify.values import DATES, DUMMIES, DUMMY_TEXT, TEXT, each, names_of, new_uid, plain, shift, written
from medmesh.imaging.pseudonyms import pseudonym, shift_days

_DOCUMENTS = "1.2.840.10008.5.1.4.1.1.104."  # Encapsulated PDF, CDA, STL, OBJ and MTL Storage
_BASIC = Options()


@dataclass(frozen=True, slots=True)
class Deidentified:
    """A de-identified data set; unchanged elements are shared with the original. `actions` counts what was removed or changed."""

    dataset: Dataset
    patient: str
    sop_uid: str
    actions: int


def deidentify(
    dataset: Dataset, key: bytes, options: Options = _BASIC, *, rules: Sequence[Rule] | None = None, faceless: bool = False
) -> Deidentified:
    """A new data set without identifying attributes; `dataset`, as `reading.read` returns it, is left as it is.

    `key` is the project's, at least 16 bytes. The gate's `rules` (its default ones, see `gate`) say whether pixels pass as they are, bit
    for bit, or are masked. `faceless`: a face was removed from the volume before, which is declared. Raises `imaging.burned_in` for an
    image that the gate puts aside, `imaging.encapsulated` for a document inside (PDF, CDA), which nothing here can clean,
    `imaging.unreadable` without SOP class or instance UID or for a value that cannot be decoded, `ValueError` for a short key.
    """
    if len(key) < 16:
        raise ValueError("the key has fewer than 16 bytes")
    try:
        return _deidentified(dataset, key, options, rules, faceless)
    except Problem:
        raise
    except Exception as error:  # pydicom decodes a value when it is first looked at, and lets errors of every kind through
        raise Problem("imaging.unreadable", reason=type(error).__name__) from None


def _deidentified(dataset: Dataset, key: bytes, options: Options, gate_rules: Sequence[Rule] | None, faceless: bool) -> Deidentified:
    if str(dataset.get("SOPClassUID") or "").startswith(_DOCUMENTS):
        raise Problem("imaging.encapsulated")
    verdict = gate.judge(dataset, gate_rules)
    if verdict.then == "quarantine":
        raise Problem("imaging.burned_in", rule=verdict.rule)
    # Without a patient ID all that is safe to say is that one study is one patient.
    patient = str(dataset.get("PatientID") or "").strip() or f"study {dataset.get('StudyInstanceUID') or dataset.get('SOPInstanceUID')}"
    cleaner = Cleaner(key, options, shift_days(patient, key), names_of(dataset, kept=options.columns))
    result = cleaner.clean(dataset)
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not result.get(keyword):
            raise Problem("imaging.unreadable", reason=f"{keyword} is missing")
    name = pseudonym(patient, key)
    result.PatientID = result.PatientName = name
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    from medmesh.imaging.deidentify import masking  # numpy and decoders, for those images only

    if verdict.then == "mask":
        masking.mask(dataset, result, verdict)
    masking.refuse_text(result, gate.detectors())
    if faceless:
        result.RecognizableVisualFeatures = "NO"
    declare(result, options, *(["113101"] if verdict.then == "mask" else []), *(["113102"] if faceless else []))
    return Deidentified(result, name, str(result.SOPInstanceUID), cleaner.actions)


_PADDING = {**dict.fromkeys(TEXT | DATES | {"PN", "CS"}, b" "), "UI": b"\0"}
_UNDECIDED: Any = object()


def _with(raw: Any, value: bytes) -> RawDataElement:
    return raw if value is raw.value else raw._replace(value=value, length=len(value))


class _Fate(Enum):
    DROP = 0
    PASS = 1
    """Stays as the bytes that it is, if they are plain."""
    BYTES = 2
    """Stays, whatever it holds: pixels, tables of colours, waveforms."""
    LOOK = 3


class Cleaner:
    """One data set's run: the key, the options, the shift of dates in days, the names and identifiers that no kept text may repeat
    (lower case), and the count."""

    def __init__(self, key: bytes, options: Options, days: int, known: frozenset[str]) -> None:
        self.key, self.options, self.days, self.known, self.actions = key, options, days, known, 0
        self.rules: Rules = rules(options)

    def clean(self, dataset: Dataset, *, dummy_text: bool = False) -> Dataset:
        """A clean copy; with `dummy_text`, inside a sequence that must be a dummy, even text on the keep-list is replaced."""
        kept: dict[Any, DataElement | RawDataElement] = {}
        for tag, raw in list(dataset.items()):
            fate = _fate(self.options, int(tag), raw.VR)
            element: DataElement | RawDataElement | None = None
            if tag >> 16 & 1:
                if self.options.private:
                    element = self._private(dataset, tag, kept)
            elif fate is _Fate.BYTES:
                element = raw
            elif fate is not _Fate.DROP:
                element = self._at_sight(raw, fate, dummy_text) if raw.is_raw else _UNDECIDED
                if element is _UNDECIDED:
                    element = self._look(dataset, tag, dummy_text)
            if element is None:
                self.actions += 1
            else:
                kept[tag] = element
        result = Dataset(kept)
        result.set_original_encoding(*dataset.original_encoding, dataset.original_character_set)
        return result

    def _at_sight(self, raw: Any, fate: _Fate, dummy_text: bool) -> RawDataElement | None:
        """What becomes of an element whose bytes tell enough; `_UNDECIDED` for one that must be decoded. The same as `element`, faster."""
        value = raw.value or b""
        if raw.length == 0xFFFFFFFF or not value.isascii() or b"\x1b" in value:
            return _UNDECIDED
        vr = raw.VR or dictionary_VR(raw.tag)
        if fate is _Fate.PASS:
            return _with(raw, value) if plain(vr, value) else _UNDECIDED
        action = self.rules.actions.get(int(raw.tag))
        if vr == "SQ" or vr not in _PADDING:
            return _UNDECIDED
        if action == Action.EMPTY:
            return self._changed(raw, vr, "")
        if action == Action.DUMMY:
            return self._changed(raw, vr, DUMMIES[vr] if value else "")
        if vr == "UI":
            if self.options.uids and action in (Action.KEEP, None):
                return _with(raw, value)
            return self._changed(raw, vr, "\\".join(new_uid(one.strip(" \0"), self.key) for one in value.decode().split("\\")))
        if vr in TEXT and action in (Action.KEEP, None):
            if (action is None and int(raw.tag) not in self.rules.keep_text) or self.names_somebody(value.decode()):
                return None
            return self._changed(raw, vr, DUMMY_TEXT) if dummy_text and value.strip() else _with(raw, value)
        return _UNDECIDED

    def _changed(self, raw: Any, vr: str, text: str) -> RawDataElement:
        value = text.encode()
        value += _PADDING[vr] * (len(value) % 2)
        self.actions += value != raw.value
        return _with(raw, value)

    def _look(self, dataset: Dataset, tag: Any, dummy_text: bool) -> DataElement | None:
        try:
            return self.element(dataset[tag], dummy_text)
        except Problem:
            raise
        except Exception as error:  # pydicom decodes when first looked at, and lets errors of every kind through
            raise Problem("imaging.unreadable", reason=f"element {tag}, {type(error).__name__}") from None

    def element(self, element: DataElement, dummy_text: bool) -> DataElement | None:
        """The element as it may leave, `None` to remove it."""
        tag, vr, value = int(element.tag), element.VR, element.value
        action = self.rules.actions.get(tag)
        if action == Action.REMOVE or (action is None and not _known(tag, vr)):
            return None
        if action == Action.EMPTY:
            return self.replaced(element, Items() if vr == "SQ" else None)
        if vr == "SQ":
            return self._sequence(element, action, dummy_text)
        if action == Action.DUMMY:
            return self.dummy(element)
        if vr in DATES:
            return self._date(element, action)
        if action == Action.UID and vr != "UI":
            return None
        if vr == "UI":
            kept = self.options.uids and action in (Action.KEEP, None)
            return element if kept else self.replaced(element, each(value, lambda item: new_uid(str(item), self.key)))
        if vr == "AE" and action == Action.CLEAN:
            return self.dummy(element)
        if vr in TEXT:
            return self._text(element, action, dummy_text)
        if vr == "PN" or (vr in ("CS", "IS", "DS") and not plain(vr, written(vr, value))):
            return None
        if (vr[0] == "O" or vr == "UN" or vr.endswith("OW")) and tag not in self.rules.keep_bytes:
            return None
        return element

    def dummy(self, element: DataElement) -> DataElement | None:
        """A value that says nothing, none if there was none."""
        return self.replaced(element, DUMMIES[element.VR] if not element.is_empty else None) if element.VR in DUMMIES else None

    def replaced(self, element: DataElement, value: Any) -> DataElement:
        """The element with another value, counted if it differs."""
        self.actions += value != element.value
        return DataElement(element.tag, element.VR, value)

    def moved(self, value: str, vr: str) -> str:
        """A date or time as the options want it: shifted or kept; empty if it is none."""
        return shift(value, self.days if self.options.dates == "shift" else 0, vr)

    def names_somebody(self, value: Any) -> bool:
        """Whether a text repeats a name or an identifier of the header."""
        text = str(value).lower()
        return any(name in text for name in self.known)

    def _sequence(self, element: DataElement, action: Action | None, dummy_text: bool) -> DataElement:
        if self.options.structured and element.keyword in content.SEQUENCES:
            return DataElement(element.tag, "SQ", Items(content.clean(self, element.value)))
        inside = dummy_text or action == Action.DUMMY
        return DataElement(element.tag, "SQ", Items([self.clean(item, dummy_text=inside) for item in element.value]))

    def _date(self, element: DataElement, action: Action | None) -> DataElement | None:
        if self.options.dates == "remove" or (action is not None and int(element.tag) in self.rules.person_dates):
            return None
        return self.replaced(element, each(element.value, lambda item: self.moved(str(item), element.VR)))

    def _text(self, element: DataElement, action: Action | None, dummy_text: bool) -> DataElement | None:
        if action == Action.CLEAN:
            return self.replaced(element, each(element.value, lambda item: content.description(self, str(item))))
        if action != Action.KEEP and int(element.tag) not in self.rules.keep_text:
            return None
        if self.names_somebody(element.value):
            return None
        return self.replaced(element, DUMMY_TEXT) if dummy_text and not element.is_empty else element

    def _private(self, dataset: Dataset, tag: Any, kept: dict[Any, DataElement | RawDataElement]) -> Any:
        """A private element of the standard's list, and its creator's mark with it (PS3.5 §7.8.1)."""
        group, block = tag >> 16, tag >> 8 & 0xFF
        element = dataset.get_item(tag)
        place = group << 16 | block
        if block < 0x10 or place not in dataset:
            return None
        mark = dataset.get_item(place).value
        creator = (mark.decode("ascii", "replace") if isinstance(mark, bytes) else str(mark)).strip(" \0")
        vr = self.rules.private.get((creator, group, tag & 0xFF))
        value = written(vr or "UN", element.value)
        if vr is None or element.VR not in (vr, "UN", None) or not plain(vr, value) or (vr in TEXT and self.names_somebody(value.decode())):
            return None
        kept[type(tag)(place)] = DataElement(place, "LO", creator)
        return element


@cache
def _fate(options: Options, tag: int, vr: str | None) -> _Fate:
    """What becomes of an element, as far as its tag and kind tell."""
    if _always_removed(tag):
        return _Fate.DROP
    table = rules(options)
    action = table.actions.get(tag)
    if vr is None:
        vr = dictionary_VR(tag) if dictionary_has_tag(tag) else None
    if vr == "UN":
        return _Fate.LOOK  # pydicom knows better for attributes that DICOM defines
    if vr is None or action == Action.REMOVE or (action is None and not _known(tag, vr)):
        return _Fate.DROP
    if action not in (None, Action.KEEP):
        return _Fate.LOOK
    if tag in table.keep_bytes:
        return _Fate.BYTES
    if vr in ("CS", "IS", "DS", "US", "SS", "UL", "SL", "FL", "UV", "SV", "FD", "AT", "US or SS"):
        return _Fate.PASS if " " not in vr else _Fate.BYTES
    if vr in ("SQ", "UI") or vr in TEXT or vr in DATES:
        return _Fate.LOOK
    return _Fate.DROP  # names, and bytes that are not on the keep-list


@cache
def _known(tag: int, vr: str) -> bool:
    """Whether DICOM defines the attribute with this kind of value; a file may declare any other."""
    return dictionary_has_tag(tag) and (vr == dictionary_VR(tag) or vr in dictionary_VR(tag).split(" or "))


def _always_removed(tag: int) -> bool:
    """Group lengths and commands, curves (50xx) and overlays (60xx). Private elements are judged apart."""
    group = tag >> 16
    return group < 8 or tag & 0xFFFF == 0 or group >> 8 in (0x50, 0x60)


def declare(dataset: Dataset, options: Options, *more: str) -> None:
    """Says what was done, by PS3.15 §E.1.1 and CID 7050; `more` are codes beyond those of the options."""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = f"DICOM PS3.15 {EDITION} Annex E"
    dataset.DeidentificationMethodCodeSequence = Items([_code(value) for value in sorted({*options.codes, *more})])
    dataset.LongitudinalTemporalInformationModified = {"shift": "MODIFIED", "keep": "UNMODIFIED"}.get(options.dates, "REMOVED")


def _code(value: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", MEANINGS[value]
    return item
