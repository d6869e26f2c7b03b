"""Switching telemetry on, once a process."""

from __future__ import annotations

from pathlib import Path

from medmesh.telemetry import logs, traces


def start(service: str, *, folder: Path | None = None, otlp_endpoint: str | None = None, level: str = "info", ratio: float = 1.0) -> None:
    """Configure logs and traces. Traces go to `folder/<service>.jsonl`, to `otlp_endpoint` where one is set, or nowhere."""
    logs.configure(service, level)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    traces.configure(service, file=folder / f"{service}.jsonl" if folder else None, otlp_endpoint=otlp_endpoint, ratio=ratio)
