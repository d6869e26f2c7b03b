"""Structured logs: one JSON object a line on standard error, with a dotted event name and the trace it belongs to."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

from medmesh.errors import Problem
from medmesh.security.redaction import redact
from medmesh.telemetry.traces import current_traceparent

_LOGGER = logging.getLogger("medmesh")


class _Json(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "event": record.getMessage() if record.name == "medmesh" else record.name,
        }
        if trace := current_traceparent():
            line["trace"] = trace.split("-")[1]
        if record.name != "medmesh":
            line["message"] = redact(record.getMessage())
        line.update(redact(getattr(record, "fields", {})))
        if record.exc_info and record.exc_info[1]:
            line |= describe(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


def describe(error: BaseException) -> dict[str, Any]:
    """An error for the log: a Problem by its code; anything else by its type and the places it passed, never by its text,
    which may quote the data it choked on."""
    if isinstance(error, Problem):
        return {"code": error.code, "problem": redact(str(error))}
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return {"error": type(error).__name__, "at": [f"{frame.filename.rsplit('/', 2)[-1]}:{frame.lineno} {frame.name}" for frame in frames]}


def log(event: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """Write one line, e.g. `log("federation.round.opened", federation=id, round=3)`. No patient data, no secrets."""
    if _LOGGER.isEnabledFor(level):
        _LOGGER.log(level, event, extra={"fields": fields}, exc_info=error)


def configure(service: str, level: str) -> None:
    """Send every log of the process through the JSON form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(service))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    _LOGGER.setLevel(level.upper())
    logging.captureWarnings(True)
    # Not looked up for each line, as none says it: where in the code, in which thread, process and task.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
