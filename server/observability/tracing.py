"""Spans of requests for OpenTelemetry, made from a request's record when its response has ended.

A request is a span of the server, under the client's span if it sent `traceparent` (W3C Trace Context). Below it each
choice has a span `engine` with `queue`, `prefill` and `decode`. No attribute has text of a prompt or an answer. Needs
the extra otel; nothing else imports this module.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from engine.types import Timing
from server.observability.access_log import MAX_METHOD_CHARS, RequestRecord
from server.observability.metrics import HTTP_METHODS

MAX_CHOICES = 16  # with spans of their own; a request may have thousands
FAILED = frozenset({"error", "timeout"})
MIN_FAILED_STATUS = 500  # semantic conventions: a server's span is not in error for 4xx
TRACES_PATH = "/v1/traces"
KNOWN_METHODS = HTTP_METHODS | {"CONNECT", "TRACE"}  # semantic conventions: those of RFC 9110, and PATCH
EXPORT_TIMEOUT_S = 5.0  # also the longest delay of the server's end
# Semantic conventions for generative AI: gen_ai.operation.name, by route.
OPERATIONS = {
    "/api/chat": "chat",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
    "/api/generate": "chat",
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
}


def otlp_processor(endpoint: str) -> SpanProcessor:
    """Return what exports spans to a collector from a thread of its own. A collector that is away loses spans.

    `endpoint`: URL; without a path it gets OTLP's.
    """
    url = endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + TRACES_PATH
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S))


class Tracing:
    """Makes the spans of requests. All calls are on the event loop, except `close`."""

    def __init__(
        self,
        processor: SpanProcessor,
        *,
        version: str,
        model: str,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`model`: the name under which the model is served. `clock` is the clock of `Timing`.

        OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override the resource.
        """
        own = Resource({"service.name": "smoe", "service.version": version})
        self._provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("smoe", version)
        self._propagator = TraceContextTextMapPropagator()
        self._model = model
        self._clock = clock
        self._wall_clock_ns = wall_clock_ns

    def request_ended(self, record: RequestRecord, status: int | None) -> None:
        """Make the spans of a request whose response has ended. `status`: as in AccessLog.request_ended."""
        now_s = self._clock()
        epoch_ns = self._wall_clock_ns() - round(now_s * 1e9)
        client = self._propagator.extract(record.trace_headers, context=Context())
        span = self._tracer.start_span(
            f"{record.method if record.method in KNOWN_METHODS else 'HTTP'} {record.route or 'other'}",
            context=client,
            kind=SpanKind.SERVER,
            attributes=attributes_of(record, status, self._model),
            start_time=epoch_ns + round(record.started_s * 1e9),
        )
        if FAILED & set(record.outcomes) or (status is not None and status >= MIN_FAILED_STATUS):
            span.set_status(StatusCode.ERROR)
        if span.is_recording():
            inside = set_span_in_context(span, Context())
            for timing in record.timings[:MAX_CHOICES]:
                self._add_choice(inside, timing, now_s, epoch_ns)
        span.end(epoch_ns + round(now_s * 1e9))

    def close(self) -> None:
        """Export what is left, for at most a few seconds, and stop the exporting thread."""
        self._provider.force_flush(round(EXPORT_TIMEOUT_S * 1000))
        self._provider.shutdown()

    def _add_choice(self, request: Context, timing: Timing, now_s: float, epoch_ns: int) -> None:
        end_s = now_s if timing.finished_s is None else timing.finished_s
        engine = self._tracer.start_span("engine", request, start_time=epoch_ns + round(timing.arrival_s * 1e9))
        inside = set_span_in_context(engine, Context())
        for name, start_s, stop_s in phases_of(timing, end_s):
            span = self._tracer.start_span(name, inside, start_time=epoch_ns + round(start_s * 1e9))
            span.end(epoch_ns + round(stop_s * 1e9))
        engine.end(epoch_ns + round(end_s * 1e9))


def attributes_of(record: RequestRecord, status: int | None, model: str) -> dict[str, Any]:
    """Return the attributes of a request's span: semantic conventions' names, and smoe's own for the rest."""
    attributes: dict[str, Any] = {
        **method_attributes(record.method),
        "smoe.request_id": record.request_id,
        "smoe.choices": len(record.outcomes),
    }
    if record.route is not None:
        attributes["http.route"] = record.route
    if status is not None:
        attributes["http.response.status_code"] = status
    if record.outcomes:
        attributes |= {
            "smoe.outcomes": list(dict.fromkeys(record.outcomes)),
            "gen_ai.usage.input_tokens": record.num_prompt_tokens,
            "gen_ai.usage.output_tokens": record.num_generation_tokens,
            "smoe.cached_tokens": record.num_cached_tokens,
        }
    if operation := OPERATIONS.get(record.route or ""):
        names = {"operation.name": operation, "provider.name": "smoe", "response.model": model}
        attributes |= {f"gen_ai.{name}": value for name, value in names.items()}
    return attributes


def method_attributes(method: str) -> dict[str, str]:
    """Return the attributes of a request's method. One that a client invents has a common name, as conventions ask."""
    if method in KNOWN_METHODS:
        return {"http.request.method": method}
    return {"http.request.method": "_OTHER", "http.request.method_original": method[:MAX_METHOD_CHARS]}


def phases_of(timing: Timing, end_s: float) -> Iterator[tuple[str, float, float]]:
    """Yield name, start and end of the phases that a choice has reached; the last one lasts until `end_s`.

    A choice that ended without the engine's times, as its client left, has only the phases that are known.
    """
    scheduled_s, first_token_s = timing.first_scheduled_s, timing.first_token_s
    if scheduled_s is not None:
        yield "queue", timing.arrival_s, scheduled_s
        yield "prefill", scheduled_s, end_s if first_token_s is None else first_token_s
    elif first_token_s is None:
        yield "queue", timing.arrival_s, end_s
    if first_token_s is not None:
        yield "decode", first_token_s, end_s
