"""server/engine_client/restart_policy.py: delays between processes, and when to give up."""

from server.engine_client.restart_policy import MAX_DELAY_S, MAX_FAILED_STARTS, RestartPolicy


def test_the_first_restart_is_immediate_and_each_further_one_waits_longer() -> None:
    policy = RestartPolicy()
    delays = [policy.next_delay_s(has_served=False, has_culprit=True) for _ in range(12)]
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, *[MAX_DELAY_S] * 5]


def test_the_delays_start_over_after_a_process_that_has_served() -> None:
    policy = RestartPolicy()
    for _ in range(50):
        assert policy.next_delay_s(has_served=True, has_culprit=False) == 0.0
        assert policy.next_delay_s(has_served=False, has_culprit=False) == 0.5


def test_processes_that_fail_in_a_row_are_given_up() -> None:
    policy = RestartPolicy()
    delays = [policy.next_delay_s(has_served=False, has_culprit=False) for _ in range(MAX_FAILED_STARTS)]
    assert None not in delays[:-1] and delays[-1] is None


def test_crashes_with_a_culprit_do_not_end_the_server() -> None:
    policy = RestartPolicy()
    assert None not in [policy.next_delay_s(has_served=False, has_culprit=True) for _ in range(1000)]
