"""Coverage-guided fuzzing: `make fuzz`, or `python -m tests.fuzz token 600` for one target and so many seconds.

What breaks a parser is kept in `tests/fuzz/found/<target>/`, and from then on tried by the suite. The corpus that the search itself
collects lies in a temporary folder.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

FOUND = Path(__file__).parent / "found"


def search(name: str, seconds: int) -> None:
    """In this process; ends with 77 when something was found (libFuzzer's way)."""
    import atheris

    with atheris.instrument_imports(include=["medmesh", "medmesh_audit", "medmesh_ingestion"]):
        from tests.fuzz.targets import TARGETS, check, seeds
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="medmesh-corpus-") as corpus:
        for data in seeds(name):
            (Path(corpus) / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        options = [f"-max_total_time={seconds}", f"-max_len={target.most_bytes}", "-timeout=10", "-rss_limit_mb=2048", "-verbosity=0"]
        options += ["-print_final_stats=1", f"-artifact_prefix={FOUND / name}/"]
        (FOUND / name).mkdir(parents=True, exist_ok=True)
        atheris.Setup([sys.argv[0], *options, corpus], lambda data: check(target, data))
        atheris.Fuzz()


def main(names: list[str]) -> int:
    """Each target in a process of its own."""
    from tests.fuzz.targets import TARGETS

    seconds = int(names.pop()) if names and names[-1].isdecimal() else 120
    broken = []
    for name in names or TARGETS:
        print(f"== {name}, {seconds} s", flush=True)
        command = [sys.executable, "-c", f"from tests.fuzz.__main__ import search; search({name!r}, {seconds})"]
        if subprocess.run(command, check=False).returncode:
            broken.append(name)
        if (FOUND / name).exists() and not any((FOUND / name).iterdir()):
            (FOUND / name).rmdir()
    print("found something:", ", ".join(broken) if broken else "nothing")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
