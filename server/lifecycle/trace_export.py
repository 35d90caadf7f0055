"""Start the export of traces, if it is set and its packages are installed."""

from server.lifecycle.errors import StartError
from server.observability.access_log import RequestListener


def start_tracing(endpoint: str | None, version: str, model: str) -> RequestListener | None:
    """Start the export of spans to an OTLP endpoint; None without one. `model`: its served name.

    Raises StartError without the extra otel.
    """
    if endpoint is None:
        return None
    try:
        from server.observability.tracing import Tracing, otlp_processor
    except ImportError:
        raise StartError("--otlp-traces-endpoint needs the extra otel: pip install 'smoe[otel]'") from None
    return Tracing(otlp_processor(endpoint), version=version, model=model)
