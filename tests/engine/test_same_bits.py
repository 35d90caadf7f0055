"""The native backend's promise as a client sees it: token ids and logprobs are those of the request alone, bit by bit,
whatever else runs beside it, in what chunks, after how many preemptions and on how many threads."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from model.ops.native_library import NativeLibrary
from smoe import Completion, LocalEngine, SamplingParams
from tests.checkpoints import Shape, save_random_checkpoint

ISAS = NativeLibrary().isas()

Work = tuple[list[int], SamplingParams]

MAX_MODEL_LEN = 400


@pytest.fixture(
    scope="module", params=[Shape(seed=1), Shape(window=48, num_kv_heads=1, seed=2)], ids=["full", "window"]
)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shape, Path]:
    path = tmp_path_factory.mktemp("checkpoint")
    save_random_checkpoint(request.param, path)
    return request.param, path


def _random_work(rng: random.Random, count: int) -> list[Work]:
    """Some prompts begin as an earlier one does, so that the prefix cache is hit."""
    work: list[Work] = []
    for _ in range(count):
        stem = rng.choice(work)[0][: rng.randint(0, 200)] if work and rng.random() < 0.4 else []
        prompt = stem + [rng.randrange(3, 101) for _ in range(rng.choice((1, 17, 100, 140)))]
        params = SamplingParams(
            max_tokens=rng.randint(1, 40),
            temperature=rng.choice((0.0, 1.0)),
            seed=rng.randrange(2**63),
            num_logprobs=3,
            ignore_eos=True,
        )
        work.append((prompt, params))
    return work


def _crowded(engine: LocalEngine, work: list[Work], rng: random.Random) -> dict[int, Completion]:
    """Requests arrive a few at a time, every fifth is given up on its way -> the others, by their place in `work`."""
    ids: list[int] = []
    completions: dict[int, Completion] = {}
    while len(ids) < len(work) or engine.has_work():
        for prompt, params in work[len(ids) : len(ids) + rng.choice((0, 0, 1, 3))]:
            ids.append(engine.add(prompt, params))
            completions[ids[-1]] = Completion(prompt)
        for output in engine.step():
            completions[output.request_id].token_ids += output.token_ids
            completions[output.request_id].logprobs += output.logprobs or []
        doomed = rng.choice(ids) if ids else 0
        if doomed in completions and doomed % 5 == 0:
            engine.abort(doomed)
            del completions[doomed]
    engine.check_integrity()
    return {ids.index(request_id): completion for request_id, completion in completions.items()}


@pytest.mark.parametrize(
    ("dtype", "kv_cache_dtype", "quantization"),
    [
        ("float32", "auto", "none"),
        ("bfloat16", "auto", "none"),
        ("float32", "bf16", "none"),
        ("float32", "int8", "none"),
        ("bfloat16", "int8", "none"),
        ("bfloat16", "auto", "int8"),
        ("float32", "int8", "int8"),
        ("float32", "auto", "int4"),
        ("bfloat16", "auto", "int4"),
    ],
)
@pytest.mark.parametrize("isa", ISAS)
def test_a_request_gets_the_same_bits_alone_and_under_any_load(
    checkpoint: tuple[Shape, Path], isa: str, dtype: str, kv_cache_dtype: str, quantization: str, scale: int
) -> None:
    torch.set_num_threads(1)
    shape, path = checkpoint
    rng = random.Random(f"{isa} {dtype} {shape.seed}")
    work = _random_work(rng, 30 * scale)
    common: dict[str, Any] = {"backend": "native", "isa": isa, "dtype": dtype, "max_model_len": MAX_MODEL_LEN}
    common |= {"kv_cache_dtype": kv_cache_dtype, "quantization": quantization}
    lonely = LocalEngine(path, threads=1, enable_prefix_caching=False, max_num_batched_tokens=512, **common)
    alone = [lonely.generate(prompt, params)[0] for prompt, params in work]
    num_preemptions = num_compared = 0
    for threads, budget, num_kv_blocks in ((2, 100, 30), (1, 300, 300)):
        engine = LocalEngine(
            path, threads=threads, max_num_batched_tokens=budget, num_kv_blocks=num_kv_blocks, **common
        )
        for index, completion in _crowded(engine, work, rng).items():
            assert completion.token_ids == alone[index].token_ids, index
            assert completion.logprobs == alone[index].logprobs, index
            num_compared += 1
        num_preemptions += engine.num_preemptions
    assert num_compared > len(work), "too few requests were left to compare"
    assert num_preemptions > 0 or shape.window, "the smaller pool was meant to be too small"
