"""Who may import whom. The contracts stand in pyproject.toml; here they are run, and shown to be able to fail."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.architecture.sources import ROOT, imported, python_files, relative

from medmesh.service.spec import services

HEAVY = ("torch", "mindspore", "onnxruntime")


def config() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    return found


def lint(*options: str) -> tuple[int, str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", *options]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def test_nobody_climbs_a_wall() -> None:
    code, said = lint()
    assert code == 0, said


def test_a_wall_without_its_gates_is_reported_broken(tmp_path: Path) -> None:
    """Every gate (an allowed importer, an ignored import) is used: closing it breaks its contract, so none is left over."""
    contracts = config()["contracts"]
    gated = [contract for contract in contracts if contract.get("ignore_imports") or contract.get("allowed_importers")]
    lines = ["[importlinter]", "root_packages =", *(f"  {name}" for name in config()["root_packages"]), "include_external_packages = True"]
    for number, contract in enumerate(gated):
        lines += [f"[importlinter:contract:{number}]", f"name = {contract['name']}", f"type = {contract['type']}"]
        for key in ("source_modules", "forbidden_modules", "protected_modules"):
            lines += [f"{key} =", *(f"  {name}" for name in contract[key])] if key in contract else []
        lines += ["allowed_importers =", "  medmesh.errors"] if "allowed_importers" in contract else []
    (tmp_path / "contracts.ini").write_text("\n".join(lines))
    code, said = lint("--config", str(tmp_path / "contracts.ini"))
    assert code == 1
    for contract in gated:
        assert f"{contract['name']} BROKEN" in said, said
        for gate in contract.get("allowed_importers", ()):
            assert gate in said, f"{contract['name']}: {gate} does not need to be allowed"


def test_every_package_stands_behind_the_walls() -> None:
    packages = {"medmesh", *(path.name for path in (ROOT / "services").glob("*/medmesh_*"))}
    contracts = {contract["name"]: contract for contract in config()["contracts"]}
    assert set(config()["root_packages"]) == packages
    assert set(contracts["services know nothing of each other"]["modules"]) == packages - {"medmesh"}
    assert set(contracts["libraries know no service"]["forbidden_modules"]) == packages - {"medmesh"}


@pytest.mark.parametrize("framework", HEAVY)
def test_frameworks_are_imported_only_by_modules_named_after_them(framework: str) -> None:
    """A training package is its author's: it is run by the interpreter of its own framework, never imported."""
    importers = [path for path in python_files("libs", "services") if framework in imported(path) and "package" not in path.parent.name]
    assert [relative(path) for path in importers if framework not in path.stem] == []
    assert importers or framework == "mindspore"  # not installed everywhere; the others must be found, or this looks at nothing


def test_importing_a_service_loads_no_framework() -> None:
    modules = [f"medmesh_{name}.service" for name in services()] + ["medmesh_edge.node"]
    program = f"""
import importlib, json, sys
found = {{}}
for module in {modules!r}:
    importlib.import_module(module)
    found[module] = [name for name in {HEAVY!r} if name in sys.modules]
import onnxruntime
print(json.dumps([found, "onnxruntime" in sys.modules]))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found, sees = json.loads(ran.stdout)
    assert sees
    assert {module: heavy for module, heavy in found.items() if heavy} == {}


def test_what_every_hospital_runs_loads_only_what_it_needs() -> None:
    """A worker is told what it needs of its package; a node speaks to no PostgreSQL, decides nothing by object rules, and
    has no page until somebody asks for it."""
    program = """
import json, sys
import medmesh.learning.worker, medmesh.learning.numpy_adapter
worker = [name for name in ("pydantic", "asyncio", "cryptography") if name in sys.modules]
import medmesh_edge.node
node = [name for name in ("fastapi", "starlette", "sqlalchemy.dialects.postgresql") if name in sys.modules]
import medmesh_edge.api
node += [name for name in ("sqlalchemy.ext.asyncio", "cedarpy", "asyncpg", "pydicom") if name in sys.modules]
print(json.dumps([worker, node, "pydantic" in sys.modules]))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == [[], [], True]
