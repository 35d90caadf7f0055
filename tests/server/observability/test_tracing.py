"""server/observability/tracing.py: the spans of a request, as OpenTelemetry's in-memory exporter gets them."""

from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from engine.types import Timing
from server.observability.access_log import AccessLog, RequestRecord
from server.observability.metric_families import Outcome
from server.observability.tracing import MAX_CHOICES, Tracing
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-01", f"00-{TRACE_ID}-{PARENT_ID}-00"
BOOT_NS = 1_800_000_000 * 10**9  # Unix time at which the fake monotonic clock was 0
NOW_S = 30.0


class Traces:
    """Tracing into memory, on clocks that stand still."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(
            SimpleSpanProcessor(self.exporter),
            version="1",
            model="mixtral",
            clock=lambda: NOW_S,
            wall_clock_ns=lambda: BOOT_NS + round(NOW_S * 1e9),
        )

    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def by_name(self) -> dict[str, ReadableSpan]:
        found = {span.name: span for span in self.spans()}
        assert len(found) == len(self.spans())
        return found


def record(*timings: Timing, outcome: Outcome = "stop", **headers: str) -> RequestRecord:
    """Return the record of a request that arrived at second 10 with one choice for each timing."""
    found = RequestRecord(
        "r", "POST", "/v1/completions", route="/v1/completions", trace_headers=headers, started_s=10.0
    )
    for timing in timings:
        found.add_choice(outcome, num_prompt_tokens=7, num_generation_tokens=3, num_cached_tokens=2, timing=timing)
    return found


def seconds(span: ReadableSpan) -> tuple[float, float]:
    """Return start and end on the fake monotonic clock."""
    assert span.start_time is not None and span.end_time is not None
    return (span.start_time - BOOT_NS) / 1e9, (span.end_time - BOOT_NS) / 1e9


def parent_id(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def test_queue_prefill_and_decode_are_under_the_clients_span() -> None:
    traces = Traces()
    traces.tracing.request_ended(record(Timing(10.5, 11.0, 13.0, 20.0), traceparent=SAMPLED), 200)
    spans = traces.by_name()
    assert {name: seconds(span) for name, span in spans.items()} == {
        "POST /v1/completions": (10.0, 30.0),
        "engine": (10.5, 20.0),
        "queue": (10.5, 11.0),
        "prefill": (11.0, 13.0),
        "decode": (13.0, 20.0),
    }
    assert {span.context.trace_id for span in spans.values()} == {int(TRACE_ID, 16)}
    request, engine = spans["POST /v1/completions"], spans["engine"]
    assert parent_id(request) == int(PARENT_ID, 16)
    assert parent_id(engine) == request.context.span_id
    assert {parent_id(spans[name]) for name in ("queue", "prefill", "decode")} == {engine.context.span_id}


def test_a_client_that_does_not_sample_gets_no_spans() -> None:
    traces = Traces()
    traces.tracing.request_ended(record(Timing(10.5, 11.0, 13.0, 20.0), traceparent=NOT_SAMPLED), 200)
    assert traces.spans() == ()


@pytest.mark.parametrize(
    "headers", [{}, {"traceparent": "x" * 10_000}, {"traceparent": "00-0-0-01"}, {"tracestate": "a=b"}]
)
def test_without_a_valid_header_a_trace_begins_here(headers: dict[str, str]) -> None:
    traces = Traces()
    traces.tracing.request_ended(record(Timing(10.5, 11.0, 13.0, 20.0), **headers), 200)
    assert parent_id(traces.by_name()["POST /v1/completions"]) is None


@pytest.mark.parametrize(
    ("timing", "phases"),
    [
        (Timing(10.0, None, None, 12.0), {"queue": (10.0, 12.0)}),
        (Timing(10.0, 11.0, None, 12.0), {"queue": (10.0, 11.0), "prefill": (11.0, 12.0)}),
        (Timing(10.0, None, 11.0, 12.0), {"decode": (11.0, 12.0)}),
        (Timing(10.0, 11.0, 12.0, None), {"queue": (10.0, 11.0), "prefill": (11.0, 12.0), "decode": (12.0, NOW_S)}),
    ],
)
def test_a_choice_has_the_phases_that_it_reached(timing: Timing, phases: dict[str, tuple[float, float]]) -> None:
    traces = Traces()
    traces.tracing.request_ended(record(timing, outcome="abort"), None)
    found = {name: seconds(span) for name, span in traces.by_name().items()}
    assert {name: found[name] for name in found.keys() - {"engine", "POST /v1/completions"}} == phases


@pytest.mark.parametrize(
    ("outcome", "status", "is_error"),
    [("stop", 200, False), ("error", 200, True), ("timeout", 200, True), ("stop", 500, True), ("rejected", 429, False)],
)
def test_only_faults_of_the_server_are_errors(outcome: Outcome, status: int, is_error: bool) -> None:
    traces = Traces()
    traces.tracing.request_ended(record(Timing(10.0), outcome=outcome), status)
    assert (traces.by_name()["POST /v1/completions"].status.status_code is StatusCode.ERROR) == is_error


def test_a_request_with_many_choices_has_spans_for_the_first() -> None:
    traces = Traces()
    traces.tracing.request_ended(record(*[Timing(10.0, 11.0, 12.0, 13.0)] * 100), 200)
    assert sum(span.name == "engine" for span in traces.spans()) == MAX_CHOICES
    assert traces.spans()[-1].attributes["smoe.choices"] == 100  # type: ignore[index]


@pytest.mark.parametrize(
    ("route", "operation"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/messages", "chat"),
        ("/v1/responses", "chat"),
        ("/v1/completions", "text_completion"),
        ("/v1/embeddings", "embeddings"),
        ("/tokenize", None),
    ],
)
def test_attributes_have_the_names_of_the_semantic_conventions(route: str, operation: str | None) -> None:
    traces, found = Traces(), record(Timing(10.5, 11.0, 13.0, 20.0))
    found.route = route
    traces.tracing.request_ended(found, 200)
    attributes = traces.by_name()[f"POST {route}"].attributes
    generation = {"operation.name": operation, "provider.name": "smoe", "response.model": "mixtral"}
    expected = {f"gen_ai.{name}": value for name, value in generation.items() if operation}
    assert dict(attributes or {}) == {
        **expected,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "http.request.method": "POST",
        "http.route": route,
        "http.response.status_code": 200,
        "smoe.cached_tokens": 2,
        "smoe.choices": 1,
        "smoe.outcomes": ("stop",),
        "smoe.request_id": "r",
    }


@pytest.mark.parametrize(
    ("method", "name", "attributes"),
    [
        ("DELETE", "DELETE /v1/completions", {"http.request.method": "DELETE"}),
        ("TRACE", "TRACE /v1/completions", {"http.request.method": "TRACE"}),
        *(
            (
                method,
                "HTTP /v1/completions",
                {"http.request.method": "_OTHER", "http.request.method_original": original},
            )
            for method, original in (("post", "post"), ("INVENTED", "INVENTED"), ("X" * 5000, "X" * 32))
        ),
    ],
)
def test_a_method_that_a_client_invents_makes_no_name_of_its_own(
    method: str, name: str, attributes: dict[str, str]
) -> None:
    traces, found = Traces(), record()
    found.method = method
    traces.tracing.request_ended(found, 405)
    sent = traces.by_name()[name].attributes or {}
    assert {key: value for key, value in sent.items() if key.startswith("http.request.")} == attributes


@pytest.mark.anyio
async def test_a_real_request_is_traced_without_its_text_and_a_poll_is_not() -> None:
    traces = Traces()
    state = state_around(FakeEngine(saying("a secret answer")))
    async with client_of(state, access_log=AccessLog(listener=traces.tracing)) as client:
        body = {"model": MODEL, "prompt": "a secret question", "user": "somebody"}
        await client.post("/v1/completions", json=body, headers={"traceparent": SAMPLED})
        await client.get("/metrics/load")
        await client.get("/v1/models/model-of-a-client", headers={"traceparent": SAMPLED})
    names = [span.name for span in traces.spans()]
    assert names == ["queue", "prefill", "decode", "engine", "POST /v1/completions", "GET /v1/models/{model_id:path}"]
    assert {span.context.trace_id for span in traces.spans()} == {int(TRACE_ID, 16)}
    assert "secret" not in "".join(span.to_json() for span in traces.spans())
