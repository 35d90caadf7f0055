"""The engine is killed under many connections, a full queue and TLS. More: python -m tests.measure.reliability.kills"""

from tests.measure.reliability.kills import kills


def test_no_request_is_lost_or_ends_in_silence(scale: int) -> None:
    """How many requests are refused, cut or complete depends on the machine; that each has an end does not."""
    ledger = kills(num_kills=scale, num_connections=80 * scale, max_queued=20 * scale)
    assert ledger.endings.total() == 80 * scale * scale
    assert ledger.num_faulty == 0, ledger.endings
    codes = {ending.split()[-1] for ending in ledger.endings}
    assert codes <= {"complete", "queue_full", "engine_dead", "loading"}, ledger.endings
