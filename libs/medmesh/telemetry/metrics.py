"""The metrics of every process. Base units, `_total` for counters, no identifiers in labels, every label set bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

_QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)

PUBLISHED = Counter("medmesh_bus_published", "Messages handed to the bus", ["service", "type", "result"], registry=REGISTRY)
PUBLISH_SECONDS = Histogram("medmesh_bus_publish_seconds", "One batch of the relay", ["service"], buckets=_QUICK, registry=REGISTRY)
CONSUMED = Counter("medmesh_bus_consumed", "Deliveries by outcome", ["service", "consumer", "type", "outcome"], registry=REGISTRY)
HANDLER_SECONDS = Histogram(
    "medmesh_bus_handler_seconds", "Handler with its commit", ["service", "consumer"], buckets=_QUICK, registry=REGISTRY
)
AGE_SECONDS = Histogram(
    "medmesh_bus_age_seconds", "From the event to its handler", ["service", "consumer"], buckets=_QUICK, registry=REGISTRY
)
ANSWERED = Counter("medmesh_bus_answered", "Queries by outcome", ["service", "query", "outcome"], registry=REGISTRY)
REFUSED = Counter("medmesh_bus_permission_refused", "Operations the bus refused this identity", ["service"], registry=REGISTRY)
OUTBOX_PENDING = Gauge("medmesh_outbox_pending", "Messages not sent yet", ["service"], registry=REGISTRY)
OUTBOX_OLDEST = Gauge("medmesh_outbox_oldest_seconds", "Age of the oldest unsent message", ["service"], registry=REGISTRY)
AUDIT_PENDING = Gauge("medmesh_audit_pending", "Audit records without a receipt", ["service"], registry=REGISTRY)
AUDIT_OLDEST = Gauge("medmesh_audit_oldest_seconds", "Age of the oldest audit record without a receipt", ["service"], registry=REGISTRY)
AUDIT_QUOTA = Gauge("medmesh_audit_quota_used", "Share of what may wait for the log, 1 refuses everything", ["service"], registry=REGISTRY)
AUDIT_DROPPED = Counter("medmesh_audit_dropped", "Audit records lost; must stay 0", ["service"], registry=REGISTRY)
AUDIT_ALERTS = Counter("medmesh_audit_alerts", "Anomalies the log's watcher raised", ["rule"], registry=REGISTRY)
AUDIT_REFUSED = Counter("medmesh_audit_refused", "Batches of records the log refused", ["code"], registry=REGISTRY)
AUDIT_CHECKPOINT_AGE = Gauge("medmesh_audit_checkpoint_age_seconds", "Since all was confirmed to be under a checkpoint", registry=REGISTRY)
WITNESS_ASKED = Counter(
    "medmesh_audit_witness_asked", "Checkpoints shown to a witness by outcome", ["witness", "outcome"], registry=REGISTRY
)
WITNESS_REFUSING = Gauge(
    "medmesh_audit_witness_refusing", "1 while a witness refuses: perhaps two histories", ["witness"], registry=REGISTRY
)
UNWITNESSED_SECONDS = Gauge("medmesh_audit_unwitnessed_seconds", "Age of the oldest checkpoint the quorum has not seen", registry=REGISTRY)
AUDIT_ALARMS = Counter("medmesh_audit_alarms", "What must not happen to the log", ["kind"], registry=REGISTRY)
EMERGENCIES = Gauge("medmesh_emergency_accesses", "Emergency accesses nobody has reviewed", ["state"], registry=REGISTRY)
DEAD_LETTERS = Counter("medmesh_dead_letters", "Messages given up on", ["service", "consumer"], registry=REGISTRY)
HTTP_REQUESTS = Counter("medmesh_http_requests", "Requests by route and status", ["service", "route", "status"], registry=REGISTRY)
HTTP_SECONDS = Histogram("medmesh_http_seconds", "Request by route", ["service", "route"], buckets=_QUICK, registry=REGISTRY)
HTTP_CUT = Counter(
    "medmesh_http_cut", "Connections ended, or not begun, because of: late | head | room | full | descriptors", ["why"], registry=REGISTRY
)


def exposition() -> bytes:
    """The text format of Prometheus."""
    return generate_latest(REGISTRY)
