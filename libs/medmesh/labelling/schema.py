"""The label schema of a classification project: its classes, fixed for good."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from medmesh.errors import Problem

MAX_CLASSES = 1000
MAX_LENGTH = 64


@dataclass(frozen=True, slots=True)
class LabelSchema:
    """At least two classes, in the order that gives each its index. Build it with `of`."""

    classes: tuple[str, ...]

    @classmethod
    def of(cls, classes: Iterable[str]) -> LabelSchema:
        """Check the classes. Raises `Problem` (`annotation.schema`)."""
        found = tuple(classes)
        if not 2 <= len(found) <= MAX_CLASSES:
            raise Problem("annotation.schema", reason=f"a schema has 2 to {MAX_CLASSES} classes, not {len(found)}")
        for place, name in enumerate(found, start=1):
            if reason := _fault(name):
                raise Problem("annotation.schema", reason=f"class {place} {reason}")
        # Two spellings that a person reads as one class would split its items in two.
        if len({name.casefold() for name in found}) < len(found):
            raise Problem("annotation.schema", reason="two classes have the same name")
        return cls(found)

    def check(self, label: str) -> str:
        """`label`, which is one of the classes. Raises `Problem` (`annotation.class_unknown`), which does not repeat what was typed."""
        if label not in self.classes:
            raise Problem("annotation.class_unknown", classes=", ".join(self.classes))
        return label


def _fault(name: str) -> str:
    if not 1 <= len(name) <= MAX_LENGTH:
        return f"is not 1 to {MAX_LENGTH} characters long"
    if name != name.strip() or not name.isprintable():
        return "has white space around it or characters that cannot be seen"
    if not unicodedata.is_normalized("NFC", name):
        return "is not in Unicode normal form NFC"
    return ""
