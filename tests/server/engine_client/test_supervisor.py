"""An engine process that dies or hangs, behind a client that starts another one. The processes compute nothing."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest

from engine.types import RequestOutput
from server.engine_client import restart_policy
from server.engine_client.inflight import KILLER
from server.engine_client.output_collector import EngineDied
from server.engine_client.restart_policy import MAX_FAILED_STARTS
from server.engine_client.watchdog import WatchdogTimeouts
from tests.support.fake_engine_process import KILLS, KILLS_LATER, QUEUES, READY, STOPS
from tests.support.watched_engine import Watched, collect, run, started

HASTY = WatchdogTimeouts(look_s=0.02, stuck_after_s=1.0, kill_after_s=2.0)  # no process is kept waiting for so long
STEADY = WatchdogTimeouts(look_s=0.02, stuck_after_s=1.0, kill_after_s=1000.0)


@pytest.fixture(autouse=True)
def _quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_policy, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(restart_policy, "MAX_DELAY_S", 0.05)


async def lose(engine: Watched) -> None:
    """Kills the process and waits until that is known."""
    assert engine.client.pid is not None
    os.kill(engine.client.pid, signal.SIGKILL)
    await engine.reach("restarting")


async def ends(engine: Watched, markers: list[int | None]) -> list[RequestOutput | None]:
    """What becomes of requests with these markers, one mailbox each, prompts of 5, 6, 7 ... tokens, all submitted at
    once; None: lost."""
    requests = [engine.request(5 + place, marker=marker) for place, marker in enumerate(markers)]
    mailboxes = [engine.client.submit([request]) for request in requests]
    results = await asyncio.gather(*map(collect, mailboxes), return_exceptions=True)
    return [None if isinstance(result, EngineDied) else result for result in results]  # type: ignore[misc]


def solo(place: int) -> list[int]:
    """The tokens that the request at this place gets."""
    return list(range(5 + place, 5 + place + 4))


def test_what_had_no_output_is_answered_by_the_next_engine_as_if_nothing_had_happened(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(f"once-silent:{tmp_path / 'lived'}", restarts=True) as engine:
            await engine.reach("ready")
            answers = asyncio.create_task(ends(engine, [None] * 4))
            await asyncio.sleep(0)  # they are submitted
            await lose(engine)
            assert engine.client.num_open == 4
            assert [output and output.token_ids for output in await answers] == list(map(solo, range(4)))
            assert engine.phases == ["loading", "ready", "restarting", "ready"]
            assert engine.num_restarts == 1

    run(scenario)


def test_what_had_an_output_ends_at_once_and_the_client_goes_on() -> None:
    async def scenario() -> None:
        async with started("hold", restarts=True) as engine:
            mailbox = engine.client.submit([engine.request(5)])
            assert (await mailbox.get())[0].token_ids == [5]
            await lose(engine)
            with pytest.raises(EngineDied, match="can be sent again"):
                await mailbox.get()
            assert engine.client.stats.num_running == 0
            await engine.reach("ready")
            later = engine.client.submit([engine.request(7)])
            assert (await later.get())[0].token_ids == [7]

    run(scenario)


def test_of_a_step_that_kills_engines_only_the_killer_fails() -> None:
    """All nine wait while it loads and are in one step; the killers are the second and the last. One more death each
    tells who they are."""

    async def scenario() -> None:
        async with started("count", restarts=True) as engine:
            outputs = await ends(engine, [None, KILLS, *[None] * 6, KILLS])
            for place, output in enumerate(outputs):
                assert output is not None
                if place in (1, 8):
                    assert (output.finish_reason, output.token_ids) == ("error", [])
                else:
                    assert output.token_ids == solo(place)
            await engine.reach("ready")
            assert engine.num_restarts == 3

    run(scenario)


def test_the_killer_is_told_in_words_fit_for_a_client() -> None:
    async def scenario() -> None:
        async with started("count", restarts=True) as engine:
            [output] = await engine.client.submit([engine.request(marker=KILLS)]).get()
            assert (output.finish_reason, output.error) == ("error", KILLER)

    run(scenario)


def test_one_that_kills_behind_its_first_token_is_never_sent_again() -> None:
    async def scenario() -> None:
        async with started("slowly", restarts=True) as engine:
            await engine.reach("ready")
            outputs = await ends(engine, [KILLS_LATER, None])
            assert outputs[0] is None
            assert outputs[1] is not None and outputs[1].token_ids == solo(1)
            assert engine.num_restarts == 1

    run(scenario)


def test_an_engine_that_cannot_come_back_is_given_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(f"then-crash:{tmp_path / 'lived'}", restarts=True) as engine:
            await engine.reach("ready")
            mailbox = engine.client.submit([engine.request(marker=QUEUES)])
            await lose(engine)
            status = await engine.reach("dead")
            assert engine.num_restarts == MAX_FAILED_STARTS - 1
            assert status.exit_code != 0
            assert status.message is not None and status.message.startswith(f"{MAX_FAILED_STARTS} engines in a row")
            with pytest.raises(EngineDied):
                await mailbox.get()

    run(scenario)


def test_a_later_engine_gets_the_limits_of_the_first() -> None:
    async def scenario() -> None:
        async with started("count", restarts=True) as engine:
            await engine.reach("ready")
            config = engine.client._start_as_before().config
            assert (config.num_kv_blocks, config.max_model_len) == (READY.num_blocks, READY.max_model_len)

    run(scenario)


def test_a_stopped_engine_is_seen_and_goes_on_by_itself() -> None:
    """Nothing is lost: no other process takes its place."""

    async def scenario() -> None:
        async with started("count", restarts=True, patience=STEADY) as engine:
            await engine.reach("ready")
            answer = asyncio.create_task(ends(engine, [STOPS]))
            await engine.reach("stuck")
            pid = engine.client.pid
            assert pid is not None
            os.kill(pid, signal.SIGCONT)
            [output] = await answer
            assert output is not None and output.token_ids == solo(0)
            await engine.reach("ready")
            assert (engine.num_restarts, engine.client.pid) == (0, pid)

    run(scenario)


def test_an_engine_that_stays_stopped_is_killed_and_what_stopped_it_is_found_out() -> None:
    async def scenario() -> None:
        async with started("count", restarts=True, patience=HASTY) as engine:
            await engine.reach("ready")
            outputs = await ends(engine, [None, STOPS])
            assert outputs[0] is not None and outputs[0].token_ids == solo(0)
            assert outputs[1] is not None and outputs[1].finish_reason == "error"
            await engine.reach("ready")
            assert engine.num_restarts == 2
            assert engine.phases[:5] == ["loading", "ready", "stuck", "restarting", "ready"]

    run(scenario)


def test_a_deadline_passes_while_there_is_no_engine(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(f"then-mute:{tmp_path / 'lived'}", restarts=True) as engine:
            await engine.reach("ready")
            await lose(engine)
            moment = asyncio.get_running_loop().time()  # time.monotonic()
            request = msgspec.structs.replace(engine.request(), deadline_s=moment)
            [output] = await engine.client.submit([request]).get()
            assert output.finish_reason == "timeout"
            assert engine.client.num_open == 0

    run(scenario)


def test_an_engine_that_is_stopped_speaks_for_no_deadline_and_hears_of_it_later() -> None:
    async def scenario() -> None:
        async with started("hold", restarts=True, patience=STEADY) as engine:
            await engine.reach("ready")
            moment = asyncio.get_running_loop().time()
            request = msgspec.structs.replace(engine.request(marker=STOPS), deadline_s=moment)
            [output] = await engine.client.submit([request]).get()
            assert output.finish_reason == "timeout"
            assert engine.client.pid is not None
            os.kill(engine.client.pid, signal.SIGCONT)
            later = engine.client.submit([engine.request(9)])
            assert (await later.get())[0].token_ids == [9]

    run(scenario)


def test_stopping_while_an_engine_is_started_again_leaves_no_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(f"then-mute:{tmp_path / 'lived'}", restarts=True) as engine:
            await engine.reach("ready")
            mailbox = engine.client.submit([engine.request(marker=QUEUES)])
            await lose(engine)
            while not engine.client.status.stage:
                await engine.next_status()
            pid = engine.client.pid
            await engine.client.stop()
            with pytest.raises(EngineDied, match="shutting down"):
                await mailbox.get()
            with pytest.raises(ProcessLookupError):
                os.kill(pid or 0, 0)

    run(scenario)


def test_request_ids_do_not_overflow() -> None:
    async def scenario() -> None:
        async with started("count", restarts=True) as engine:
            engine.client._last_request_id = 2**63
            [output] = await ends(engine, [None])
            assert output is not None and (output.request_id, output.token_ids) == (2**63 + 1, solo(0))

    run(scenario)
