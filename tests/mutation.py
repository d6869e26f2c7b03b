"""Takes each audit record away in turn and looks whether a test misses it: `make mutation`, or `python -m tests.mutation FILE…`.

First the tests run as they are, and it is noted which of them leaves which record. A record is known by its place and by the places
that led there, so a helper that many handlers share is one mutant for each of them. Then each is swallowed in turn, and the tests that
left it run again, the fastest first, until one fails. A record that no test misses, or that no test leaves, is printed, and the
command ends with 1. A command's only record is missed by the service itself (`must_be_accounted`): the test that asks for it fails.
"""

from __future__ import annotations

import ast
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from medmesh.store.unit import UnitOfWork

ROOT = Path(__file__).parents[1]
PLACES = ("services", "libs/medmesh/service")
SUITES = ("tests/integration", "tests/e2e/test_node.py")
Chain = tuple[str, ...]
"""Where a record is left, innermost first: `services/…/handlers.py:12`."""


def places() -> Iterator[str]:
    """Every statement `….audit(…)`."""
    for file in sorted(path for folder in PLACES for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            call = node.value if isinstance(node, ast.Expr) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "audit":
                yield f"{file.relative_to(ROOT)}:{node.lineno}"


def chain(frame: FrameType | None) -> Chain:
    """The places of ours that led to a frame."""
    found: list[str] = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and str(path.relative_to(ROOT)).startswith(PLACES):
            found.append(f"{path.relative_to(ROOT)}:{frame.f_lineno}")
        elif found:
            break
        frame = frame.f_back
    return tuple(found)


class Mutants:
    """A pytest plugin that takes the place of the ordinary loop over the tests."""

    def __init__(self) -> None:
        self.gone: Chain | None = None
        self.left: set[Chain] = set()
        self.survivors = 0

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        audit = UnitOfWork.audit

        def noted(uow: UnitOfWork[Any], entry: Any) -> None:
            here = chain(sys._getframe(1))
            self.left.add(here)
            if here != self.gone:
                audit(uow, entry)

        UnitOfWork.audit = noted  # type: ignore[method-assign]
        try:
            self._through(session)
        finally:
            UnitOfWork.audit = audit  # type: ignore[method-assign]
        return True

    def _through(self, session: pytest.Session) -> None:
        tests: dict[Chain, list[tuple[float, pytest.Item]]] = defaultdict(list)
        for item in session.items:
            self.left.clear()
            started = time.perf_counter()
            if why := failure(item):
                print(f"fails as it is  {item.nodeid}: {why}", flush=True)
                continue
            for found in self.left:
                tests[found].append((time.perf_counter() - started, item))
        whole = set(session.config.args) == set(SUITES)
        unreached = sorted(set(places()) - {found[0] for found in tests}) if whole else []
        for number, (found, with_it) in enumerate(sorted(tests.items(), key=lambda pair: pair[0]), 1):
            self.gone = found
            missed = next((item for _, item in sorted(with_it, key=lambda pair: pair[0]) if failure(item)), None)
            said = f"missed by {missed.name}" if missed else "NOT MISSED"
            print(f"{number}/{len(tests)}  {' < '.join(found)}  {said}", flush=True)
            self.survivors += missed is None
        self.gone = None
        for place in unreached:
            print(f"NOT REACHED  {place}", flush=True)
        self.survivors += len(unreached)
        session.testsfailed = self.survivors
        print(f"{self.survivors} of {len(tests) + len(unreached)} records could go without a test that fails", flush=True)


def failure(item: pytest.Item) -> str:
    """Run one test, and say why it fails; what the session has set up stays up."""
    item.session._setupstate.teardown_exact(item.parent)  # what an earlier test's file had set up
    item._initrequest()  # type: ignore[attr-defined]  # as at its collection: the fixtures of an earlier run are gone
    reports = runtestprotocol(item, log=False, nextitem=item.parent)  # type: ignore[arg-type]
    return next((f"{report.when}: {report.longreprtext.splitlines()[-1]}" for report in reports if report.failed), "")


def main(names: list[str]) -> int:
    """Go through the tests named, or all that leave records."""
    options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not faults"]
    plugin = Mutants()
    pytest.main([*options, *(names or SUITES)], plugins=[plugin])
    return 1 if plugin.survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
