"""`python -m tests.bench AREA [NAME...]`: measure an area, or only what in it begins with one of the names."""

from __future__ import annotations

import argparse
import sys

from tests.bench import access, audit, bus, common, data, federated, objects, platform

AREAS = {
    "access": access.measure,
    "audit": audit.measure,
    "bus": bus.measure,
    "data": data.measure,
    "federated": federated.measure,
    "objects": objects.measure,
    "platform": platform.measure,
}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("area", choices=AREAS)
    parser.add_argument("names", nargs="*", help="e.g. bus.consume_tx")
    arguments = parser.parse_args()
    if not (found := AREAS[arguments.area](tuple(arguments.names))):
        asked = " ".join(arguments.names)
        parser.error(f"nothing is measured under {asked}: what is measured beside another is asked for by the other's name")
    common.report(arguments.area, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
