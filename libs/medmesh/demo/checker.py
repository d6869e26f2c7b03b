"""The independent checker of the demonstration: it shares no code with what it checks.

Run as `python -I checker.py <command> ...`. It imports the standard library, `cryptography` for Ed25519, and its own
siblings `checker_*.py`, loaded by path because `-I` keeps the script's folder off `sys.path`; the files may be copied
anywhere together. Every command prints one JSON object on stdout; progress and reasons go
to stderr. Exit status: 0 nothing wrong, 1 something bad was found, 2 the command could not be done as asked.

    choose      draw what the demonstration will break, from the system's randomness
    scan        search stores for canaries, after proving that the search can see them
    verify-log  verify a copy of a transparency log offline
    pipeline    hold what a log says of the data's pipeline against its declaration
    tamper      flip one bit of one byte
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Says usage errors as an exception, so that they too become one JSON object."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def load(name: str) -> ModuleType:
    """The sibling module `name`, from the folder of this file."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and worker processes look the module up by its name
    spec.loader.exec_module(module)
    return module


def choose(hospitals: Sequence[str], rounds: int) -> dict[str, Any]:
    """What the run will break. Rounds count from 1; both kills fall in 2..rounds-2, in different rounds.

    `fraction` is the part of the victim's round, 0.2 to 0.6, after which it is killed. `tamper_random` is 32 bytes in hex for
    `tamper`. Raises `ValueError` when no such choice exists.
    """
    if not hospitals or not all(hospitals) or len(set(hospitals)) != len(hospitals):
        raise ValueError("--hospitals needs different, non-empty names separated by commas")
    if rounds < 5:
        raise ValueError("--rounds must be at least 5: two different rounds are drawn from 2..N-2")
    candidates = list(range(2, rounds - 1))
    victim_round = secrets.choice(candidates)
    return {
        "hospitals": list(hospitals),
        "rounds": rounds,
        "victim": secrets.choice(hospitals),
        "victim_round": victim_round,
        "fraction": (2000 + secrets.randbelow(4001)) / 10_000,
        "coordinator_round": secrets.choice([number for number in candidates if number != victim_round]),
        "tamper_random": os.urandom(32).hex(),
    }


def tamper(file: Path, random: bytes, offset: int, length: int) -> dict[str, Any]:
    """Flip bit `random mod 8` of byte `offset + (random div 8) mod length` of `file`, in place and on disk.

    The bias of the modulus is below 2^-200 for 32 random bytes. Raises `ValueError` when the range is not inside the file,
    `OSError` when it cannot be written.
    """
    if len(random) != 32:
        raise ValueError("--random must be 32 bytes in hex")
    content = file.read_bytes()
    if offset < 0 or length < 1 or offset + length > len(content):
        raise ValueError(f"[{offset}, {offset + length}) is not inside the file of {len(content)} bytes")
    number = int.from_bytes(random, "big")
    position, bit = offset + (number // 8) % length, number % 8
    before = content[position]
    after = before ^ (1 << bit)
    with file.open("r+b") as stream:
        stream.seek(position)
        stream.write(bytes([after]))
        stream.flush()
        os.fsync(stream.fileno())
    changed = content[:position] + bytes([after]) + content[position + 1 :]
    return {
        "file": str(file),
        "offset": position,
        "bit": bit,
        "before": f"{before:02x}",
        "after": f"{after:02x}",
        "sha256_before": hashlib.sha256(content).hexdigest(),
        "sha256_after": hashlib.sha256(changed).hexdigest(),
    }


def run(argv: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Exit status and answer of one command line. Raises `ValueError` or `OSError` when it cannot be done as asked."""
    command = argv[0] if argv else ""
    parser = Parser(prog=f"checker.py {command}", allow_abbrev=False)
    answer: dict[str, Any]
    if command == "scan":
        scan, plant, unpack = load("checker_scan"), load("checker_plant"), load("checker_unpack")
        scan.add_arguments(parser)
        plants = partial(plant.plants, pattern=scan.pixel_pattern)
        status, answer = scan.run(parser.parse_args(argv[1:]), plants, unpack.MAGICS, unpack.open_container)
        return status, answer
    if command == "verify-log":
        log = load("checker_log")
        log.add_arguments(parser)
        status, answer = log.run(parser.parse_args(argv[1:]))
        return status, answer
    if command == "pipeline":
        pipeline, log = load("checker_pipeline"), load("checker_log")
        pipeline.add_arguments(parser)
        status, answer = pipeline.run(parser.parse_args(argv[1:]), log.bodies)
        return status, answer
    if command == "choose":
        parser.add_argument("--hospitals", required=True)
        parser.add_argument("--seed-file", type=Path, required=True)
        parser.add_argument("--rounds", type=int, required=True)
        given = parser.parse_args(argv[1:])
        choice = choose([name.strip() for name in given.hospitals.split(",")], given.rounds)
        given.seed_file.write_text(json.dumps(choice, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return 0, choice
    if command == "tamper":
        parser.add_argument("--file", type=Path, required=True)
        parser.add_argument("--random", type=bytes.fromhex, required=True)
        parser.add_argument("--offset", type=int, required=True)
        parser.add_argument("--length", type=int, required=True)
        given = parser.parse_args(argv[1:])
        return 0, tamper(given.file, given.random, given.offset, given.length)
    raise ValueError(f"unknown command {command!r}; known: choose, scan, verify-log, pipeline, tamper")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the answer, return the exit status."""
    try:
        status, answer = run(sys.argv[1:] if argv is None else argv)
    except Exception as error:  # whatever stopped the check must not pass for its finding, which is status 1
        status, answer = 2, {"error": str(error) or type(error).__name__}
        print(f"checker: {type(error).__name__}: {error}", file=sys.stderr)
    print(json.dumps(answer, ensure_ascii=False))
    return status


if __name__ == "__main__":
    sys.exit(main())
