"""Content that describes: items of structured reports by PS3.15 Table E.3.4-1 (§E.3.4), and cleaned descriptions (§E.3.5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset

from medmesh.imaging.deidentify.tables import Action
from medmesh.imaging.deidentify.values import DUMMY_TEXT

if TYPE_CHECKING:
    from medmesh.imaging.deidentify.engine import Cleaner

SEQUENCES = frozenset(("ContentSequence", "AcquisitionContextSequence", "SpecimenPreparationStepContentItemSequence"))


def clean(cleaner: Cleaner, items: Iterable[Dataset]) -> list[Dataset]:
    """The items that may stay, each cleaned. What may not stay is blanked instead where items refer to each other by position."""
    found = list(items)
    refer = any(_refers(item) for item in found)
    cleaned = []
    for item in found:
        action = _action(cleaner, item)
        kind = str(item.get("ValueType") or "").strip()
        if not refer and (action == Action.REMOVE or (action == Action.DUMMY and kind in ("NUM", "CODE"))):
            cleaner.actions += 1
            continue
        result = cleaner.clean(item, dummy_text=action == Action.REMOVE)
        if "TextValue" in item:
            result.TextValue = _text(cleaner, str(item.TextValue or ""), action)
        cleaned.append(result)
    return cleaned


def description(cleaner: Cleaner, text: str) -> str:
    """Of a description the words of the field, unless they are somebody's name all the same."""
    from medmesh.text import terms_of

    found = terms_of(text)
    return DUMMY_TEXT if not found or cleaner.names_somebody(found) else found


def _text(cleaner: Cleaner, text: str, action: Action | None) -> str:
    """Free text of an item: retained where the table retains it, searched where descriptions are to be cleaned, else blanked."""
    from medmesh.text import find, redact

    if action == Action.KEEP and not cleaner.names_somebody(text):
        return text
    if action in (Action.CLEAN, None) and cleaner.options.descriptors:
        return redact(text, find(text, cleaner.known))
    return DUMMY_TEXT


def _action(cleaner: Cleaner, item: Dataset) -> Action | None:
    names = item.get("ConceptNameCodeSequence")
    if not names:
        return None
    code, scheme = str(names[0].get("CodeValue") or ""), str(names[0].get("CodingSchemeDesignator") or "")
    return cleaner.rules.content.get((code, scheme, str(item.get("ValueType") or "").strip()))


def _refers(item: Dataset) -> bool:
    return "ReferencedContentItemIdentifier" in item or any(_refers(inner) for inner in item.get("ContentSequence") or ())
