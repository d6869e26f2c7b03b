"""Who watches the log from its first day: two hospitals and the regulator, two of whom must have seen a checkpoint."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import httpx

from medmesh.demo.processes import Process, medmesh
from medmesh.demo.stage import Stage
from medmesh.embedded.layout import Together
from medmesh.embedded.ports import Ports
from medmesh.ledger import note, witness
from medmesh.security.keys import Identity

HOSPITALS, NEEDED = ("renji", "huashan"), 2


async def watch(stage: Stage) -> None:
    """Each makes a key of its own and runs its own process; operator and auditor get the keys."""
    stage.say("two hospitals and the regulator become witnesses of the log", "两家医院与监管方成为日志见证方")
    places = {name: stage.nodes[name].folder for name in HOSPITALS} | {"regulator": stage.folder / "regulator"}
    ports = Ports(stage.folder / "witness-ports.json")
    lines = await asyncio.gather(
        *(_begin(stage, name, folder, port) for (name, folder), port in zip(places.items(), ports.take(*places), strict=True))
    )
    group = f"group enough {NEEDED} {' '.join(places)}"
    stage.policy.write_text("\n".join([f"log {stage.log_key}", *lines, group, "quorum enough", ""]))
    stage.keepers.watched(stage.policy.read_text())
    # The operator gets the same file: from here on the log shows every checkpoint to them.
    given = stage.data / "witnesses.policy"
    given.with_suffix(".part").write_bytes(stage.policy.read_bytes())
    os.replace(given.with_suffix(".part"), given)
    stage.happened("witnesses watch the log")


async def _begin(stage: Stage, name: str, folder: Path, port: int) -> str:
    """Start one; answers its line of the policy."""
    arguments: tuple[str, ...]
    if name in HOSPITALS:
        arguments = ("edge", "witness", "--folder", str(folder), "--port", str(port))
        vkey = await medmesh(*arguments, "--key-only")
    else:
        arguments = ("witness", "run", str(folder))
        vkey = await medmesh("witness", "init", str(folder), "--name", f"{name}/witness", "--log", stage.log_key, "--port", str(port))
    process = Process(f"witness {name}", folder, arguments, "witness.log")
    process.start()
    stage.processes.append(process)
    stage.witnesses[name] = f"http://127.0.0.1:{port}"
    return f"witness {name} {vkey.strip()} {stage.witnesses[name]}"


async def fork(stage: Stage, size: int) -> bool:
    """Whoever holds the log's own key signs another history and shows it to the witnesses; answers whether every one refuses."""
    key = Identity.load(Together(stage.data).private("audit", "log_key.nk")).private_key
    origin = stage.log_key.partition("+")[0]
    async with httpx.AsyncClient(trust_env=False) as http:

        async def refused(address: str) -> bool:
            forged = note.Checkpoint(origin, size + 1, os.urandom(32))
            asked = witness.Request(size, (os.urandom(32),), note.sign(forged.text(), origin, key))
            answer = await http.post(f"{address}/add-checkpoint", content=asked.encode())
            if answer.status_code == httpx.codes.CONFLICT:  # it knows a longer log: continue that one then
                seen = note.decimal(answer.text.strip())
                forged = note.Checkpoint(origin, seen + 1, os.urandom(32))
                asked = witness.Request(seen, (os.urandom(32),), note.sign(forged.text(), origin, key))
                answer = await http.post(f"{address}/add-checkpoint", content=asked.encode())
            return answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY

        return all(await asyncio.gather(*map(refused, stage.witnesses.values())))
