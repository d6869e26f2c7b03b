"""Logs, traces and metrics: `telemetry.start(service)` once, then `log`, `span` and the metrics of `telemetry.metrics`."""

from medmesh.telemetry.logs import log
from medmesh.telemetry.start import start
from medmesh.telemetry.traces import current_traceparent, span

__all__ = ["current_traceparent", "log", "span", "start"]
