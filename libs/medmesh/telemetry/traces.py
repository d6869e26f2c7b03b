"""W3C trace context through HTTP, the outbox, NATS and workers. Spans go to a JSONL file unless an OTLP endpoint is set."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from medmesh.absent import absent

with absent("psutil"):  # it would describe the process with it, which nobody asks for
    from opentelemetry import context as otel_context
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

_MAX_FILE_BYTES = 64 * 2**20


class JsonLines(SpanExporter):
    """Appends each span as one JSON line; starts anew (keeping one old file) at 64 MiB."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        lines = "".join(json.dumps(_document(span), ensure_ascii=False) + "\n" for span in spans)
        with self._lock:
            if self._path.exists() and self._path.stat().st_size > _MAX_FILE_BYTES:
                os.replace(self._path, self._path.with_suffix(".old.jsonl"))
            with self._path.open("a", encoding="utf-8") as file:
                file.write(lines)
        return SpanExportResult.SUCCESS


def _document(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None
    return {
        "trace": f"{context.trace_id:032x}",
        "span": f"{context.span_id:016x}",
        "parent": f"{span.parent.span_id:016x}" if span.parent else None,
        "links": [f"{link.context.trace_id:032x}-{link.context.span_id:016x}" for link in span.links],
        "service": span.resource.attributes.get("service.name"),
        "name": span.name,
        "kind": span.kind.name.lower(),
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "ok": span.status.status_code is not StatusCode.ERROR,
        "attributes": dict(span.attributes or {}),
    }


def configure(service: str, *, file: Path | None, otlp_endpoint: str | None, ratio: float) -> None:
    """Set the process's tracer up. `ratio` of new traces are recorded; a trace that came in keeps its own decision."""
    provider = TracerProvider(resource=Resource.create({"service.name": service}), sampler=ParentBased(TraceIdRatioBased(ratio)))
    if otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=otlp_endpoint)))
    elif file:
        provider.add_span_processor(BatchSpanProcessor(JsonLines(file), schedule_delay_millis=1000))
    trace.set_tracer_provider(provider)


def shutdown() -> None:
    """Write what is buffered."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


@lru_cache(maxsize=1)
def _tracer(provider: trace.TracerProvider) -> trace.Tracer:
    """Looked up once: the library makes a new one, under a filter of warnings, each time it is asked."""
    return provider.get_tracer("medmesh")


def parse(traceparent: str | None) -> SpanContext | None:
    """The span context of a W3C traceparent; None when it is missing or malformed."""
    if not traceparent or len(traceparent) != 55:
        return None
    try:
        _, trace_id, span_id, flags = traceparent.split("-")
        context = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    except ValueError:
        return None
    return context if context.is_valid else None


def current_traceparent() -> str | None:
    """The traceparent of the running span, to be handed on."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


@contextmanager
def span(
    name: str,
    *,
    parent: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    link: bool = False,
    attributes: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Run a block as a span under `parent` (a traceparent), or linked to it when it is a redelivery.

    A parent that is not sampled costs next to nothing: its context is passed on and nothing is recorded.
    """
    remote, provider = parse(parent), trace.get_tracer_provider()
    if remote is None and isinstance(provider, trace.ProxyTracerProvider):  # nobody set one up
        yield
        return
    if remote is not None and not remote.trace_flags.sampled:
        token = otel_context.attach(trace.set_span_in_context(NonRecordingSpan(remote)))
        try:
            yield
        finally:
            otel_context.detach(token)
        return
    context = trace.set_span_in_context(NonRecordingSpan(remote)) if remote and not link else None
    links = [trace.Link(remote)] if remote and link else None
    with _tracer(provider).start_as_current_span(
        name,
        context=context,
        kind=kind,
        links=links,
        attributes=dict(attributes or {}),
        record_exception=False,
        set_status_on_exception=False,
    ) as running:
        try:
            yield
        except BaseException as error:
            # The type only: an exception's text may quote data.
            running.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
