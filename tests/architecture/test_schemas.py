"""The generated files are fresh, true, and compatible with what was released."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, FormatChecker, ValidationError  # type: ignore[import-untyped]
from tests.architecture.sources import ROOT

from medmesh.bus.topology import EVERY_SERVICE_HEARS, OPERATOR, administrators, permissions
from medmesh.cli.schemas import generate, stale, write
from medmesh.cli.schemas_compatible import breaks, broken
from medmesh.cli.schemas_example import example
from medmesh.cli.schemas_flows import file_name, messages
from medmesh.contracts.audit import record_subject
from medmesh.contracts.message import Envelope, Message, Query, decode, encode
from medmesh.errors import Problem
from medmesh.service.spec import services

GENERATED = generate()
EVENTS = {Path(path).name: text for path, text in GENERATED.items() if path.startswith("schemas/events/")}
Json = dict[str, Any]


def schema(name: str) -> Json:
    found: Json = json.loads(EVENTS[f"{name}.json"])
    return found


def validator(document: Json) -> Draft202012Validator:
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document, format_checker=FormatChecker())


# --- fresh ----------------------------------------------------------------------------------------------------------


def test_generated_files_are_up_to_date() -> None:
    assert stale(ROOT, GENERATED) == [], "run 'medmesh develop schemas'"


def test_writing_twice_writes_the_same() -> None:
    assert generate() == GENERATED


def test_a_changed_a_missing_and_a_left_over_file_are_stale(tmp_path: Path) -> None:
    write(tmp_path, GENERATED)
    assert stale(tmp_path, GENERATED) == []
    (tmp_path / "schemas/events/evt.gone.v1.json").write_text("{}")
    (tmp_path / "schemas/permissions.json").write_text("{}")
    (tmp_path / "docs/events.md").unlink()
    assert stale(tmp_path, GENERATED) == ["docs/events.md", "schemas/events/evt.gone.v1.json", "schemas/permissions.json"]
    write(tmp_path, GENERATED)
    assert stale(tmp_path, GENERATED) == []


# --- true -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(name.removesuffix(".json") for name in EVENTS))
def test_examples_are_valid_and_nothing_may_be_added(name: str) -> None:
    document = schema(name)
    (value,) = document["examples"]
    validator(document).validate(value)
    with pytest.raises(ValidationError):
        validator(document).validate({**value, "unheard_of": 1})


@pytest.mark.parametrize("message", messages(), ids=file_name)
def test_examples_are_what_a_writer_writes_and_a_reader_reads(message: type[Message]) -> None:
    (value,) = schema(file_name(message))["examples"]
    read = decode(json.dumps(value).encode(), message)
    assert json.loads(encode(read)) == value
    with pytest.raises(Problem):
        decode(json.dumps({**value, "data": None}).encode(), message)


@pytest.mark.parametrize("message", messages(), ids=file_name)
def test_a_reader_takes_what_a_writer_leaves_out(message: type[Message]) -> None:
    """A writer leaves out what is None, so a field that may be None must not be required."""
    (value,) = schema(file_name(message))["examples"]
    read = decode(json.dumps({**value, "data": emptied(message, value["data"])}).encode(), message)
    written = encode(read)
    assert decode(written, message) == read
    validator(schema(file_name(message))).validate(json.loads(written))


def emptied(message: type[Message], data: Json) -> Json:
    """`data` with None wherever the message's schema allows it."""
    root = message.model_json_schema()

    def walk(node: Json, value: Any) -> Any:
        if "$ref" in node:
            return walk(root["$defs"][node["$ref"].rsplit("/", 1)[-1]], value)
        if any(option.get("type") == "null" for option in node.get("anyOf", ())):
            return None
        if isinstance(value, dict) and "properties" in node:
            return {name: walk(inner, value[name]) for name, inner in node["properties"].items() if name in value}
        if isinstance(value, dict) and isinstance(node.get("additionalProperties"), dict):
            return {name: walk(node["additionalProperties"], inner) for name, inner in value.items()}
        if isinstance(value, list) and isinstance(node.get("items"), dict):
            return [walk(node["items"], inner) for inner in value]
        return value

    emptied: Json = walk(root, data)
    return emptied


@pytest.mark.parametrize("query", [m for m in messages() if issubclass(m, Query)], ids=file_name)
def test_examples_of_replies_are_read(query: type[Query]) -> None:
    (value,) = schema(f"{file_name(query)}.reply")["examples"]
    assert query.Reply.model_validate_json(json.dumps(value)).model_dump(mode="json") == value


def test_no_example_is_invented_for_a_pattern_nobody_knows() -> None:
    with pytest.raises(ValueError, match="pattern"):
        example({"type": "object", "properties": {"code": {"type": "string", "pattern": "^[A-Z]$"}}})


def test_every_schema_is_a_writers() -> None:
    """Deep inside too: an object with named fields takes no others."""
    for name, text in EVENTS.items():
        for node in objects(json.loads(text)):
            assert node.get("additionalProperties") is False, f"{name}: {node.get('description', sorted(node['properties']))}"


def objects(node: Any) -> Iterator[Json]:
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict) and "type" in node:
            yield node
        for key, value in node.items():
            if key != "examples":
                yield from objects(value)
    elif isinstance(node, list):
        for value in node:
            yield from objects(value)


# --- compatible -----------------------------------------------------------------------------------------------------


def test_every_release_is_still_understood() -> None:
    released = ROOT / "schemas" / "released"
    assert list(released.glob("*/*.json")), "no release is kept: 'medmesh develop freeze' keeps one"
    assert broken(released, EVENTS) == []


def plan(document: Json) -> Json:
    found: Json = document["$defs"]["Plan"]
    return found


def add_optional(d: Json) -> None:
    plan(d)["properties"]["note"] = {"type": "string", "default": ""}


def reword(d: Json) -> None:
    d["description"] = plan(d)["description"] = "said otherwise"
    d["examples"] = []


def remove(d: Json) -> None:
    del plan(d)["properties"]["purpose"]
    plan(d)["required"].remove("purpose")


def rename(d: Json) -> None:
    plan(d)["properties"]["aim"] = plan(d)["properties"].pop("purpose")
    plan(d)["required"][plan(d)["required"].index("purpose")] = "aim"


def retype(d: Json) -> None:
    plan(d)["properties"]["rounds"] = {"type": "string"}


def add_required(d: Json) -> None:
    plan(d)["properties"]["note"] = {"type": "string"}
    plan(d)["required"].append("note")


def narrow(d: Json) -> None:
    plan(d)["properties"]["rounds"]["maximum"] = 5


def loosen(d: Json) -> None:
    plan(d)["required"].remove("framework")


def move(d: Json) -> None:
    d["properties"]["type"]["const"] = "medmesh.evt.federation.federation.asked.v1"


@pytest.mark.parametrize("change", [add_optional, reword])
def test_compatible_changes(change: Any) -> None:
    old = schema("evt.federation.federation.invited.v1")
    new = copy.deepcopy(old)
    change(new)
    assert new != old
    assert breaks(old, new) == []


def test_a_default_may_say_more_and_not_otherwise() -> None:
    old = {"properties": {"lineage": {"type": "object", "default": {"job": None}}}}
    for default, found in (({"job": None, "undone": []}, []), ({"job": "x", "undone": []}, 2), ({}, 1)):
        new = {"properties": {"lineage": {"type": "object", "default": default}}}
        assert (len(breaks(old, new)) if found else breaks(old, new)) == found


def test_a_record_that_became_a_choice_is_still_held_to_what_it_was() -> None:
    released = sorted((ROOT / "schemas" / "released").glob("*/evt.federation.federation.invited.v1.json"))
    old, new = json.loads(released[0].read_text()), schema("evt.federation.federation.invited.v1")
    assert breaks(old, new) == []
    narrower = copy.deepcopy(new)
    del narrower["$defs"]["ImageSchema"]["properties"]["channels"]
    assert breaks(old, narrower) == ["data.plan.data.channels: removed"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (remove, "data.plan.purpose: removed"),
        (rename, "data.plan.aim: new and required"),
        (retype, "data.plan.rounds"),
        (add_required, "data.plan.note: new and required"),
        (narrow, "data.plan.rounds"),
        (loosen, "data.plan.framework: optional now"),
        (move, "type"),
    ],
)
def test_incompatible_changes_are_named(change: Any, where: str) -> None:
    old = schema("evt.federation.federation.invited.v1")
    new = copy.deepcopy(old)
    change(new)
    assert any(found.startswith(where) for found in breaks(old, new)), breaks(old, new)


def test_a_message_that_is_gone_breaks_the_release(tmp_path: Path) -> None:
    (tmp_path / "0.0.1").mkdir()
    (tmp_path / "0.0.1" / "evt.gone.v1.json").write_text("{}")
    assert broken(tmp_path, EVENTS) == ["0.0.1 evt.gone.v1.json: removed"]


# --- AsyncAPI -------------------------------------------------------------------------------------------------------


ASYNCAPI: Json = yaml.safe_load(GENERATED["schemas/asyncapi.yaml"])


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_asyncapi_has_the_shape_of_version_3() -> None:
    assert ASYNCAPI["asyncapi"] == "3.0.0"
    assert ASYNCAPI["info"]["title"]
    assert ASYNCAPI["info"]["version"]
    for channel in ASYNCAPI["channels"].values():
        assert channel.keys() <= {"address", "messages", "parameters", "description"}
        assert set(re.findall(r"{(\w+)}", channel["address"] or "")) == set(channel.get("parameters", ()))
        assert channel["messages"]
    for name, operation in ASYNCAPI["operations"].items():
        assert operation.keys() <= {"action", "channel", "messages", "reply"}
        assert operation["action"] in ("send", "receive")
        for side in (operation, operation.get("reply", operation)):
            assert all(message["$ref"].startswith(side["channel"]["$ref"] + "/messages/") for message in side["messages"]), name


def test_asyncapi_refers_to_what_is_there() -> None:
    found = set(references(ASYNCAPI))
    assert len(found) > 100
    for reference in found:
        if not reference.startswith("#/"):
            assert f"schemas/{reference}" in GENERATED, reference
            continue
        node: Any = ASYNCAPI
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]


def test_asyncapi_and_permissions_tell_of_the_same_subjects() -> None:
    """Whoever may publish or hear a subject of ours has an operation for it, and nobody has one that may not."""
    specs = services()
    for allowed in [*map(permissions, specs.values()), *administrators()]:
        for_others = {record_subject(emitter) for emitter in (specs[allowed.identity].audits_as if allowed.identity in specs else ())}
        for action, subjects in (("send", allowed.publish), ("receive", allowed.subscribe)):
            ours = {subject for subject in subjects if subject.startswith("medmesh.")} - for_others
            told = {
                filled(ASYNCAPI["channels"][operation["channel"]["$ref"].removeprefix("#/channels/")]["address"], allowed.identity, action)
                for name, operation in ASYNCAPI["operations"].items()
                if name.startswith(f"{allowed.identity}.{action}.")
            }
            if action == "receive":  # through a stream: a consumer pulls, and nobody subscribes
                past = {event.subject() for event in EVERY_SERVICE_HEARS}
                told = {subject for subject in told if subject in past or not subject.startswith(("medmesh.evt.", "medmesh.cmd."))}
            assert told == ours, f"{allowed.identity} {action}"


def filled(address: str, identity: str, action: str) -> str:
    """The subject of a channel as one identity publishes or hears it."""
    service = "*" if identity == OPERATOR or (action == "send" and address.startswith("medmesh.qry.")) else identity
    return address.format(hospital="*", service=service, emitter=identity if action == "send" else "*")


# --- OpenAPI --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", [name for name, spec in services().items() if spec.http])
def test_openapi_is_whole(service: str) -> None:
    document = json.loads(GENERATED[f"schemas/http/{service}.json"])
    assert document["openapi"].startswith("3.1")
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"], reference
    identifiers = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert sorted(set(identifiers)) == sorted(identifiers)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            named = [p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"]
            assert sorted(named) == sorted(re.findall(r"{(\w+)", path)), f"{method} {path}"


def test_an_envelope_of_another_message_is_not_read() -> None:
    (value,) = schema("evt.registry.model.released.v1")["examples"]
    other = schema("evt.registry.model.installed.v1")
    with pytest.raises(ValidationError):
        validator(other).validate(value)
    assert set(value) == {name for name in Envelope.model_fields if value.get(name) is not None}
