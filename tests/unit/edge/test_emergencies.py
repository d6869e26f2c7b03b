"""A hospital's node takes note of emergency access to its hospital's data at the platform."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from medmesh.contracts.governance import EmergencyOpened, EmergencyReviewed
from medmesh.contracts.message import encode, envelope
from medmesh_edge.inbox import take
from medmesh_edge.ports import site
from medmesh_edge.settings import Settings


async def test_what_the_platform_says_of_it_is_recorded_for_the_hospitals_own_auditors_once(private: Path) -> None:
    Settings(hospital="renji", node="node-1", gateway="https://127.0.0.1:1").save(private)
    now = datetime.now(UTC)
    common = {"hospitals": ("renji",), "emergency": "e-1", "person": "chen", "organisation": "renji"}
    opened = EmergencyOpened.model_validate({**common, "reason": "transfer", "expires": now, "due": now})
    reviewed = EmergencyReviewed.model_validate({**common, "justified": False})
    async with site(private) as node:
        for place, event in enumerate((opened, opened, reviewed), 1):
            await take(node, max(1, place - 1), json.loads(encode(envelope(event, source="governance"))))
        records = [json.loads(body) for _, _, body in await node.database.unreceipted()]
    assert [(record["sub"], record["orgs"]) for record in records] == [("emergency.heard", ["renji"])] * 2
    assert records[0]["detail"] == {"state": "opened", "reason": "transfer", "person": "chen", "expires": now.isoformat()}
    assert records[1]["detail"] == {"state": "reviewed", "justified": False}
    assert records[0]["entities"][0]["id"] == "e-1"
