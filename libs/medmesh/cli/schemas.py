"""The files that are generated from the declarations: schemas, AsyncAPI, OpenAPI, permissions, the table of messages.

Everything is written from the code alone and in a fixed order, so that a file differs only when what it describes does.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from medmesh.bus.topology import OPERATOR, OPERATOR_SENDS, administrators, permissions
from medmesh.cli import schemas_asyncapi, schemas_matrix
from medmesh.cli.schemas_asyncapi import first_line
from medmesh.cli.schemas_example import example
from medmesh.cli.schemas_flows import DEAD_LETTERS, OF_EVERY_SERVICE, Flow, Party, audit_flow, flow, messages, parties
from medmesh.contracts.message import Envelope, Event, Message, decode, encode
from medmesh.service.spec import services

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ROOT = Path(__file__).resolve().parents[3]
"""The source tree this module lies in."""


def generate() -> dict[str, str]:
    """Every generated file: its path below the source tree, and its text."""
    specs = services()
    everybody = parties(specs)
    identities = [*map(permissions, specs.values()), *administrators()]
    allowed = {p.identity: {"publish": p.publish, "subscribe": p.subscribe, "responses": p.responses} for p in identities}
    return {
        **{f"schemas/events/{name}": text for name, text in event_schemas().items()},
        **{f"schemas/http/{name}.json": _json(_openapi(name)) for name, spec in specs.items() if spec.http},
        "schemas/asyncapi.yaml": _yaml(schemas_asyncapi.document(everybody, version("medmesh"))),
        "schemas/permissions.json": _json(allowed),
        "docs/events.md": _table(everybody),
        "docs/security/matrix.md": schemas_matrix.document({name: application(name) for name in ("gateway", "audit")}),
    }


def event_schemas() -> dict[str, str]:
    """One writer schema a message and one a reply, by file name."""
    flows = [*map(flow, messages()), audit_flow()]
    found = {f"{f.name}.json": _json(_envelope(f.model) if issubclass(f.model, Message) else _plain(f.name, f.model)) for f in flows}
    return found | {f"{f.name}.reply.json": _json(_plain(f"{f.name}.reply", f.reply)) for f in flows if f.reply is not None}


def stale(root: Path, files: Mapping[str, str]) -> list[str]:
    """The paths whose file is missing, differs, or is no longer generated."""
    there = {str(path.relative_to(root)) for path in _present(root)}
    changed = {path for path, text in files.items() if path not in there or (root / path).read_text(encoding="utf-8") != text}
    return sorted(changed | (there - files.keys()))


def write(root: Path, files: Mapping[str, str]) -> list[str]:
    """Bring the files below `root` up to date; the paths that changed."""
    changed = stale(root, files)
    for path in changed:
        if path in files:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(files[path], encoding="utf-8", newline="\n")
        else:
            (root / path).unlink()
    return changed


def freeze(root: Path, release: str, schemas: Mapping[str, str]) -> Path:
    """Keep `schemas` as those of a release. Raises `FileExistsError`: what was released does not change."""
    folder = root / "schemas" / "released" / release
    folder.mkdir(parents=True)
    for name, text in schemas.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return folder


def _present(root: Path) -> Iterable[Path]:
    """The generated files that lie below `root`."""
    single = (root / "schemas/asyncapi.yaml", root / "schemas/permissions.json", root / "docs/events.md", root / "docs/security/matrix.md")
    return [*(root / "schemas/events").glob("*"), *(root / "schemas/http").glob("*"), *(path for path in single if path.exists())]


def _envelope(message: type[Message]) -> dict[str, Any]:
    schema = Envelope[message].model_json_schema(mode="serialization")  # type: ignore[valid-type]
    urn = f"urn:medmesh:schema:{message.KIND}.{message.TYPE}"
    value = {**example(schema), "dataschema": urn}
    # The address depends on the message's own fields, so it is read back from the example; so is what a writer leaves out.
    written = decode(json.dumps(value).encode(), message)
    written = written.model_copy(update={"type": written.data.address(), "source": f"/medmesh/{_speaker(message, value['data'])}"})
    value = json.loads(encode(written))
    subject = message.subject()
    name = r"[a-z0-9][a-z0-9_-]*"
    schema["properties"]["type"] = (
        {"type": "string", "pattern": "^" + subject.replace(".", r"\.").replace("*", name) + "$"} if "*" in subject else {"const": subject}
    )
    schema["properties"]["dataschema"] = {"const": urn}
    return _document(urn, message, schema, value)


def _speaker(message: type[Message], data: Mapping[str, Any]) -> str:
    """Who says it: the owner of a fact; of what is asked or signalled the gateway, and the operator of dead letters."""
    if issubclass(message, Event):
        return str(data["service"]) if "*" in message.TYPE else message.owner()
    return OPERATOR if message in (*DEAD_LETTERS, *OPERATOR_SENDS) else "gateway"


def _plain(name: str, model: type[BaseModel]) -> dict[str, Any]:
    """Of what travels without an envelope: replies, and records on their way to the log."""
    schema = model.model_json_schema(mode="serialization")
    value = model.model_validate_json(json.dumps(example(schema))).model_dump(mode="json")
    return _document(f"urn:medmesh:schema:{name}", model, schema, value)


def _document(urn: str, model: type[BaseModel], schema: dict[str, Any], value: Any) -> dict[str, Any]:
    about = {"description": line} if (line := first_line(model)) else {}
    body = _untitled(schema)
    body.pop("description", None)
    return {"$schema": DIALECT, "$id": urn, "title": model.__name__, **about, **body, "examples": [value]}


def _untitled(schema: Any) -> Any:
    """Without the titles that only repeat a field's name. A field may itself be called `title`; its schema is no text."""
    if isinstance(schema, dict):
        return {key: _untitled(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}
    return [_untitled(value) for value in schema] if isinstance(schema, list) else schema


class _Absent:
    """Stands for what an application uses only when it serves; describing its routes needs nothing of it."""

    def __getattr__(self, name: str) -> _Absent:
        return self


def application(service: str) -> Any:
    """The HTTP application of a service, with nothing behind it."""
    build = importlib.import_module(f"medmesh_{service}.api").application
    return build(*(_Absent() for _ in inspect.signature(build).parameters))


def _openapi(service: str) -> dict[str, Any]:
    document: dict[str, Any] = application(service).openapi()
    return document


def _table(everybody: Iterable[Party]) -> str:
    lines = [
        "# Messages",
        "",
        "Generated by `medmesh develop schemas`. Who receives and who sends what; the schema of each message, with an example,",
        "is `schemas/events/<name>.json`, and that of a query's reply `<name>.reply.json`.",
        "",
        "Not repeated below: every service hands in its audit records, and answers an operator about its dead letters.",
    ]
    for party in everybody:
        lines += ["", f"## {party.name}", "", party.purpose]
        for heading, flows in (("Receives", party.receives), ("Sends", party.sends)):
            rows = [_row(flow) for flow in flows if party.name == OPERATOR or flow.name not in OF_EVERY_SERVICE]
            if rows:
                lines += ["", f"{heading}:", "", "| | name | fields | |", "| --- | --- | --- | --- |", *rows]
    return "\n".join(lines) + "\n"


def _row(flow: Flow) -> str:
    fields = ", ".join(f"`{name}`" for name in flow.model.model_fields)
    said = first_line(flow.model).replace("|", "\\|")
    return f"| {flow.kind} | [{flow.name}](../schemas/events/{flow.name}.json) | {fields} | {said} |"


def _json(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _yaml(document: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    return text
