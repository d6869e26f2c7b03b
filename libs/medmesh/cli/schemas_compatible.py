"""Whether a schema still reads what an earlier release wrote, and the earlier release what this one writes.

A new optional field is compatible, because readers ignore what they do not know. Anything else is a new major version of
the message, under a subject of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmesh.cli.schemas_example import Schema, resolve

_WORDS = frozenset({"title", "description", "examples", "$defs", "$id", "$schema"})
"""What is said about a schema, not by it."""

OPENED = frozenset({"plan.algorithm"})
"""Texts that had one value and may have others now. A node of an earlier release refuses a plan with another one, as it must: it does not
know what it would sign."""

WIDENED = frozenset({"plan.data"})
"""Records that became a choice, of which the first is what the record was: what an earlier release wrote is still read, and it refuses,
as it must, a plan about data that it does not know."""


def breaks(old: Schema, new: Schema) -> list[str]:
    """What changed incompatibly from `old` to `new`: `data.plan.rounds: removed`; empty when nothing did."""
    return _compare(old, new, old, new, "")


def broken(released: Path, current: Mapping[str, str]) -> list[str]:
    """Every break against every release: `released/<version>/<name>.json` against `current`, texts by the same name."""
    found = []
    for file in sorted(released.glob("*/*.json")):
        where = f"{file.parent.name} {file.name}"
        if file.name not in current:
            found.append(f"{where}: removed")
        else:
            changes = breaks(json.loads(file.read_text(encoding="utf-8")), json.loads(current[file.name]))
            found += [f"{where}: {change}" for change in changes]
    return found


def _compare(old: Any, new: Any, old_root: Schema, new_root: Schema, path: str) -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        old, new = _follow(old, old_root), _follow(new, new_root)
        if path.removeprefix("data.") in OPENED and old.get("type") == new.get("type") and ("const" in old or old == new):
            return []
        if path.removeprefix("data.") in WIDENED and "oneOf" not in old and "oneOf" in new:
            return _compare(old, new["oneOf"][0], old_root, new_root, path)
        found = []
        for key in sorted((old.keys() | new.keys()) - _WORDS - {"properties", "required"}):
            if key not in old or key not in new:
                found.append(f"{path or 'message'}: {key} {'added' if key in new else 'removed'}")
            elif key != "default" or not _says_more(old[key], new[key]):
                found += _compare(old[key], new[key], old_root, new_root, path)
        return found + _fields(old, new, old_root, new_root, path)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [change for a, b in zip(old, new, strict=True) for change in _compare(a, b, old_root, new_root, path)]
    return [] if old == new else [f"{path or 'message'}: {json.dumps(old)} became {json.dumps(new)}"]


def _says_more(old: Any, new: Any) -> bool:
    """Whether a default is the one it was with further fields, each of which `_fields` looks at."""
    return isinstance(old, Mapping) and isinstance(new, Mapping) and all(name in new and new[name] == old[name] for name in old)


def _fields(old: Schema, new: Schema, old_root: Schema, new_root: Schema, path: str) -> list[str]:
    before, after = old.get("properties", {}), new.get("properties", {})
    required_before, required_after = set(old.get("required", ())), set(new.get("required", ()))
    found = []
    for name in sorted(before.keys() | after.keys()):
        where = f"{path}.{name}".removeprefix(".")
        if name not in after:
            found.append(f"{where}: removed")
        elif name not in before:
            found += [f"{where}: new and required"] if name in required_after else []
        elif (name in required_before) != (name in required_after):
            found.append(f"{where}: {'required' if name in required_after else 'optional'} now")
        else:
            found += _compare(before[name], after[name], old_root, new_root, where)
    return found


def _follow(schema: Schema, root: Schema) -> Schema:
    return {**resolve(schema["$ref"], root), **{k: v for k, v in schema.items() if k != "$ref"}} if "$ref" in schema else schema
