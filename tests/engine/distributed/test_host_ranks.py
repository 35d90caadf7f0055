"""Ranks of two hosts as real processes that share nothing but a network: the tokens of one process, and their end."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from engine.capacity.memory_plan import plan_memory
from engine.config import EngineConfig
from engine.distributed.host_ranks import HostRanks
from engine.engine import Engine
from engine.errors import EngineConfigError, FatalEngineError
from engine.messages import Failed, Ready, StepPart
from engine.types import Request, SamplingParams
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.conditions import LIMIT_S, wait_until
from tests.support.hosts.host_ranks import HostRankProcess, host_rank
from tests.support.paths import DEMO
from tests.support.ports import free_port

ALONE = EngineConfig(model=str(DEMO), dtype="float32", threads=1, max_num_seqs=4, num_kv_blocks=24, max_model_len=256)


@contextmanager
def _hosts(alone: EngineConfig = ALONE, num_ranks: int = 2) -> Iterator[tuple[Engine, HostRankProcess]]:
    """Load an engine on two hosts, which are both this one."""
    config = msgspec.structs.replace(
        alone,
        tensor_parallel_size=num_ranks,
        nnodes=2,
        group_timeout=LIMIT_S,
        master_addr="127.0.0.1",
        master_port=free_port(),
    )
    other = msgspec.structs.replace(config, node_rank=1, dtype="auto", max_num_seqs=1)  # those of rank 0 count
    with host_rank(other) as rank:
        engine = Engine.load(config)
        try:
            yield engine, rank
        finally:
            _ranks(engine).close()


def _ranks(engine: Engine) -> HostRanks:
    assert isinstance(engine.loaded.ranks, HostRanks)
    return engine.loaded.ranks


def _run(engine: Engine, num_requests: int = 8) -> dict[int, list[int]]:
    """Generate for some requests, of which four fit; the pool is too small for all of them to the end."""
    vocab_size = engine.loaded.config.vocab_size
    for number in range(num_requests):
        prompt = [1, *((31 * number + 7 * position) % vocab_size for position in range(40 + 9 * number))]
        params = SamplingParams(max_tokens=60, temperature=0.8 * (number % 2), seed=number, ignore_eos=True)
        engine.add(Request(number, prompt, params))
    tokens: dict[int, list[int]] = {number: [] for number in range(num_requests)}
    while engine.has_work():
        for output in engine.step().outputs:
            assert output.error is None
            tokens[output.request_id] += output.token_ids
    return tokens


def test_two_hosts_generate_the_tokens_of_one_and_end_with_the_rank_that_is_killed() -> None:
    expected = _run(Engine.load(ALONE))
    with _hosts() as (engine, rank):
        deaths: list[str] = []
        _ranks(engine).on_death = deaths.append
        assert _run(engine) == expected
        _assert_planned(engine, ALONE, 2)
        before = rank.heartbeat.count
        wait_until(lambda: rank.heartbeat.count > before + 2)  # rank 0 beats while there is nothing to do
        engine.add(Request(99, [1, 2, 3], SamplingParams(max_tokens=200, ignore_eos=True)))
        engine.step()
        os.kill(rank.process.pid, signal.SIGKILL)
        with pytest.raises(FatalEngineError, match="rank"):
            _run(engine)
        wait_until(lambda: deaths == ["rank 1 on 127.0.0.1 is gone"])
        assert _ranks(engine).death == deaths[0]


def _assert_planned(engine: Engine, alone: EngineConfig, num_ranks: int) -> None:
    """The fullest host takes what `smoe plan --nnodes 2` says. Host 0 has no more panels than host 1."""
    config = msgspec.structs.replace(alone, tensor_parallel_size=num_ranks, nnodes=2)
    planned, loaded = plan_memory(config, 8 << 30), engine.loaded
    assert planned.weight_bytes - planned.host_weight_bytes == loaded.weight_bytes
    assert planned.kv_cache_bytes == 2 * loaded.kv_block_bytes * (loaded.limits.num_blocks + 1)


def test_two_ranks_on_each_host_generate_the_tokens_of_one(tmp_path: Path) -> None:
    shape = Shape(dim=128, hidden_dim=144, num_heads=8, num_kv_heads=4, head_dim=16, vocab_size=128)
    save_random_checkpoint(shape, tmp_path)
    alone = msgspec.structs.replace(ALONE, model=str(tmp_path), dtype="bfloat16")
    expected = _run(Engine.load(alone))
    with _hosts(alone, num_ranks=4) as (engine, _):
        assert _run(engine) == expected
        _assert_planned(engine, alone, 4)


def test_a_rank_that_stands_still_is_named_and_ends_itself_when_it_goes_on() -> None:
    with _hosts() as (engine, rank):
        _run(engine, 1)
        os.kill(rank.process.pid, signal.SIGSTOP)
        _ranks(engine).group.timeout_s = 0.3
        with pytest.raises(FatalEngineError, match=r"^rank 1 did not answer for 0.3 s$"):
            _run(engine, 1)
        _ranks(engine).close()
        os.kill(rank.process.pid, signal.SIGCONT)
        messages = rank.messages()
        assert [type(message) for message in messages] == [Ready, StepPart, Failed]
        assert isinstance(messages[-1], Failed) and messages[-1].exit_code == 1 == rank.process.returncode


def test_hosts_that_cannot_have_equally_many_ranks_are_one_line() -> None:
    config = msgspec.structs.replace(ALONE, tensor_parallel_size=2, nnodes=4, master_addr="127.0.0.1")
    with pytest.raises(EngineConfigError, match=r"^--tensor-parallel-size 2: 4 hosts cannot have equally many ranks$"):
        Engine.load(config)
