"""Runs what failed in the last run once more, one test after the other with nothing beside it: the last step of `make test`.

There two tests with all their servers and workers share two cores, perhaps with somebody else, and a clock in a test may run out. What
fails alone has failed. What passes alone is named, for somebody to look at; and where more than a few failed, load is not the reason.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

FAILED = Path(__file__).parents[1] / ".pytest_cache" / "v" / "cache" / "lastfailed"
MOST = 5


def main() -> int:
    """0 where each of a few passes alone."""
    names = json.loads(FAILED.read_text(encoding="utf-8")) if FAILED.exists() else []
    failed = sorted(re.sub(r"@[\w-]+$", "", name) for name in names)  # xdist writes a test's group behind its name
    if not 0 < len(failed) <= MOST:
        print(f"{len(failed)} tests failed: none is run again (1 to {MOST} are)")
        return 1
    print(f"\n{len(failed)} tests failed beside others; now alone:", *failed, sep="\n  ", flush=True)
    alone = [subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test], check=False).returncode for test in failed]
    print(
        "\nbeside others / alone:",
        *(f"failed / {'FAILED' if code else 'passed'}  {test}" for test, code in zip(failed, alone, strict=True)),
        sep="\n  ",
    )
    return 1 if any(alone) else 0


if __name__ == "__main__":
    sys.exit(main())
