"""One kind of error for people: a code, a sentence in two languages, and what to do next.

A `Problem` is permanent: trying again without changing anything cannot help. It becomes problem+json (RFC 9457)
at the gateway, a field in the log, a reason in the audit record and a dead letter on the bus. Everything else that
a handler raises (a lost connection, a time-out) is transient and is tried again.

The texts live in `medmesh/catalogue/*.toml`, one table per code:

    ["federation.plan_changed"]
    status = 409
    en = "The plan of federation {federation} changed after you signed it."
    zh = "联邦 {federation} 的方案在您签署之后发生了变化。"
    hint_en = "Read the new plan and accept it again."
    hint_zh = "请阅读新的方案后重新接受。"
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True, slots=True)
class Text:
    """What is said for one code. `status` is the HTTP status it maps to."""

    status: int
    en: str
    zh: str
    hint_en: str = ""
    hint_zh: str = ""


@cache
def catalogue() -> dict[str, Text]:
    """Every text by its code. Raises `ValueError` when two files claim one code."""
    import tomllib  # a worker has these only when something is wrong
    from importlib import resources

    texts: dict[str, Text] = {}
    for file in sorted(resources.files("medmesh.catalogue").iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".toml"):
            continue
        for code, fields in tomllib.loads(file.read_text(encoding="utf-8")).items():
            if code in texts:
                raise ValueError(f"{file.name}: the code {code!r} is already taken by another file")
            texts[code] = Text(**fields)
    return texts


class Problem(Exception):
    """A mistake that a person can mend; `params` fill the placeholders of the text and must hold no patient data."""

    def __init__(self, code: str, **params: Any) -> None:
        text = catalogue()[code]
        self.code = code
        self.params = params
        self.status = text.status
        super().__init__(code, text.en.format(**params))

    def detail(self, language: str = "en") -> str:
        """The sentence in `language` ("en" or "zh")."""
        text = catalogue()[self.code]
        return (text.zh if language == "zh" else text.en).format(**self.params)

    def hint(self, language: str = "en") -> str:
        """What to do next, in `language`; empty when there is nothing to say."""
        text = catalogue()[self.code]
        return (text.hint_zh if language == "zh" else text.hint_en).format(**self.params)

    def document(self, language: str = "en") -> dict[str, Any]:
        """The problem+json document (RFC 9457 §3.1), with both our members `code` and `hint`."""
        return {
            "type": f"urn:medmesh:problem:{self.code}",
            "title": self.detail(language),
            "status": self.status,
            "code": self.code,
            "hint": self.hint(language),
            "params": {name: value if isinstance(value, bool | int | float) else str(value) for name, value in self.params.items()},
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Problem:
        """The problem another process reported. An unknown code becomes `problem.unknown` with its title."""
        code = str(document.get("code", ""))
        if code in catalogue():
            return cls(code, **document.get("params", {}))
        return cls("problem.unknown", title=document.get("title", code))

    def __str__(self) -> str:
        hint = self.hint()
        return f"{self.detail()} {hint}".strip()
