"""One request is followed through HTTP, outbox, NATS and the handler by one trace id; a redelivery is linked, not nested."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio, sys
from contextlib import suppress
from pathlib import Path
from medmesh.errors import Problem
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import servers
from medmesh.telemetry import traces
from tests.world import small_world

async def main(folder):
    traces.configure("test", file=folder / "traces.jsonl", otlp_endpoint=None, ratio=1.0)
    async with servers(folder / "servers") as running:
        ports = Ports(folder / "ports.json")
        (folder / "world").mkdir(mode=0o700)
        async with small_world(running, folder / "world", ports) as world:
            admin = await world.admin()
            li = await world.user(admin, "li", "researcher")
            headers = {"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01", "Prefer": "wait=20", "Content-Type": "application/json"}
            body = b'{"action": "federation.start", "target": "f", "digest": "' + b"0" * 64 + b'"}'
            answer = await li.raw("POST", "/v1/approvals", body, headers=headers)
            assert answer.json()["state"] == "succeeded", answer.text
            with suppress(Problem):
                await li.request("GET", "/v1/approvals", query={"state": "ZhangSan"})
            await asyncio.sleep(1.0)
        ports.close()
    traces.shutdown()

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_a_trace_goes_through_http_outbox_bus_and_handlers(private: Path) -> None:
    # A process of its own: the tracer of a process can be set once.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, str(private), cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _, error = await process.communicate()
    assert process.returncode == 0, error.decode()[-2000:]
    spans = [json.loads(line) for line in (private / "traces.jsonl").read_text().splitlines()]
    mine = [span for span in spans if span["trace"] == "ab" * 16]
    names = {span["name"] for span in mine}
    assert any(name.startswith("POST") for name in names)
    assert "process medmesh.cmd.governance.request-approval.v1" in names
    assert "process medmesh.evt.*.operation.finished.v1" in names
    by_id = {span["span"]: span for span in mine}
    handled = next(span for span in mine if span["name"] == "process medmesh.cmd.governance.request-approval.v1")
    ancestors = []
    while handled["parent"] in by_id:
        handled = by_id[handled["parent"]]
        ancestors.append(handled["name"])
    assert ancestors[-1].startswith("POST")
    for span in spans:
        assert "password" not in json.dumps(span).lower()
        assert "ZhangSan" not in json.dumps(span), "what is asked for may name a person"
