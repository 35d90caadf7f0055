"""server/engine_client/supervisor.py: crashed and stalled engine processes are replaced. They compute nothing."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest

from engine.messages import UnloadAdapter
from engine.types import Request, RequestOutput
from server.engine_client import restart_policy
from server.engine_client.inflight import CULPRIT_ERROR
from server.engine_client.output_collector import EngineDied
from server.engine_client.restart_policy import MAX_FAILED_STARTS
from server.engine_client.supervisor import _for_restart
from server.engine_client.watchdog import WatchdogTimeouts
from tests.support.servers.fake_engine_process import KILLS, KILLS_LATER, QUEUES, READY, STOPS
from tests.support.servers.watched_engine import Watched, collect, run, started

HASTY = WatchdogTimeouts(
    observe_interval_s=0.02, stuck_after_s=1.0, kill_after_s=2.0
)  # no healthy process stalls this long
STEADY = WatchdogTimeouts(observe_interval_s=0.02, stuck_after_s=1.0, kill_after_s=1000.0)


@pytest.fixture(autouse=True)
def _quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_policy, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(restart_policy, "MAX_DELAY_S", 0.05)


async def lose(engine: Watched) -> None:
    """Kill the process and wait until the client knows."""
    assert engine.client.pid is not None
    os.kill(engine.client.pid, signal.SIGKILL)
    await engine.reach("restarting")


async def ends(engine: Watched, markers: list[int | None]) -> list[RequestOutput | None]:
    """Submit requests with these markers at once and return their final outputs; None for a lost one.

    Each request has a collector of its own; the prompts have 5, 6, 7 ... tokens.
    """
    requests = [engine.request(5 + place, marker=marker) for place, marker in enumerate(markers)]
    collectors = [engine.client.submit([request]) for request in requests]
    results = await asyncio.gather(*map(collect, collectors), return_exceptions=True)
    return [None if isinstance(result, EngineDied) else result for result in results]  # type: ignore[misc]


def solo(place: int) -> list[int]:
    """Return the tokens that the request at this place gets."""
    return list(range(5 + place, 5 + place + 4))


def test_requests_without_an_output_are_answered_by_the_next_engine_as_usual(tmp_path: Path) -> None:
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


def test_requests_with_an_output_end_at_once_and_the_client_continues() -> None:
    async def scenario() -> None:
        async with started("hold", restarts=True) as engine:
            collector = engine.client.submit([engine.request(5)])
            assert (await collector.get())[0].token_ids == [5]
            await lose(engine)
            with pytest.raises(EngineDied, match="can be sent again"):
                await collector.get()
            assert engine.client.stats.num_running == 0
            await engine.reach("ready")
            later = engine.client.submit([engine.request(7)])
            assert (await later.get())[0].token_ids == [7]

    run(scenario)


def test_in_a_step_that_crashes_engines_only_the_culprit_fails() -> None:
    """Nine requests wait while the engine loads and run in one step; the culprits are the second and the last.

    Each culprit costs one more crash before it is known.
    """

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


def with_grammar(request: Request) -> Request:
    """Return the request with a grammar: it may crash the engine as soon as it has been sent."""
    return msgspec.structs.replace(request, grammar="{}")


def test_nobody_is_blamed_for_the_crash_of_a_suspect_whose_client_left() -> None:
    """The suspect stops the engine, which therefore never reads the abort and is killed."""

    async def scenario() -> None:
        async with started("count", restarts=True) as engine:
            suspect = with_grammar(engine.request(5, marker=STOPS))
            other = with_grammar(engine.request(6))
            for request in (suspect, other):
                collector = engine.client.submit([request])
            await engine.reach("ready")
            await lose(engine)
            await engine.reach("ready")
            engine.client.abort([suspect.request_id])
            await lose(engine)
            output = await collect(collector)
            assert (output.finish_reason, output.token_ids) == ("length", solo(1))

    run(scenario)


def test_suspects_whose_clients_leave_do_not_end_the_server() -> None:
    async def scenario() -> None:
        async with started("count", restarts=True) as engine:
            suspects = [with_grammar(engine.request(5, marker=STOPS)) for _ in range(MAX_FAILED_STARTS + 1)]
            for suspect in suspects:
                engine.client.submit([suspect])
            await engine.reach("ready")
            await lose(engine)
            for suspect in suspects:
                await engine.reach("ready")
                engine.client.abort([suspect.request_id])
                await lose(engine)
            await engine.reach("ready")

    run(scenario)


def test_the_culprit_gets_an_error_that_is_fit_for_a_client() -> None:
    async def scenario() -> None:
        async with started("count", restarts=True) as engine:
            [output] = await engine.client.submit([engine.request(marker=KILLS)]).get()
            assert (output.finish_reason, output.error) == ("error", CULPRIT_ERROR)

    run(scenario)


def test_a_request_that_crashes_the_engine_after_its_first_token_is_never_sent_again() -> None:
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
            collector = engine.client.submit([engine.request(marker=QUEUES)])
            await lose(engine)
            status = await engine.reach("dead")
            assert engine.num_restarts == MAX_FAILED_STARTS - 1
            assert status.exit_code != 0
            assert status.message is not None and status.message.startswith(
                f"{MAX_FAILED_STARTS} engine processes in a row failed"
            )
            with pytest.raises(EngineDied):
                await collector.get()

    run(scenario)


def test_a_later_engine_gets_the_limits_of_the_first() -> None:
    async def scenario() -> None:
        async with started("count", restarts=True) as engine:
            await engine.reach("ready")
            supervisor = engine.client._supervisor
            assert supervisor._start_message is not None and supervisor.ready is not None
            config = _for_restart(supervisor._start_message, supervisor.ready).config
            assert (config.num_kv_blocks, config.max_model_len) == (READY.num_blocks, READY.max_model_len)

    run(scenario)


def test_a_stopped_engine_is_reported_and_recovers_by_itself() -> None:
    """The process is not replaced and no request is lost."""

    async def scenario() -> None:
        async with started("count", restarts=True, timeouts=STEADY) as engine:
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


def test_an_engine_that_stays_stopped_is_killed_and_the_culprit_is_found() -> None:
    async def scenario() -> None:
        async with started("count", restarts=True, timeouts=HASTY) as engine:
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


def test_the_client_ends_overdue_requests_of_a_stopped_engine_and_aborts_them_later() -> None:
    async def scenario() -> None:
        async with started("hold", restarts=True, timeouts=STEADY) as engine:
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
            collector = engine.client.submit([engine.request(marker=QUEUES)])
            await lose(engine)
            while not engine.client.status.stage:
                await engine.next_status()
            pid = engine.client.pid
            await engine.client.stop()
            with pytest.raises(EngineDied, match="shutting down"):
                await collector.get()
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


@pytest.mark.parametrize(("mode", "what"), [("replaced", "checkpoint's files were replaced"), ("slower", "other num")])
def test_a_restarted_engine_with_other_weights_or_numerics_never_serves(tmp_path: Path, mode: str, what: str) -> None:
    async def scenario() -> None:
        async with started(f"then-{mode}:{tmp_path / 'lived'}", restarts=True) as engine:
            await engine.reach("ready")
            await lose(engine)
            waiting = engine.client.submit([engine.request()])
            status = await engine.reach("dead")
            assert what in status.message and status.message.endswith("restart the server") and status.exit_code == 1
            with pytest.raises(EngineDied):
                await collect(waiting)
            assert engine.phases == ["loading", "ready", "restarting", "dead"]

    run(scenario)


def test_a_restarted_engine_with_another_name_for_the_same_weights_serves(tmp_path: Path) -> None:
    """As after `smoe plan --write-manifest`. Replies keep the name that they had."""

    async def scenario() -> None:
        async with started(f"then-relisted:{tmp_path / 'lived'}", restarts=True) as engine:
            await engine.reach("ready")
            await lose(engine)
            await engine.reach("ready")
            assert engine.client.ready is not None and engine.client.ready.fingerprint == READY.fingerprint

    run(scenario)


@pytest.mark.parametrize(
    ("mode", "adapters", "what"),
    [
        ("adapted", {"sql": "other"}, "the LoRA adapter 'sql' has other files than before"),
        ("dropped", {}, "the LoRA adapter 'sql' is served no more: /adapters/sql is gone"),
    ],
)
def test_a_restarted_engine_serves_the_adapters_that_it_could_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str, adapters: dict[str, str], what: str
) -> None:
    async def scenario() -> None:
        async with started(f"then-{mode}:{tmp_path / 'lived'}", restarts=True) as engine:
            await engine.reach("ready")
            await lose(engine)
            await engine.reach("ready")
            assert engine.client.ready is not None and engine.client.ready.adapters == adapters
            assert any(record.getMessage().startswith(what) for record in caplog.records)
            [output] = await ends(engine, [None])
            assert output is not None and output.token_ids == solo(0)

    run(scenario)


def test_an_adapter_that_was_unloaded_while_an_engine_restarts_does_not_come_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started("count", restarts=True) as engine:
            await engine.reach("ready")
            await lose(engine)
            engine.client.unload_adapter("sql")
            await engine.reach("ready")
            assert engine.client.ready is not None and engine.client.ready.adapters == {}

    run(scenario)


def test_an_adapter_that_was_unloaded_and_replaced_while_an_engine_restarts_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []

    async def scenario() -> None:
        async with started(f"then-adapted:{tmp_path / 'lived'}", restarts=True) as engine:
            await engine.reach("ready")
            await lose(engine)
            engine.client.unload_adapter("sql")
            monkeypatch.setattr(engine.client._adapter_queries, "_send", sent.append)
            await engine.reach("ready")
            assert sent == [UnloadAdapter("other")]

    run(scenario)
