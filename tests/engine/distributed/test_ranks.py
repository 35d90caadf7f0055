"""Ranks as real processes: the tokens of one process, the memory that was planned, and their end with each other."""

import errno
import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import psutil
import pytest

from engine.capacity.checkpoint_files import write_manifest
from engine.capacity.memory_plan import plan_memory
from engine.config import EngineConfig
from engine.distributed import ranks as ranks_module
from engine.distributed.host_processes import HostProcesses
from engine.distributed.ranks import Ranks, late_ranks
from engine.engine import Engine
from engine.errors import EngineConfigError, FatalEngineError
from engine.types import Request, RequestOutput, SamplingParams
from model.checkpoint.checkpoint import read_config
from model.checkpoint.errors import CheckpointError
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.conditions import LIMIT_S
from tests.support.paths import DEMO

ALONE = EngineConfig(model=str(DEMO), dtype="float32", threads=1, max_num_seqs=4, num_kv_blocks=24, max_model_len=256)
CONFIG = msgspec.structs.replace(ALONE, tensor_parallel_size=2)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks_module, "WATCH_S", 0.05)
        patch.setattr(ranks_module, "LATE_S", 0.0)
        loaded = Engine.load(CONFIG)
        yield loaded
        _ranks(loaded).close()


class _Heard(logging.Handler):
    """Waits for a log record with some words, or for a call of take()."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words
        self.heard = Event()
        self.message = ""

    def emit(self, record: logging.LogRecord) -> None:
        if self.words in record.getMessage():
            self.heard.set()

    def take(self, message: str) -> None:
        self.message = message
        self.heard.set()


def _ranks(engine: Engine) -> Ranks:
    assert engine.loaded.ranks is not None
    return engine.loaded.ranks


def _run(engine: Engine) -> dict[int, list[int]]:
    """Generate for eight requests, of which four fit; the pool is too small for all of them to the end."""
    for number in range(8):
        prompt = [1, *((31 * number + 7 * position) % 3000 for position in range(40 + 9 * number))]
        params = SamplingParams(max_tokens=60, temperature=0.8 * (number % 2), seed=number, ignore_eos=True)
        engine.add(Request(number, prompt, params))
    tokens: dict[int, list[int]] = {number: [] for number in range(8)}
    while engine.has_work():
        for output in engine.step().outputs:
            _check(output)
            tokens[output.request_id] += output.token_ids
    return tokens


def _check(output: RequestOutput) -> None:
    assert output.error is None


def test_two_ranks_generate_the_tokens_of_one_process(engine: Engine) -> None:
    assert _run(engine) == _run(Engine.load(ALONE))


def test_a_start_takes_what_was_planned(engine: Engine) -> None:
    planned = plan_memory(CONFIG, 8 << 30)
    assert planned.limits is not None
    assert planned.weight_bytes == engine.loaded.weight_bytes
    assert planned.kv_cache_bytes == engine.loaded.kv_block_bytes * (engine.loaded.limits.num_blocks + 1)
    own = engine.loaded.kv_pool.k.nbytes + engine.loaded.kv_pool.v.nbytes
    assert own == planned.kv_cache_bytes // 2


def test_a_stopped_rank_is_named_and_goes_on_where_it_stood(engine: Engine) -> None:
    expected = _run(engine)
    [pid] = _ranks(engine).pids
    named = _Heard("wait for rank 1")
    logging.getLogger("smoe.engine").addHandler(named)
    try:
        os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(_run, engine)
            assert named.heard.wait(LIMIT_S)
            assert not running.done()
            os.kill(pid, signal.SIGCONT)
            assert running.result(LIMIT_S) == expected
    finally:
        os.kill(pid, signal.SIGCONT)
        logging.getLogger("smoe.engine").removeHandler(named)


def test_the_engine_ends_with_a_rank_that_is_killed(engine: Engine) -> None:
    """The last test of this engine. Also a step that begins after the death fails, instead of waiting for the rank."""
    deaths = _Heard("")
    _ranks(engine).on_death = deaths.take
    engine.add(Request(99, [1, 2, 3], SamplingParams(max_tokens=200, ignore_eos=True)))
    engine.step()
    os.kill(_ranks(engine).pids[0], signal.SIGKILL)
    with pytest.raises(FatalEngineError):
        _run(engine)
    assert deaths.heard.wait(LIMIT_S)
    assert deaths.message == _ranks(engine).death == "rank 1 was killed by signal 9"


def test_a_fault_in_the_part_of_another_rank_is_told_in_one_line_and_leaves_no_process(tmp_path: Path) -> None:
    """With --verify each rank checks its own rows. The last row of the head belongs to rank 1."""
    model = save_random_checkpoint(Shape(dim=64, hidden_dim=64, vocab_size=128), tmp_path / "bad")
    model.lm_head.weight.data[-1, 0] = float("nan")  # type: ignore[union-attr,operator,index]
    model.save_pretrained(tmp_path / "bad")  # type: ignore[operator]
    write_manifest(tmp_path / "bad")
    config = msgspec.structs.replace(CONFIG, model=str(tmp_path / "bad"), verify=True)
    before = psutil.Process().children()
    with pytest.raises((CheckpointError, EngineConfigError), match=r"lm_head.weight contains NaN or Inf$"):
        Engine.load(config)
    new = [child for child in psutil.Process().children() if child not in before]
    assert not [child for child in new if "engine.rank" in " ".join(child.cmdline())]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor_parallel_size": 3}, r"--tensor-parallel-size 3: the model has 2 KV heads, .*; 1, 2 can$"),
    ],
)
def test_settings_that_ranks_cannot_work_with_are_one_line(settings: dict[str, object], message: str) -> None:
    config = msgspec.structs.replace(CONFIG, **settings)
    with pytest.raises(EngineConfigError, match=message):
        Engine.load(config)
    with pytest.raises(EngineConfigError, match=message):
        plan_memory(config, 8 << 30)


@pytest.mark.parametrize("nnodes", [1, 2])
def test_a_rank_that_the_system_cannot_start_is_one_line_and_leaves_no_process(
    nnodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process of three, at a limit of processes."""
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def second_fails(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        if started:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(start(["sleep", "600"], **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", second_fails)
    monkeypatch.setattr(ranks_module, "END_GRACE_S", 0.01)
    message = r"^--tensor-parallel-size \d: the system cannot start the process of a rank: Resource temporarily"
    config = msgspec.structs.replace(CONFIG, tensor_parallel_size=4 * nnodes, nnodes=nnodes)
    with pytest.raises(EngineConfigError, match=message):
        Ranks(config, read_config(DEMO)[0]) if nnodes == 1 else HostProcesses(config)
    assert started[0].poll() is not None


@pytest.mark.parametrize(
    ("arrivals", "late"),
    [([7, 7], []), ([7, 6, 7], [1]), ([0, 2**32 - 1, 0], [1]), ([2**32 - 1, 0], [0]), ([5, 6], [0])],
)
def test_late_ranks_are_those_behind_the_first(arrivals: list[int], late: list[int]) -> None:
    assert late_ranks(arrivals) == late
