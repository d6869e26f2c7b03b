"""One valid instance for a JSON Schema, always the same one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

ID = "0197b3c5-7c00-7000-8000-000000000001"
TIME = "2026-01-05T08:00:00Z"

_PATTERNS = {
    "^[0-9a-f]{64}$": "5e" * 32,
    "^[a-z0-9][a-z0-9_-]{0,62}$": "example",
    r"^([a-z0-9][a-z0-9_-]{0,62}|\*)$": "hospital-a",
}
"""A text for each pattern the contracts use; a new pattern asks for a line here."""

_NAMED: dict[str, Any] = {
    "id": ID,
    "correlationid": ID,
    "causationid": ID,
    "operation": ID,
    "service": "registry",
    "command": "registry.register.v1",
    "emitter": "registry",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "hospital": "hospital-a",
    "hospitals": ["hospital-a", "hospital-b"],
    "participants": ["hospital-a", "hospital-b"],
    "classes": ["benign", "malignant"],
    "learning_rate": "0.01",
    "codec_share": "0.01",
    "min_delta": "0.01",
    "algorithm": "fedavg",
    "local": [],
    "privacy": None,
    "secure": None,
    "pace": None,
    "screening": None,
    "media_type": "application/octet-stream",
    "modality": "US",
    "framework": "torch",
    "body": "e30=",
}
"""Fields whose value means more than its type says: others would have to agree with it, or a reader would be misled."""


def example(schema: Schema) -> Any:
    """A value that `schema` (2020-12, as pydantic writes it) allows, optional fields filled in.

    Raises `ValueError` where it meets a keyword or a pattern that it does not know: a guess would be no example.
    """
    return _value(schema, schema, "text")


def _value(schema: Schema, root: Schema, name: str) -> Any:
    if "$ref" in schema:
        return _value(resolve(schema["$ref"], root), root, name)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if _NAMED.get(name, ...) is None:
        return None
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return _value(next(option for option in schema[choice] if option.get("type") != "null"), root, name)
    if name in _NAMED and "string" in (schema.get("type"), schema.get("items", {}).get("type")):
        return _NAMED[name]
    match schema.get("type"):
        case "object":
            return _object(schema, root, name)
        case "array":
            return _array(schema, root, name)
        case "string":
            return _text(schema, name)
        case "integer":
            return _number(schema, 1)
        case "number":
            return float(_number(schema, 0.5))
        case "boolean":
            return True
        case None:
            return name
    raise ValueError(f"{name}: no example for {schema}")


def _object(schema: Schema, root: Schema, name: str) -> dict[str, Any]:
    if "properties" in schema:
        return {field: _value(inner, root, field) for field, inner in schema["properties"].items()}
    others = schema.get("additionalProperties", True)
    key = _value(schema["propertyNames"], root, name) if "propertyNames" in schema else "example"
    return {str(key): _value(others, root, name)} if isinstance(others, Mapping) else {}


def _array(schema: Schema, root: Schema, name: str) -> list[Any]:
    if "prefixItems" in schema:
        return [_value(inner, root, name) for inner in schema["prefixItems"]]
    return [_value(schema["items"], root, name) for _ in range(max(1, schema.get("minItems", 0)))]


def _text(schema: Schema, name: str) -> str:
    if schema.get("format") == "date-time":
        return TIME
    if "format" in schema:
        raise ValueError(f"{name}: no example for the format {schema['format']}")
    if "pattern" in schema:
        if schema["pattern"] not in _PATTERNS:
            raise ValueError(f"{name}: no example for the pattern {schema['pattern']}")
        return _PATTERNS[schema["pattern"]]
    return name.ljust(schema.get("minLength", 0), "-")[: schema.get("maxLength")]


def _number(schema: Schema, wanted: float) -> Any:
    """`wanted`, or the nearest number within the limits."""
    least, most = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema and wanted <= schema["exclusiveMinimum"]:
        least = schema["exclusiveMinimum"] + 1
    if "exclusiveMaximum" in schema and wanted >= schema["exclusiveMaximum"]:
        most = schema["exclusiveMaximum"] - 1
    wanted = wanted if least is None else max(wanted, least)
    return wanted if most is None else min(wanted, most)


def resolve(reference: str, root: Schema) -> Schema:
    """The schema that a reference inside `root` points to, e.g. `#/$defs/ObjectRef`."""
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)
