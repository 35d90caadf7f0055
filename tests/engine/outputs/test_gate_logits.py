"""Gate logits that requests report, against transformers: the numbers behind the expert ids."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from smoe import Completion, LocalEngine, SamplingParams
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.kernels.routed_oracle import Mask, forward, gate_logits

SHAPE = Shape(num_layers=3, seed=7)
E, L = SHAPE.num_experts, SHAPE.num_layers
MASK: Mask = [[(expert + layer) % 3 != 0 for expert in range(E)] for layer in range(L)]
TOLERANCE = 1e-4  # float32, sums in another order
NUM_PROMPT = 30


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("checkpoint")
    return path, save_random_checkpoint(SHAPE, path)


def _prompts(count: int) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(3, SHAPE.vocab_size) for _ in range(NUM_PROMPT)] for _ in range(count)]


def _greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, num_logprobs=1, **fields)


def _assert_equals_transformers(completion: Completion, model: Any, k: int, mask: Mask | None, first: int) -> None:
    """Compare the reported positions, all from `first` on but the last token's."""
    ids = completion.prompt_token_ids + completion.token_ids[:-1]
    expected = gate_logits(model, ids, k, mask)[first:]
    assert torch.allclose(torch.tensor(completion.gate_logits), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert completion.expert_routing == forward(model, ids, k, mask)[1][first:]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_logits_equal_an_independent_forward_pass_for_each_k_and_mask(
    backend: str, checkpoint: tuple[Path, Any]
) -> None:
    """Rows of k = 1, 2 and 8, with and without masks and prompts, in one batch and in chunks of prompts."""
    path, model = checkpoint
    options = [(1, None), (2, None), (8, None), (1, MASK), (2, MASK)]
    cases = [(k, mask, prompt) for k, mask in options for prompt in (False, True)]
    each = [
        _greedy(experts_per_token=k, expert_mask=mask, gate_logits=True, prompt_routing=prompt)
        for k, mask, prompt in cases
    ]
    engine = LocalEngine(path, backend=backend, threads=1, max_num_batched_tokens=24)
    for (k, mask, prompt), completion in zip(cases, engine.generate(_prompts(len(cases)), each), strict=True):
        _assert_equals_transformers(completion, model, k, mask, 0 if prompt else NUM_PROMPT)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_report_changes_no_bit_of_its_own_request_or_of_others(checkpoint: tuple[Path, Any], dtype: str) -> None:
    engine = LocalEngine(checkpoint[0], backend="native", dtype=dtype, threads=2, enable_prefix_caching=False)
    prompts = _prompts(6)
    plain = engine.generate(prompts, _greedy())
    each = [_greedy(gate_logits=i % 2 == 0, prompt_routing=i % 4 == 0) for i in range(6)]
    beside = engine.generate(prompts, each)
    assert [(c.token_ids, c.logprobs) for c in beside] == [(c.token_ids, c.logprobs) for c in plain]


def test_a_preempted_request_reports_each_position_once(checkpoint: tuple[Path, Any]) -> None:
    path, model = checkpoint
    engine = LocalEngine(path, threads=1, num_kv_blocks=20, max_model_len=120, enable_prefix_caching=False)
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True, gate_logits=True)
    completions = engine.generate(_prompts(8), params)
    assert engine.num_preemptions > 0, "the pool was meant to be too small"
    for completion in completions:
        _assert_equals_transformers(completion, model, 2, None, NUM_PROMPT)


def test_prompts_whose_gates_are_reported_are_computed_and_others_come_from_the_cache(
    checkpoint: tuple[Path, Any],
) -> None:
    engine, prompt = LocalEngine(checkpoint[0], threads=1), _prompts(1)[0] * 4

    def num_cached(**fields: Any) -> int:
        return engine.generate(prompt, _greedy(**fields))[0].num_cached_tokens

    assert num_cached() == 0
    assert num_cached(gate_logits=True) > 0
    assert num_cached(gate_logits=True, prompt_routing=True) == 0


def test_a_prompt_alone_is_reported_whole(checkpoint: tuple[Path, Any]) -> None:
    path, model = checkpoint
    [prompt] = _prompts(1)
    params = SamplingParams(max_tokens=0, gate_logits=True, prompt_routing=True)
    [completion] = LocalEngine(path, threads=1).generate([prompt], params)
    assert torch.allclose(torch.tensor(completion.gate_logits), gate_logits(model, prompt, 2), atol=TOLERANCE)
