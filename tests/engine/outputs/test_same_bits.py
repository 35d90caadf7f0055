"""The native backend's promise to clients: token ids and logprobs equal those of the request alone, bit by bit, with
any other requests, chunks, preemptions and threads."""

import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.types import StepStats
from model.ops.native.library import NativeLibrary
from smoe import Completion, LocalEngine, SamplingParams
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint

ISAS = NativeLibrary().isas()

Work = tuple[list[int], SamplingParams]

MAX_MODEL_LEN = 640
DIMS: dict[str, Any] = {"dim": 96, "hidden_dim": 112}  # several tile registers in K
SPAN = 256  # of attention.h: positions per partial result

NUMERICS = {
    "float32": ("float32", "auto", "none"),
    "bf16": ("bfloat16", "auto", "none"),
    "lossless": ("bfloat16", "auto", "lossless"),
    "float32, bf16 kv": ("float32", "bf16", "none"),
    "float32, int8 kv": ("float32", "int8", "none"),
    "bf16, int8 kv": ("bfloat16", "int8", "none"),
    "int8": ("bfloat16", "auto", "int8"),
    "int8 in float32, int8 kv": ("float32", "int8", "int8"),
    "int4 in float32": ("float32", "auto", "int4"),
    "int4": ("bfloat16", "auto", "int4"),
}


@dataclass
class Coverage:
    """Number of times a run passed the places where bits could change."""

    requests: int = 0
    preemptions: int = 0
    prefix_hits: int = 0
    window_slides: int = 0
    span_merges: int = 0  # generated tokens behind the first span
    max_tile_rows: int = 12  # of packed_row_layout.h: rows of one tile
    tile_rows: Counter[int] = field(default_factory=Counter)  # steps with a tile of so many rows in its linear layers

    def take(self, stats: StepStats) -> None:
        self.preemptions += stats.num_preemptions
        self.prefix_hits += stats.num_prefix_hits
        self.window_slides += stats.num_window_blocks_freed
        if stats.num_tokens:
            num_tiles = -(-stats.num_tokens // self.max_tile_rows)
            smaller, larger = stats.num_tokens // num_tiles, -(-stats.num_tokens // num_tiles)
            self.tile_rows.update({smaller, larger})

    def assert_complete(self, shape: Shape) -> None:
        assert self.prefix_hits and self.span_merges, self
        assert self.window_slides if shape.window else self.preemptions, self
        assert len(self.tile_rows) >= self.max_tile_rows - self.max_tile_rows // 5, self


@pytest.fixture(
    scope="module",
    params=[Shape(**DIMS, seed=1), Shape(**DIMS, window=48, num_kv_heads=1, seed=2)],
    ids=["full", "window"],
)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shape, Path]:
    path = tmp_path_factory.mktemp("checkpoint")
    save_random_checkpoint(request.param, path)
    return request.param, path


def _random_work(rng: random.Random, count: int) -> list[Work]:
    """Draw requests; some prompts share a prefix with an earlier one, so that the prefix cache is hit."""
    work: list[Work] = []
    for _ in range(count):
        stem = rng.choice(work)[0][: rng.randint(0, 200)] if work and rng.random() < 0.4 else []
        prompt = stem + [rng.randrange(3, 101) for _ in range(rng.choice((1, 2, 17, 100, 250)))]
        params = SamplingParams(
            max_tokens=rng.randint(1, 40),
            temperature=rng.choice((0.0, 1.0)),
            top_p=rng.choice((1.0, 0.9)),
            frequency_penalty=rng.choice((0.0, 0.5)),
            seed=rng.randrange(2**63),
            num_logprobs=3,
            ignore_eos=True,
        )
        work.append((prompt, params))
    return work


ALL_AT_ONCE, SCATTERED = (5, 9), (0, 0, 1, 3)  # numbers of requests that arrive between two steps


def _random_load(rng: random.Random) -> dict[str, Any]:
    """Draw engine settings whose pool is often too small for all running requests, but never for one."""
    block_size = rng.choice((4, 16, 24))
    smallest = -(-MAX_MODEL_LEN // block_size) + 1
    return {
        "threads": rng.choice((1, 2)),
        "max_num_batched_tokens": rng.choice((13, 40, 100, 300)),
        "max_num_seqs": rng.choice((5, 11, 64)),
        "block_size": block_size,
        "num_kv_blocks": rng.choice((smallest, smallest, 3 * smallest)),
        "async_scheduling": rng.random() < 0.5,
    }


def _tight_load(rng: random.Random) -> dict[str, Any]:
    """Draw engine settings under which requests preempt each other, unless a window limits their blocks."""
    return _random_load(rng) | {"max_num_seqs": 64, "block_size": 16, "num_kv_blocks": MAX_MODEL_LEN // 16}


def _serve_together(
    engine: LocalEngine, work: list[Work], arrivals: tuple[int, ...], rng: random.Random, coverage: Coverage
) -> dict[int, Completion]:
    """Serve requests that arrive a few at a time and abort every fifth; return the others by their index in `work`."""
    ids: list[int] = []
    completions: dict[int, Completion] = {}
    while len(ids) < len(work) or engine.has_work():
        for prompt, params in work[len(ids) : len(ids) + rng.choice(arrivals)]:
            ids.append(engine.add(prompt, params))
            completions[ids[-1]] = Completion(prompt)
        step = engine._engine.step()
        coverage.take(step.stats)
        for output in step.outputs:
            completions[output.request_id].token_ids += output.token_ids
            completions[output.request_id].logprobs += output.logprobs or []
        doomed = rng.choice(ids) if ids else 0
        if doomed in completions and doomed % 5 == 0:
            engine.abort(doomed)
            del completions[doomed]
    engine.check_integrity()
    return {ids.index(request_id): completion for request_id, completion in completions.items()}


@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("isa", ISAS)
def test_a_request_gets_the_same_bits_alone_and_under_any_load(
    checkpoint: tuple[Shape, Path], isa: str, numerics: str, scale: int, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    shape, path = checkpoint
    dtype, kv_cache_dtype, quantization = NUMERICS[numerics]
    in_tile_registers = isa == "amx" and (quantization != "none" or (dtype, quantization) == ("bfloat16", "none"))
    rng, coverage = (
        random.Random(f"{isa} {numerics} {shape.seed}"),
        Coverage(max_tile_rows=32 if in_tile_registers else 12),
    )
    common: dict[str, Any] = {"backend": "native", "isa": isa, "max_model_len": MAX_MODEL_LEN}
    common |= {"dtype": dtype, "kv_cache_dtype": kv_cache_dtype, "quantization": quantization}
    work = _random_work(rng, 14 if scale == 1 else 12 * scale)
    solo_engine = LocalEngine(
        path, threads=1, enable_prefix_caching=False, max_num_batched_tokens=1024, speculation="off", **common
    )
    alone = [solo_engine.generate(prompt, params)[0] for prompt, params in work]
    loads = [(_tight_load(rng), ALL_AT_ONCE)] + [(_random_load(rng), SCATTERED) for _ in range(min(scale, 2))]
    for load, arrivals in loads:
        engine = LocalEngine(path, **load, **common)
        for index, completion in _serve_together(engine, work, arrivals, rng, coverage).items():
            assert completion.token_ids == alone[index].token_ids, (index, load)
            assert completion.logprobs == alone[index].logprobs, (index, load)
            coverage.requests += 1
            length = len(completion.prompt_token_ids) + len(completion.token_ids)
            coverage.span_merges += min(len(completion.token_ids), max(0, length - SPAN))
    assert coverage.requests > len(work), "too few requests were left to compare"
    if scale > 1:
        coverage.assert_complete(shape)
        with capsys.disabled():
            sys.stdout.write(f"\n{isa}, {numerics}, window {shape.window}: {coverage}\n")
