"""server/engine_client/output_collector.py: outputs between the engine and a handler, merged if the handler lags."""

import asyncio
import tracemalloc

import pytest

from engine.types import RequestOutput, TokenLogprobs
from server.engine_client.output_collector import MAX_OUTPUTS, EngineDied, OutputCollector
from tests.support.servers.watched_engine import run


def test_a_reader_that_lags_gets_everything_as_one_output() -> None:
    def entry(token_id: int) -> TokenLogprobs:
        return TokenLogprobs(token_id, -1.0, [], [])

    async def scenario() -> None:
        collector = OutputCollector()
        collector.put(RequestOutput(1, [4], logprobs=[entry(4)], prompt_logprobs=[entry(9)], num_cached_tokens=16))
        reported = {"expert_routing": [[[0, 3]]], "gate_logits": [b"four"]}
        collector.put(RequestOutput(1, [5, 6], logprobs=[entry(5), entry(6)], **reported))  # type: ignore[arg-type]
        collector.put(RequestOutput(1, [], finish_reason="stop", stop_token_id=6, **reported))  # type: ignore[arg-type]
        [merged] = await collector.get()
        assert merged == RequestOutput(
            1,
            [4, 5, 6],
            logprobs=[entry(4), entry(5), entry(6)],
            prompt_logprobs=[entry(9)],
            finish_reason="stop",
            stop_token_id=6,
            num_cached_tokens=16,
            expert_routing=[[[0, 3]]] * 2,
            gate_logits=[b"four"] * 2,
        )

    run(scenario)


def test_outputs_that_arrived_before_the_engine_died_are_not_lost() -> None:
    async def scenario() -> None:
        collector = OutputCollector()
        collector.put(RequestOutput(1, [4]))
        collector.fail("gone")
        assert (await collector.get())[0].token_ids == [4]
        for _ in range(2):
            with pytest.raises(EngineDied, match="gone"):
                await collector.get()

    run(scenario)


def test_a_collector_keeps_the_outputs_of_its_requests_apart() -> None:
    async def scenario() -> None:
        collector = OutputCollector()
        for request_id, token_id in [(2, 4), (1, 5), (2, 6), (3, 7), (1, 8)]:
            collector.put(RequestOutput(request_id, [token_id]))
        assert [(o.request_id, o.token_ids) for o in await collector.get()] == [(2, [4, 6]), (1, [5, 8]), (3, [7])]

    run(scenario)


def test_a_wait_ends_at_its_time_without_outputs_and_the_next_one_has_its_own() -> None:
    """The second wait begins while the first one's timer is still set, which is for an earlier time."""

    async def scenario() -> None:
        loop, collector = asyncio.get_running_loop(), OutputCollector()
        until_s = loop.time() + 0.05
        loop.call_soon(collector.put, RequestOutput(1, [4]))
        assert len(await collector.get(until_s)) == 1
        assert await collector.get(until_s + 0.05) == []
        assert loop.time() >= until_s + 0.05
        loop.call_soon(collector.put, RequestOutput(1, [5]))
        assert len(await collector.get()) == 1

    run(scenario)


def test_a_backlog_is_read_in_parts_of_bounded_size_and_in_order() -> None:
    """So that a client that reads again, or that is gone, does not hold the event loop with all that it missed."""

    async def scenario() -> None:
        collector = OutputCollector()
        for token_id in range(MAX_OUTPUTS):
            collector.put(RequestOutput(token_id % 2, [token_id]))
        assert not collector.has_backlog
        collector.put(RequestOutput(0, [MAX_OUTPUTS]))
        collector.fail("gone")
        assert collector.has_backlog
        even, odd = await collector.get()
        assert even.token_ids == list(range(0, MAX_OUTPUTS, 2))
        assert odd.token_ids == list(range(1, MAX_OUTPUTS, 2))
        assert not collector.has_backlog
        assert [output.token_ids for output in await collector.get()] == [[MAX_OUTPUTS]]
        with pytest.raises(EngineDied):
            await collector.get()

    run(scenario)


@pytest.mark.parametrize(("num_choices", "bytes_per_token"), [(1, 12), (MAX_OUTPUTS, 24)])
def test_outputs_that_nobody_reads_take_the_memory_of_their_tokens_not_of_their_steps(
    num_choices: int, bytes_per_token: int
) -> None:
    """An id takes 40 bytes with its place in a list, an output more than 200, and a packed id 4."""

    async def scenario() -> None:
        collector, num_tokens = OutputCollector(), 100 * MAX_OUTPUTS
        tracemalloc.start()
        try:
            for token_id in range(num_tokens):
                collector.put(RequestOutput(token_id % num_choices, [token_id]))
            held_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held_bytes < bytes_per_token * num_tokens
        read = [output for _ in range(100) for output in await collector.get()]
        assert [token_id for output in read for token_id in output.token_ids] == list(range(num_tokens))

    run(scenario)
