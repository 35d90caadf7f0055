"""server/observability/health.py: status codes and bodies of the health checks."""

import pytest

from server.engine_client.status import EngineStatus, Phase
from server.observability.health import liveness, readiness

STATUSES: list[tuple[Phase, int, int]] = [  # phase, status of readiness, status of liveness
    ("loading", 503, 200),
    ("ready", 200, 200),
    ("stuck", 503, 503),
    ("restarting", 503, 200),
    ("draining", 503, 200),
    ("dead", 503, 503),
]


@pytest.mark.parametrize(("phase", "ready", "live"), STATUSES)
def test_each_phase_has_its_status_codes_and_no_message(phase: Phase, ready: int, live: int) -> None:
    status = EngineStatus(phase, "weights", 5, 10, message="/secret/path")
    for (code, body), expected in ((readiness(status), ready), (liveness(status), live)):
        assert code == expected
        assert (body["phase"], body["loaded_bytes"], body["total_bytes"]) == (phase, 5, 10)
        assert body["status"] == ("ok" if expected == 200 else "unavailable")
        assert "/secret/path" not in str(body)
