"""Continuous batching on the bundled model: requests join and leave at any step, and no tokens change."""

import random
from collections import defaultdict

import pytest
import torch

from smoe import LocalEngine, SamplingParams
from tests.support.paths import DEMO


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    torch.set_num_threads(1)
    return LocalEngine(
        DEMO, dtype="float32", threads=1, check_integrity=True, speculation="off", max_num_batched_tokens=256
    )


def random_request(rng: random.Random, vocab: int) -> tuple[list[int], SamplingParams]:
    prompt = [1] + [rng.randrange(3, vocab) for _ in range(rng.choice([0, rng.randint(1, 60), rng.randint(60, 799)]))]
    params = SamplingParams(
        max_tokens=rng.choice([1, rng.randint(2, 50), rng.randint(50, 200)]),
        temperature=rng.choice([0.0, 0.8]),
        seed=rng.randrange(2**63),
        ignore_eos=True,
    )
    return prompt, params


def test_concurrent_requests_get_the_tokens_they_get_alone(engine: LocalEngine, scale: int) -> None:
    rng = random.Random(0)
    count = 20 if scale == 1 else 64
    work = [random_request(rng, 3072) for _ in range(count)]
    tokens: dict[int, list[int]] = defaultdict(list)
    ids: list[int] = []
    most_running = 0
    while len(ids) < count or engine.has_work():
        for _ in range(rng.randint(0, 8)):
            if len(ids) < count:
                ids.append(engine.add(*work[len(ids)]))
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
        most_running = max(most_running, engine.stats.num_running)
    assert most_running > count // 3, "too few requests ran at once"
    assert engine.stats.num_blocks_held == 0
    engine.check_integrity()
    alone = LocalEngine(DEMO, dtype="float32", threads=1, enable_prefix_caching=False, max_num_batched_tokens=256)
    checked = list(zip(ids, work, strict=True)) if scale > 1 else list(zip(ids, work, strict=True))[::3]
    for request_id, (prompt, params) in checked:
        [completion] = alone.generate(prompt, params)
        assert tokens[request_id] == completion.token_ids


def test_a_long_prompt_delays_decoding_requests_by_at_most_one_chunk(engine: LocalEngine) -> None:
    decoding = [engine.add([1, 40 + i], SamplingParams(max_tokens=60, ignore_eos=True, seed=i)) for i in range(16)]
    while engine.stats.num_running < 16:
        engine.step()
    long = engine.add([1] + [random.Random(1).randrange(3, 3072) for _ in range(1999)], SamplingParams(max_tokens=1))
    arrived = False
    while not arrived:
        outputs = {output.request_id for output in engine.step()}
        assert outputs >= set(decoding), "a decoding request got no token in a step"
        arrived = long in outputs
    for request_id in decoding:
        engine.abort(request_id)
    assert engine.stats.num_blocks_held == 0


def test_a_window_bounds_the_blocks_and_gives_the_tokens_of_the_full_computation(engine: LocalEngine) -> None:
    prompt = [1] + [random.Random(2).randrange(3, 3072) for _ in range(1900)]
    params = SamplingParams(max_tokens=100, temperature=0, ignore_eos=True)
    request_id = engine.add(prompt, params)
    tokens: list[int] = []
    while engine.has_work():
        for output in engine.step():
            tokens += output.token_ids
        assert engine.stats.num_blocks_held <= 256 // 16 + 1
    assert request_id and tokens == _full_cache_tokens(prompt, tokens)


def _full_cache_tokens(prompt: list[int], generated: list[int]) -> list[int]:
    """Return the greedy tokens of transformers, with a window mask over the whole sequence and no eviction."""
    from transformers import MixtralForCausalLM

    oracle = MixtralForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = oracle(torch.tensor([prompt + generated]), use_cache=False).logits[0]
    return [int(row.argmax()) for row in logits[len(prompt) - 1 : -1]]
