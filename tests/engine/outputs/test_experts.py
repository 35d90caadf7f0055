"""Experts per token and expert masks of each request, counted exactly; transformers is the oracle."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralForCausalLM

from engine.errors import EngineError
from model.checkpoint.errors import CheckpointError
from smoe import Completion, LocalEngine, SamplingParams
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.kernels.routed_oracle import Mask, forward
from tests.support.paths import DEMO

TEXTS = [
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want",
    "And God said, Let there be light: and there was light. And God saw the light, that it was good:",
    "def main():\n    for name in sorted(os.listdir(path)):\n        print(name, file=sys.stderr)\n",
]
SHAPE = Shape(num_layers=3, seed=5)
E, L = SHAPE.num_experts, SHAPE.num_layers

Routing = Sequence[Sequence[Sequence[int]]]  # [position][layer][k]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def demo() -> Any:
    return MixtralForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("checkpoint")
    return path, save_random_checkpoint(SHAPE, path)


@pytest.fixture(params=["native", "reference"])
def engine(request: pytest.FixtureRequest, random_checkpoint: tuple[Path, Any]) -> LocalEngine:
    return LocalEngine(random_checkpoint[0], backend=request.param, threads=1, max_num_batched_tokens=24)


def _count(routing: Routing, num_layers: int, num_experts: int) -> list[list[int]]:
    """Count every choice in a loop: tokens per layer and expert, [L][E]."""
    counts = [[0] * num_experts for _ in range(num_layers)]
    for position in routing:
        for layer, ids in enumerate(position):
            for expert in ids:
                counts[layer][expert] += 1
    return counts


def _prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, SHAPE.vocab_size) for _ in range(length)] for _ in range(count)]


def _greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, num_logprobs=1, **fields)


def _random_mask(k: int, seed: int) -> Mask:
    rng = random.Random(seed)
    return [[e in kept for e in range(E)] for kept in (rng.sample(range(E), rng.randint(k, E - 1)) for _ in range(L))]


def _assert_equals_transformers(completion: Completion, model: Any, k: int, mask: Mask | None = None) -> None:
    """Compare tokens, log probabilities and expert ids; the ids of a position are strongest first."""
    num_prompt = len(completion.prompt_token_ids)
    ids = completion.prompt_token_ids + completion.token_ids
    logits, routing = forward(model, ids[:-1], k, mask)
    assert completion.token_ids == logits[num_prompt - 1 :].argmax(-1).tolist()
    expected = logits[num_prompt - 1 :].log_softmax(-1).amax(-1).tolist()
    assert [scored.logprob for scored in completion.logprobs] == pytest.approx(expected, abs=1e-4)
    num_layers, num_experts = len(routing[0]), model.config.num_local_experts
    assert completion.expert_prompt_tokens == _count(routing[:num_prompt], num_layers, num_experts)
    assert completion.expert_routing == routing[num_prompt:]
    assert completion.expert_completion_tokens == _count(routing[num_prompt:], num_layers, num_experts)


def test_counts_on_the_demo_checkpoint_are_those_of_an_independent_forward_pass(demo: Any) -> None:
    engine = LocalEngine(DEMO, dtype="float32", threads=1, max_num_batched_tokens=32)
    completions = engine.generate(TEXTS, _greedy(expert_usage=True))
    total = Counter[tuple[int, int]]()
    for completion in completions:
        _assert_equals_transformers(completion, demo, k=2)
        for counts in (completion.expert_prompt_tokens, completion.expert_completion_tokens):
            total.update({(i, e): n for i, layer in enumerate(counts) for e, n in enumerate(layer)})
    num_positions = sum(len(c.prompt_token_ids) + len(c.token_ids) - 1 for c in completions)
    for index, layer in enumerate(engine.experts().layers):
        assert layer.tokens == [total[index, e] for e in range(8)]
        assert sum(layer.tokens) == 2 * num_positions


def test_rows_of_every_k_in_one_batch_equal_transformers(
    engine: LocalEngine, random_checkpoint: tuple[Path, Any]
) -> None:
    each = [_greedy(experts_per_token=k, expert_usage=True) for k in range(1, E + 1)]
    for k, completion in enumerate(engine.generate(_prompts(E, 20), each), start=1):
        _assert_equals_transformers(completion, random_checkpoint[1], k)
        assert {sum(layer) for layer in completion.expert_prompt_tokens} == {20 * k}


def test_masked_rows_beside_others_equal_transformers(engine: LocalEngine, random_checkpoint: tuple[Path, Any]) -> None:
    """Requests of even index have no mask, each of the others has its own."""
    masks = [None if i % 2 == 0 else _random_mask(1 + i % 4, seed=i) for i in range(8)]
    each = [_greedy(experts_per_token=1 + i % 4, expert_mask=mask, expert_usage=True) for i, mask in enumerate(masks)]
    for i, completion in enumerate(engine.generate(_prompts(8, 20), each)):
        _assert_equals_transformers(completion, random_checkpoint[1], 1 + i % 4, masks[i])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_any_k_and_mask_have_the_bits_of_their_solo_runs(
    random_checkpoint: tuple[Path, Any], dtype: str, scale: int
) -> None:
    settings: dict[str, Any] = {"backend": "native", "dtype": dtype, "enable_prefix_caching": False}
    together = LocalEngine(random_checkpoint[0], threads=2, max_num_batched_tokens=50, **settings)
    alone = LocalEngine(random_checkpoint[0], threads=1, **settings)
    for seed in range(scale):
        rng = random.Random(seed)
        each = []
        for i in range(12):
            k = (1, 8, rng.randint(1, 7))[i % 3]
            mask = _random_mask(k, seed=rng.randrange(1000)) if k < 8 and i % 2 else None
            each.append(_greedy(experts_per_token=k, expert_mask=mask, expert_usage=True))
        prompts = _prompts(12, 30, seed)
        for prompt, params, completion in zip(prompts, each, together.generate(prompts, each), strict=True):
            assert completion == alone.generate(prompt, params)[0]


def test_a_requests_k_overrides_the_engines_default(random_checkpoint: tuple[Path, Any]) -> None:
    engine = LocalEngine(random_checkpoint[0], threads=1, experts_per_token=3)
    prompt = _prompts(1, 20)[0]
    by_default, explicit, other = engine.generate(
        [prompt] * 3, [_greedy(expert_usage=True, experts_per_token=k) for k in (None, 3, 1)]
    )
    assert by_default == explicit != other
    _assert_equals_transformers(by_default, random_checkpoint[1], 3)
    assert engine.fingerprint != LocalEngine(random_checkpoint[0], threads=1).fingerprint


def test_only_requests_with_the_same_experts_share_a_prefix(random_checkpoint: tuple[Path, Any]) -> None:
    engine, prompt = LocalEngine(random_checkpoint[0], threads=1), _prompts(1, 100)[0]
    all_on, one_off = [[True] * E] * L, [[e > 0 for e in range(E)]] * L

    def num_cached(**fields: Any) -> int:
        return engine.generate(prompt, _greedy(**fields))[0].num_cached_tokens

    assert num_cached() == 0
    assert num_cached() == num_cached(experts_per_token=2) == num_cached(expert_mask=all_on) == 96
    assert num_cached(experts_per_token=3) == 0 and num_cached(experts_per_token=3) == 96
    assert num_cached(expert_mask=one_off) == 0 and num_cached(expert_mask=one_off) == 96
    assert num_cached(expert_mask=one_off[:2] + all_on[:1]) == 0
    assert num_cached(expert_usage=True) == 0, "every prompt position must be computed to be counted"
    assert num_cached(expert_routing=True) == 96, "the completion's positions are computed anyway"


def test_what_a_preemption_computes_again_is_counted_once_for_the_request_and_twice_for_the_engine(
    random_checkpoint: tuple[Path, Any],
) -> None:
    engine = LocalEngine(
        random_checkpoint[0], threads=1, num_kv_blocks=20, max_model_len=120, enable_prefix_caching=False
    )
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True, num_logprobs=1, expert_usage=True)
    completions = engine.generate(_prompts(8, 40), params)
    assert engine.num_preemptions > 0, "the pool was meant to be too small"
    for completion in completions:
        _assert_equals_transformers(completion, random_checkpoint[1], 2)
    reported = sum(2 * (len(c.prompt_token_ids) + len(c.token_ids) - 1) for c in completions)
    assert all(sum(layer.tokens) > reported for layer in engine.experts().layers)


def test_a_rejected_request_ends_alone(random_checkpoint: tuple[Path, Any]) -> None:
    engine = LocalEngine(random_checkpoint[0], threads=1)
    bad, good = engine.generate(_prompts(2, 5), [_greedy(experts_per_token=9), _greedy()])
    assert (bad.finish_reason, good.finish_reason) == ("error", "length")
    assert bad.error is not None and "8 experts" in bad.error


@pytest.mark.parametrize("k", [0, 9])
def test_a_default_k_beyond_the_networks_experts_is_rejected_at_the_start(
    random_checkpoint: tuple[Path, Any], k: int
) -> None:
    with pytest.raises((CheckpointError, EngineError), match="8 experts"):
        LocalEngine(random_checkpoint[0], experts_per_token=k)
