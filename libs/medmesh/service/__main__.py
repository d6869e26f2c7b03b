"""`python -m medmesh.service NAME --settings FILE` runs one service."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from medmesh.errors import Problem
from medmesh.security.residue import lock_down
from medmesh.service.runtime import run
from medmesh.service.spec import service


def main() -> int:
    """Entry point of every service process."""
    parser = argparse.ArgumentParser(prog="medmesh.service", description="Run one medmesh service until it is told to stop.")
    parser.add_argument("name", help="the service, e.g. federation")
    parser.add_argument("--settings", type=Path, required=True, help="its settings file (JSON)")
    arguments = parser.parse_args()
    lock_down()
    try:
        spec = service(arguments.name)
        settings = spec.settings.load(arguments.settings)
        try:
            import uvloop
        except ImportError:
            asyncio.run(run(spec, settings))
        else:
            uvloop.run(run(spec, settings))
    except KeyError:
        print(f"There is no service called {arguments.name}.", file=sys.stderr)
        return 2
    except Problem as problem:
        print(f"{problem}\n{problem.detail('zh')} {problem.hint('zh')}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
