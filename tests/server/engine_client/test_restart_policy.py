"""When another engine is started, and when that is given up."""

from server.engine_client.restart_policy import MAX_DELAY_S, MAX_FAILED_STARTS, RestartPolicy


def test_the_first_is_replaced_at_once_the_next_ones_ever_later() -> None:
    backoff = RestartPolicy()
    delays = [backoff.died(was_useful=False, is_explained=True) for _ in range(12)]
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, *[MAX_DELAY_S] * 5]


def test_one_that_was_of_use_begins_anew() -> None:
    backoff = RestartPolicy()
    for _ in range(50):
        assert backoff.died(was_useful=True, is_explained=False) == 0.0
        assert backoff.died(was_useful=False, is_explained=False) == 0.5


def test_engines_that_come_to_nothing_are_given_up() -> None:
    backoff = RestartPolicy()
    delays = [backoff.died(was_useful=False, is_explained=False) for _ in range(MAX_FAILED_STARTS)]
    assert None not in delays[:-1] and delays[-1] is None


def test_requests_that_kill_engines_do_not_end_the_server() -> None:
    backoff = RestartPolicy()
    assert None not in [backoff.died(was_useful=False, is_explained=True) for _ in range(1000)]
