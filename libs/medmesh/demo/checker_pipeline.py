"""`checker.py pipeline`: did every hospital train through the pipeline that was declared, and does the log say so of the model?

The hash is computed anew from the declaration: SHA-256 of each step's canonical JSON (step, version, parameters, arithmetic), and of
these in hexadecimal, joined by line feeds. What the log says is read from the bodies of a copy, which `verify-log` holds against what
was signed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

SHOWN = 20  # problems listed in the answer


def hash_of(declared: dict[str, Any]) -> str:
    """Of a declaration, whatever hash it names. Raises `ValueError` for what is none."""
    try:
        arithmetic, steps = declared["arithmetic"], declared["steps"]
        said = [{**{name: step[name] for name in ("step", "version", "parameters")}, "arithmetic": arithmetic} for step in steps]
    except (KeyError, TypeError):
        raise ValueError("--pipeline: not a pipeline as a plan states it") from None
    return hashlib.sha256("\n".join(hashlib.sha256(_canonical(one)).hexdigest() for one in said).encode()).hexdigest()


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def check(declared: dict[str, Any], hospitals: Iterable[str], records: Iterable[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """The answer: `ok` when the declared hash is the computed one, each hospital has trained, and every training and every registration
    that succeeded names exactly it."""
    computed, problems, trained, registered = hash_of(declared), [], dict.fromkeys(hospitals, 0), 0
    if declared.get("hash") != computed:
        problems.append("the declared hash is not that of the declaration")
    for seq, record in records:
        if record["sub"] not in ("federation.train", "model.register") or record["out"] != 0:
            continue
        named = [entity["digest"] for entity in record["entities"] if entity["type"] == "pipeline"]
        if named != [computed]:
            problems.append(f"entry {seq}: {record['sub']} names {'another pipeline' if named else 'no pipeline'}")
        elif record["sub"] == "model.register":
            registered += 1
        else:
            hospital = record["src"]["service"].removeprefix("edge:")
            trained[hospital] = trained.get(hospital, 0) + 1
    problems += [f"{hospital} has trained through no pipeline" for hospital, count in trained.items() if not count]
    if not registered:
        problems.append("no model was registered with it")
    return {"ok": not problems, "hash": computed, "trainings": trained, "registered": registered, "problems": problems[:SHOWN]}


def records(log: Path, bodies: Callable[[Path, int], Iterator[tuple[int, bytes]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(entry, record) of every body in a copy."""
    size = 1 + max((int(file.stem) for file in (log / "bodies").glob("*.json")), default=-1)
    for seq, body in bodies(log, size):
        yield seq, json.loads(base64.b64decode(json.loads(body)["body"], validate=True))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--pipeline", type=Path, required=True, help="the declaration, as the plan states it (JSON)")
    parser.add_argument("--hospitals", required=True, help="who trained, separated by commas")


def run(given: argparse.Namespace, bodies: Callable[[Path, int], Iterator[tuple[int, bytes]]]) -> tuple[int, dict[str, Any]]:
    """Exit status and answer."""
    declared = json.loads(given.pipeline.read_bytes())
    hospitals = [name.strip() for name in given.hospitals.split(",")]
    answer = check(declared, hospitals, records(given.log, bodies))
    return (0 if answer["ok"] else 1), answer
