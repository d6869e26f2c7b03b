"""A federation from Python, for whoever is signed in with `medmesh login`; tests/e2e/test_sdk.py runs this file.

python docs/federation/sdk.py PACKAGE HOSPITAL HOSPITAL...
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

from medmesh.cli.session import signed_in
from medmesh.client.federation import Federation
from medmesh.client.results import cross_site, remaining
from medmesh_edge.consent import approve
from medmesh_edge.ports import site

PLAN: dict[str, Any] = {
    "name": "tumours",
    "purpose": "tell images with a tumour from those without",
    "initiator": "person:li@platform",
    "rounds": 3,
    "local_steps": 30,
    "batch_size": 8,
    "learning_rate": "0.5",
    "seed": 1,
    "min_participants": 2,  # 3 where nothing is said: hospitals that take part as two have min_hospitals = 2 in their policy.toml
    "accept_seconds": 3600,
    "round_deadline_seconds": 600,
    "evaluate_every": 1,
}


async def together(package: Path, hospitals: tuple[str, ...], model: Path) -> None:
    """The researcher's part."""
    async with signed_in() as gateway:
        one = await Federation.create(gateway, package, hospitals=hospitals, **PLAN)  # invites them
        print(*await one.invitation("zh"), sep="\n")  # what each hospital reads before it signs
        print("approval", await one.request_start())  # a second person: medmesh approval decide
        async for view in one.watch():
            print(view.state, len(view.rounds), "rounds", "waits for", view.waiting, "left", remaining(view))
        await one.model(model)
        for cell in cross_site(await one.view()):
            print(f"{cell.model} at {cell.hospital or 'all'}: {cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]")


async def accept(node: Path, federation: str) -> None:
    """A hospital's part, at its node: the code may run here; the node then signs the plan with the hospital's own key."""
    async with site(node) as here:
        await approve(here, federation, "doctor-zhao")


if __name__ == "__main__":
    asyncio.run(together(Path(sys.argv[1]), tuple(sys.argv[2:]), Path("model.safetensors")))
