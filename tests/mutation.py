"""Takes each audit record away in turn and looks whether a test misses it: `make mutation`, or `python -m tests.mutation governance`.

Too slow for every run: it runs a service's suite once for every record the service leaves. A record that no test misses is printed as
its place, and the command ends with 1.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUITES = {
    "annotation": ("tests/integration/test_annotation.py",),
    "audit": ("tests/integration/test_gateway.py", "tests/integration"),
    "conversion": ("tests/integration/test_conversion.py",),
    "edge": ("tests/e2e/test_node.py", "tests/unit/edge"),
    "federation": ("tests/integration/test_federation.py",),
    "gateway": ("tests/integration/test_gateway.py",),
    "governance": ("tests/integration/test_governance.py", "tests/integration/test_gateway.py"),
    "inference": ("tests/integration/test_inference.py",),
    "ingestion": ("tests/integration/test_ingestion.py",),
    "registry": ("tests/integration/test_registry.py",),
    "training": ("tests/integration/test_training.py",),
}


@dataclass(frozen=True)
class Mutant:
    """A file without one of its records."""

    service: str
    file: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def mutants(service: str) -> Iterator[Mutant]:
    """One for every statement `….audit(AuditEntry(…))` of a service."""
    for file in sorted((ROOT / "services" / service).rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        for node in ast.walk(ast.parse(source)):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Call)
                and isinstance(node.value.func, ast.Attribute)
                and node.value.func.attr == "audit"
            ):
                gone = [" " * node.col_offset + "pass\n", *["\n"] * ((node.end_lineno or node.lineno) - node.lineno)]
                yield Mutant(service, file, node.lineno, "".join([*lines[: node.lineno - 1], *gone, *lines[node.end_lineno :]]))


def missed(mutant: Mutant) -> bool:
    """Whether a test fails without the record."""
    with tempfile.TemporaryDirectory(prefix="medmesh-mutant-") as place:
        package = f"medmesh_{mutant.service}"
        original = ROOT / "services" / mutant.service / package
        shutil.copytree(original, Path(place) / package)
        (Path(place) / package / mutant.file.relative_to(original)).write_text(mutant.text, encoding="utf-8")
        suites = [path for path in SUITES[mutant.service] if (ROOT / path).exists()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *suites]
        environment = {**os.environ, "PYTHONPATH": place, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        return done.returncode == 1


def main(names: list[str]) -> int:
    """Go through the services named, or all."""
    survivors = 0
    for service in names or sorted(SUITES):
        for mutant in mutants(service):
            found = missed(mutant)
            survivors += not found
            print(f"{'missed' if found else 'NOT MISSED'}  {mutant}", flush=True)
    print(f"{survivors} records could go without a test that fails")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
