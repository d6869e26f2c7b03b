"""Takes each audit record away in turn and looks whether a test misses it: `make mutation`, or `python -m tests.mutation FILE…`.

First the tests run as they are, and it is noted which of them leaves which record. A record is known by its place and by the places
that led there, so a helper that many handlers share is one mutant for each of them. Then each is swallowed in turn, and the tests that
left it run again, the fastest first, until one fails. A record that no test misses, or that no test leaves, is printed, and the
command ends with 1. A command's only record is missed by the service itself (`must_be_accounted`): the test that asks for it fails.

`--jobs` processes share the work, and what they found is kept in `build/mutation`: a run that was ended goes on where it was, unless the
services have changed since, which begins it anew.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from _pytest.warnings import catch_warnings_for_item

from medmesh.store.unit import UnitOfWork

ROOT = Path(__file__).parents[1]
PLACES = ("services", "libs/medmesh/service")
SUITES = ("tests/integration", "tests/unit/edge", *(f"tests/e2e/test_{name}.py" for name in ("node", "chain", "secure_nodes", "pipelines")))
NOTES = ROOT / "build" / "mutation"
Chain = tuple[str, ...]
"""Where a record is left, innermost first: `services/…/handlers.py:12`."""


def sources() -> list[Path]:
    return sorted(path for folder in PLACES for path in (ROOT / folder).rglob("*.py"))


def places() -> Iterator[str]:
    """Every statement `….audit(…)`."""
    for file in sources():
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
    """A pytest plugin that takes the place of the ordinary loop over the tests, for one of `jobs` parts of the work."""

    def __init__(self, part: int, jobs: int) -> None:
        self.part, self.jobs = part, jobs
        self.gone: Chain | None = None
        self.left: set[Chain] = set()
        self.survivors = 0

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("not every file can be read as tests")
        audit = UnitOfWork.audit

        def noted(uow: UnitOfWork[Any], entry: Any) -> None:
            if here := chain(sys._getframe(1)):  # a test may leave one itself
                self.left.add(here)
            if here != self.gone:
                audit(uow, entry)

        UnitOfWork.audit = noted  # type: ignore[method-assign]
        try:
            if not _left(self.part).exists():
                self._as_they_are(session)
            self._without_each({item.nodeid: item for item in session.items}, whole=set(session.config.args) == set(SUITES))
        finally:
            UnitOfWork.audit = audit  # type: ignore[method-assign]
        session.testsfailed = self.survivors
        return True

    def _as_they_are(self, session: pytest.Session) -> None:
        files = sorted({item.path for item in session.items}, key=lambda path: (-path.stat().st_size, path))
        mine = set(files[self.part :: self.jobs])
        found: list[tuple[Chain, float, str]] = []
        for item in (item for item in session.items if item.path in mine):
            self.left.clear()
            started = time.perf_counter()
            if why := failure(item):
                print(f"fails as it is  {item.nodeid}: {why}", flush=True)
            else:
                found += [(record, time.perf_counter() - started, item.nodeid) for record in self.left]
        written = _left(self.part).with_suffix(".part")
        written.write_text(json.dumps(found), encoding="utf-8")
        written.rename(_left(self.part))

    def _without_each(self, items: dict[str, pytest.Item], whole: bool) -> None:
        while not all(_left(part).exists() for part in range(self.jobs)):
            time.sleep(1)  # another part is still running its tests as they are
        tests: dict[Chain, list[tuple[float, str]]] = defaultdict(list)
        for part in range(self.jobs):
            for record, seconds, test in json.loads(_left(part).read_text(encoding="utf-8")):
                tests[tuple(record)].append((seconds, test))
        judged = NOTES / f"judged-{self.part}.jsonl"
        known = [json.loads(line) for line in judged.read_text(encoding="utf-8").splitlines()] if judged.exists() else []
        self.survivors = sum(not by for _, by in known)
        for number, (record, with_it) in enumerate(sorted(tests.items()), 1):
            if number % self.jobs != self.part or list(record) in [before for before, _ in known]:
                continue
            self.gone = record
            by = next((test for _, test in sorted(with_it) if failure(items[test])), "")
            self.survivors += not by
            print(f"{number}/{len(tests)}  {' < '.join(record)}  {f'missed by {by}' if by else 'NOT MISSED'}", flush=True)
            with judged.open("a", encoding="utf-8") as notes:
                notes.write(json.dumps([record, by]) + "\n")
        self.gone = None
        if whole and self.part == 0:
            for place in (unreached := sorted(set(places()) - {record[0] for record in tests})):
                print(f"NOT REACHED  {place}", flush=True)
            self.survivors += len(unreached)


def _left(part: int) -> Path:
    """Which test left which record, of one part's tests."""
    return NOTES / f"left-{part}.json"


def failure(item: pytest.Item) -> str:
    """Run one test, and say why it fails; what the session has set up stays up."""
    item.session._setupstate.teardown_exact(item.parent)  # what an earlier test's file had set up
    item._initrequest()  # type: ignore[attr-defined]  # as at its collection: the fixtures of an earlier run are gone
    with catch_warnings_for_item(config=item.config, ihook=item.ihook, when="runtest", item=item):  # as its marks have it
        reports = runtestprotocol(item, log=False, nextitem=item.parent)  # type: ignore[arg-type]
    return next((f"{report.when}: {report.longreprtext.splitlines()[-1]}" for report in reports if report.failed), "")


def run(names: list[str], part: int, jobs: int) -> int:
    """One part of the work; the number of records that could go without a test that fails."""
    options = ["-q", "-s", "-p", "no:cacheprovider", "-m", "not faults"]
    plugin = Mutants(part, jobs)
    ended = pytest.main([*options, *(names or SUITES)], plugins=[plugin])
    return plugin.survivors or (ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED))


def main(argv: list[str]) -> int:
    """Go through the tests named, or all that leave records."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="FILE", help="test files (default: all that leave records)")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes share the work (2)")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.part is not None:
        return min(run(asked.names, asked.part, asked.jobs), 100)
    of = hashlib.sha256(repr([asked.names, asked.jobs]).encode() + b"".join(path.read_bytes() for path in sources())).hexdigest()
    if not (NOTES / "of").exists() or (NOTES / "of").read_text(encoding="ascii") != of:
        shutil.rmtree(NOTES, ignore_errors=True)
        NOTES.mkdir(parents=True)
        (NOTES / "of").write_text(of, encoding="ascii")
    command = [sys.executable, "-m", "tests.mutation", f"--jobs={asked.jobs}", *asked.names]
    parts = [subprocess.Popen([*command, f"--part={part}"], cwd=ROOT) for part in range(asked.jobs)]
    while any(part.poll() is None for part in parts):
        time.sleep(1)  # the parts say how far they are
        for number, part in enumerate(parts):
            if part.poll() is not None and not _left(number).exists():  # the others would wait for what it found
                for other in parts:
                    other.terminate()
    if not all(_left(number).exists() for number in range(asked.jobs)):
        print("not begun: the tests could not all be run as they are, see above")
        return 2
    survivors = sum(abs(part.wait()) for part in parts)  # a part that was ended counts too
    print(f"{survivors} records could go without a test that fails")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
