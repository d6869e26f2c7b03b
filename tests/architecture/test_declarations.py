"""What the services declare fits together: every message has who says it and who hears it, and may be said."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from tests.architecture.sources import ROOT, calls, python_files, relative, tree

from medmesh.bus.topology import EVERY_SERVICE_ASKS, OPERATOR_SENDS, permissions
from medmesh.cli.schemas import event_schemas
from medmesh.cli.schemas_flows import file_name, messages
from medmesh.contracts.labels import OWNERS, ChangeLabel, DescribeObject, FindFile, LabelChanged
from medmesh.contracts.message import Command, Event, Exchange, HospitalEvent, Message, OperationFinished, Query, Signal
from medmesh.contracts.system import ListDeadLetters, ReplayDeadLetter
from medmesh.security.roles import PERSON_ROLES, TABLE
from medmesh.service.spec import ServiceSpec, services
from medmesh_gateway.handlers import FOR_HOSPITALS
from medmesh_gateway.routes import ROUTES

SPECS = services()
MESSAGES = messages()
BY_NAME = {message.__name__: message for message in MESSAGES}
OF_EVERY_SERVICE: set[type[Message]] = {ListDeadLetters, ReplayDeadLetter, DescribeObject, ChangeLabel, FindFile}
"""Queries that the library answers for every service that has such things."""
FOLDERS = sorted(path.name for path in (ROOT / "services").iterdir() if path.is_dir())


def kind(base: type[Message]) -> list[type[Message]]:
    return [message for message in MESSAGES if issubclass(message, base) and "TYPE" in vars(message)]


def heard(spec: ServiceSpec) -> set[type[Message]]:
    return {message for consumer in spec.handlers.consumers for message in consumer.messages}


def made(*folders: str) -> set[type[Message]]:
    """The messages that code below the folders makes."""
    return {BY_NAME[name] for path in python_files(*folders) for name, _ in calls(path) if name in BY_NAME}


def names(found: set[type[Message]]) -> list[str]:
    return sorted(message.__name__ for message in found)


def test_the_contracts_are_found() -> None:
    assert len(BY_NAME) == len(MESSAGES) > 50, "two messages share a name"
    assert all(kind(base) for base in (Event, Command, Query, Signal, HospitalEvent))


def test_subjects_are_different() -> None:
    subjects = [message.subject() for message in MESSAGES]
    assert sorted(set(subjects)) == sorted(subjects)


def test_what_is_for_hospitals_reaches_them() -> None:
    assert set(kind(HospitalEvent)) == set(FOR_HOSPITALS)


def test_every_command_has_one_owner() -> None:
    for command in kind(Command):
        assert [name for name, spec in SPECS.items() if command in heard(spec)] == [command.owner()], command.__name__
        assert command in OPERATOR_SENDS or any(command in spec.sends for spec in SPECS.values()), f"{command.__name__}: nobody may send it"


def test_every_query_has_one_owner() -> None:
    for query in set(kind(Query)) - OF_EVERY_SERVICE:
        owners = [name for name, spec in SPECS.items() for responder in spec.handlers.responders if responder.query is query]
        assert owners == [query.owner()], query.__name__
        asked = query in EVERY_SERVICE_ASKS or any(query in spec.asks for spec in SPECS.values())
        assert asked, f"{query.__name__}: nobody may ask it"


def test_every_event_comes_from_its_owner() -> None:
    for event in set(kind(Event)) - {OperationFinished, LabelChanged}:
        assert [name for name, spec in SPECS.items() if event in spec.emits] == [event.owner()], event.__name__


def test_every_signal_is_sent_and_heard() -> None:
    for signal in kind(Signal):
        assert [name for name, spec in SPECS.items() if signal in spec.signals], signal.__name__


def test_nobody_waits_for_what_nobody_says() -> None:
    said = {message for spec in SPECS.values() for message in (*spec.emits, *spec.sends, *spec.signals, OperationFinished, LabelChanged)}
    said |= set(OPERATOR_SENDS)
    for spec in SPECS.values():
        listens = heard(spec) | {listener.signal for listener in spec.handlers.listeners}
        assert names(listens - said) == [], spec.name


@pytest.mark.parametrize("name", SPECS)
def test_a_service_makes_what_it_declares_and_nothing_else(name: str) -> None:
    spec = SPECS[name]
    declared = {*spec.writes, *spec.asks, *spec.signals}
    from_routes = {route.message for route in ROUTES} if name == "gateway" else set()
    assert names(made(f"services/{name}") - declared) == []
    assert names(declared - {OperationFinished, LabelChanged} - made(f"services/{name}") - from_routes) == []


@pytest.mark.parametrize("message", [*kind(Command), *kind(Query)], ids=file_name)
def test_every_action_is_in_the_role_table(message: type[Message]) -> None:
    """Who needs no role shows a secret instead, which the handler checks."""
    action = vars(message)["ACTION"]
    secrets = [name for name, field in message.model_fields.items() if field.repr is False]
    assert action in TABLE or (action is None and issubclass(message, Query) and secrets)


def test_no_action_in_the_role_table_is_left_over() -> None:
    """An action is a message's, or is asked for by name at one of the doors."""
    named = {
        node.value
        for path in python_files("libs", "services")
        if path.name != "roles.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert sorted(TABLE.keys() - named) == []


def test_roles_in_the_table_exist() -> None:
    known = {*PERSON_ROLES, "hospital", "system", "service:operator"}
    assert {action: set(roles) - known for action, roles in TABLE.items() if set(roles) - known} == {}


def test_every_route_is_there_once() -> None:
    doors = [(route.method, route.path) for route in ROUTES]
    assert sorted(set(doors)) == sorted(doors)
    carried = [route.message for route in ROUTES]
    assert len(set(carried)) == len(carried)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_service_explains_itself_on_one_screen(folder: str) -> None:
    readme = ROOT / "services" / folder / "README.md"
    assert readme.exists(), f"services/{folder} has no README.md"
    assert 5 <= len(readme.read_text(encoding="utf-8").splitlines()) <= 80


def test_subjects_hold_no_field_of_a_message_but_who_speaks_or_is_asked() -> None:
    """A subject is seen by every server and in every log."""
    for path in python_files("libs/medmesh/contracts"):
        for function in ast.walk(tree(path)):
            if isinstance(function, ast.FunctionDef) and function.name == "address":
                used = {
                    n.attr
                    for n in ast.walk(function)
                    if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "self"
                }
                assert used <= {"subject", "TYPE", "hospital", "service"}, f"{relative(path)}:{function.lineno}"


@pytest.mark.parametrize("message", MESSAGES, ids=file_name)
def test_a_message_goes_where_its_owner_may_publish(message: type[Message]) -> None:
    """The address in the example lies inside the subject that permissions and streams are made from."""
    wanted = message.subject().split(".")
    actual = json.loads(event_schemas_once()[f"{file_name(message)}.json"])["examples"][0]["type"].split(".")
    assert len(wanted) == len(actual)
    assert all(a == b or a == "*" for a, b in zip(wanted, actual, strict=True))
    if issubclass(message, Event) and message not in (OperationFinished, LabelChanged):
        assert message.subject() in permissions(SPECS[message.owner()]).publish


_SCHEMAS: dict[str, str] = {}


def event_schemas_once() -> dict[str, str]:
    if not _SCHEMAS:
        _SCHEMAS.update(event_schemas())
    return _SCHEMAS


def test_services_have_the_same_files() -> None:
    """Whoever knows one service knows all."""
    for name in SPECS:
        folder: Path = ROOT / "services" / name / f"medmesh_{name}"
        missing = [file for file in ("service.py", "settings.py", "ports.py", "tables.py", "migrations") if not (folder / file).exists()]
        assert missing == [], name
        assert (folder / "api.py").exists() == SPECS[name].http


def test_what_changes_something_and_travels_as_a_query_is_an_exchange() -> None:
    """So that it cannot succeed without an audit record. A status is asked for with POST only because its secret may stand in no URL."""
    changing = {route.message for route in ROUTES if route.method != "GET" and issubclass(route.message, Query)}
    assert {message.__name__ for message in changing if not issubclass(message, Exchange)} == {"GetEnrolment"}
    assert {route.method for route in ROUTES if issubclass(route.message, Exchange)} <= {"POST", "DELETE"}


LABELLED = {kind for spec in SPECS.values() for kind in spec.handlers.labelled}


def test_every_labelled_kind_has_an_owner_who_labels_it() -> None:
    for kind_ in LABELLED:
        assert kind_ in SPECS[OWNERS[kind_][0]].handlers.labelled, kind_
    for name, spec in SPECS.items():
        if spec.handlers.labelled | spec.handlers.copied:
            assert {"object_labels", "label_changes", "label_sources", "labels_heard", "object_files"} <= set(spec.metadata.tables), name


@pytest.mark.parametrize("message", [*kind(Command), *kind(Query)], ids=file_name)
def test_the_objects_a_message_names_can_be_found(message: type[Message]) -> None:
    """Their kinds are owned by somebody, their fields are there, and what must be allowed is in the role table."""
    for names_ in message.OBJECTS:
        assert names_.kind in OWNERS
        assert not names_.action or names_.action in TABLE
        for path in re.findall(r"{(\w+)", names_.id):
            assert path in message.model_fields
    assert not message.MAKES or message.MAKES in SPECS[message.owner()].handlers.labelled
    handlers = SPECS[message.owner()].handlers if message.LISTS else None
    assert handlers is None or message.LISTS in handlers.labelled | handlers.copied


NAMING_FIELDS = {"dataset", "project", "job", "federation", "model", "release"}
"""A field of this name in a command or a query is about an object of this kind."""


@pytest.mark.parametrize("message", [*kind(Command), *kind(Query)], ids=file_name)
def test_no_message_is_about_a_labelled_object_past_the_guard(message: type[Message]) -> None:
    about = NAMING_FIELDS & set(message.model_fields)
    if message.owner() == "audit":
        return  # what the log knows of an object is the auditors' to search, by the organisations in each leaf's header
    named = {one.kind for one in message.OBJECTS}
    assert about - named - {message.MAKES} == set()
