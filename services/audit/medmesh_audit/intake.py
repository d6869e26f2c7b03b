"""Where emitters hand records in: one subject each, so that the bus itself proves who speaks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from pydantic import ValidationError
from pydantic_core import to_json

from medmesh.contracts.audit import AuditBatch, Receipts
from medmesh.errors import Problem
from medmesh.security.tokens import verify_actor
from medmesh.service.runtime import Runtime
from medmesh.telemetry import log
from medmesh_audit.domain import admit
from medmesh_audit.placing import Placed
from medmesh_audit.sequencer import Sequencer

EDGE = "edge"
MOST = 512


def receiver(
    runtime: Runtime, sequencer: Sequencer, subject_emitter: str, refused: Callable[[str, str], None]
) -> Callable[[bytes], Awaitable[bytes]]:
    """The answer to batches on one emitter's subject. Hospitals' come through the gateway and carry their own token.
    `refused` is told the emitter and the code of every batch that is not taken."""

    async def receive(body: bytes) -> bytes:
        emitter = subject_emitter
        try:
            batch = AuditBatch.model_validate_json(body, extra="ignore")
            if not 1 <= len(batch.records) <= MOST:
                raise Problem("audit.batch", most=MOST)
            emitter = _emitter(batch, runtime, subject_emitter)
            return receipts(await sequencer.append([admit(record, emitter) for record in batch.records]))
        except ValidationError:
            problem = Problem("audit.batch", most=MOST)
        except Problem as reason:
            problem = reason
        except Exception as error:
            log("audit.append_failed", level=40, error=error)
            problem = Problem("audit.retry")
        log("audit.refused", level=30, emitter=subject_emitter, code=problem.code)
        refused(emitter, problem.code)
        return Receipts(problem=problem.document()).model_dump_json().encode()

    return receive


def receipts(placed: Sequence[Placed]) -> bytes:
    """`Receipts` as JSON; what the log itself made needs no validation."""
    return to_json({"receipts": [{"id": id_, "seq": seq, "leaf": leaf.hex()} for id_, seq, leaf in placed], "problem": None})


def _emitter(batch: AuditBatch, runtime: Runtime, subject_emitter: str) -> str:
    if subject_emitter != EDGE:
        if batch.emitter != subject_emitter:
            raise Problem("audit.emitter", emitter=batch.emitter)
        return subject_emitter
    actor = verify_actor(batch.actor or "", runtime.trust(), datetime.now(UTC))
    if actor.kind != "hospital" or batch.emitter != f"edge:{actor.id}":
        raise Problem("audit.emitter", emitter=batch.emitter)
    return batch.emitter
