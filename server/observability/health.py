"""Answer health checks from the last known status, without asking the engine and without waiting."""

from server.engine_client.status import EngineStatus


def readiness(status: EngineStatus) -> tuple[int, dict[str, str | int]]:
    """Return HTTP status and body of /health/ready: 200 only while the engine takes new requests.

    Overload is not in it, not even memory at "critical": it may come and go within a second, and a load balancer whose
    replicas all had it would find none. What is refused gets 503 with retry-after, which Envoy tries elsewhere.
    `status` is "ok" or "unavailable", `phase` one of loading, ready, stuck, restarting, draining, dead.
    """
    return (200 if status.phase == "ready" else 503), _body(status, is_ok=status.phase == "ready")


def liveness(status: EngineStatus) -> tuple[int, dict[str, str | int]]:
    """Return HTTP status and body of /health/live: 503 if neither the engine nor its start makes progress."""
    is_alive = status.phase not in ("stuck", "dead")
    return (200 if is_alive else 503), _body(status, is_ok=is_alive)


def _body(status: EngineStatus, *, is_ok: bool) -> dict[str, str | int]:
    """Return the body. It omits `status.message`, which may contain paths."""
    return {
        "status": "ok" if is_ok else "unavailable",
        "phase": status.phase,
        "stage": status.stage,
        "loaded_bytes": status.loaded_bytes,
        "total_bytes": status.total_bytes,
    }
