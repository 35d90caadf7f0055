"""The engine against transformers in float32: the same greedy tokens and log probabilities, however it is scheduled.

smoe generates; the oracle then sees prompt and generated tokens in one piece, without cache, chunks or batch. Positions
where the oracle itself is undecided (its two best logits, or the last chosen and first rejected gate logit, are nearly
equal) prove nothing and are left out; they are counted, and must be rare.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smoe import Completion, LocalEngine, SamplingParams
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint

NEW_TOKENS = 64
LOGIT_TIE, GATE_TIE, TOLERANCE = 1e-4, 1e-5, 1e-4

SHAPES = {
    "mixtral": Shape(),
    "one head": Shape(num_heads=1, num_kv_heads=1, head_dim=16),
    "as many kv heads as heads": Shape(num_kv_heads=4),
    "one kv head": Shape(num_kv_heads=1, window=16),
    "wide heads": Shape(head_dim=24),
    "narrow heads": Shape(num_heads=6, num_kv_heads=3, head_dim=4, dim=40),
    "one expert": Shape(num_experts=1, experts_per_token=1),
    "four experts, top 1": Shape(num_experts=4, experts_per_token=1),
    "four experts, top 3": Shape(num_experts=4, experts_per_token=3, window=3),
    "dense mixture of 4": Shape(num_experts=4, experts_per_token=4),
    "dense mixture of 8": Shape(experts_per_token=8, window=16),
    "top 5 of 8": Shape(experts_per_token=5),
    "dense ffn": Shape(num_experts=0),
    "dense ffn, window 3": Shape(num_experts=0, window=3, num_kv_heads=1),
    "tied head": Shape(tied=True),
    "window 3": Shape(window=3),
    "window 16": Shape(window=16, num_layers=3),
    "odd vocabulary": Shape(vocab_size=77, theta=1e6),
}

SCHEDULES: dict[str, dict[str, Any]] = {
    "whole prompts": {"max_num_batched_tokens": 2048},
    "chunks of 1": {"max_num_batched_tokens": 1},
    "chunks of 7": {"max_num_batched_tokens": 7},
    "chunks of 64": {"max_num_batched_tokens": 64},
    "blocks of 3": {"max_num_batched_tokens": 100, "block_size": 3},
    "preemption": {"max_num_batched_tokens": 64, "num_kv_blocks": 30, "max_model_len": 400},
}


@dataclass
class Tally:
    """Positions compared, and those left out because the oracle was undecided."""

    compared: int = 0
    undecided: int = 0

    def assert_rare(self) -> None:
        assert self.compared > 0
        assert self.undecided < 0.01 * (self.compared + self.undecided), self


def prompts(shape: Shape, lengths: list[int]) -> list[list[int]]:
    rng = random.Random(shape.seed + 1)
    return [[rng.randrange(3, shape.vocab_size) for _ in range(length)] for length in lengths]


def generate(engine: LocalEngine, given: list[list[int]]) -> list[Completion]:
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, num_logprobs=2, ignore_eos=True)
    completions = engine.generate(given, params)
    engine.check_integrity()
    assert engine.stats.num_blocks_held == 0
    return completions


@torch.no_grad()
def compare(oracle: torch.nn.Module, completion: Completion, tally: Tally) -> None:
    ids = torch.tensor([completion.prompt_token_ids + completion.token_ids])
    routed = getattr(oracle.config, "num_local_experts", 0) > 0
    out = oracle(ids, use_cache=False, **({"output_router_logits": True} if routed else {}))
    first = len(completion.prompt_token_ids) - 1
    logits = out.logits[0, first:-1]
    logprobs = logits.log_softmax(-1)
    best = logits.topk(2).values
    undecided = best[:, 0] - best[:, 1] < LOGIT_TIE
    k = getattr(oracle.config, "num_experts_per_tok", 0)
    if routed and k < oracle.config.num_local_experts:
        for gate in out.router_logits:
            ordered = gate.view(-1, gate.shape[-1])[first : first + len(logits)].sort(descending=True).values
            undecided |= ordered[:, k - 1] - ordered[:, k] < GATE_TIE
    for position, (token, scored) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
        if undecided[position]:
            tally.undecided += 1
            continue
        tally.compared += 1
        assert token == int(logits[position].argmax()), position
        assert abs(scored.logprob - float(logprobs[position, token])) < TOLERANCE, position


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"backend": request.param, "threads": 1}


@pytest.fixture(scope="module", params=SHAPES, ids=lambda name: name.replace(" ", "_"))
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Shape, Path, torch.nn.Module]:
    torch.set_num_threads(1)
    shape = replace(SHAPES[request.param], seed=list(SHAPES).index(request.param))
    path = tmp_path_factory.mktemp("checkpoint")
    return shape, path, save_random_checkpoint(shape, path)


def test_the_engine_equals_transformers_under_every_schedule(
    case: tuple[Shape, Path, torch.nn.Module], backend: dict[str, Any], scale: int
) -> None:
    shape, path, oracle = case
    lengths = [1, 5, 64, 300] if scale == 1 else [1, 2, 3, 5, 16, 17, 63, 64, 65, 150, 299, 300]
    given = prompts(shape, lengths)
    first = (shape.seed + (backend["backend"] == "native")) % 3
    chosen = list(SCHEDULES)[first::3] if scale == 1 else list(SCHEDULES)
    tally = Tally()
    for name in chosen:
        options = {"num_kv_blocks": 800, **backend, **SCHEDULES[name]}
        engine = LocalEngine(path, dtype="float32", check_integrity=True, **options)
        completions = generate(engine, given)
        if name == "preemption" and shape.window is None:
            assert engine.num_preemptions > 0, "the pool was meant to be too small"
        for completion in completions:
            compare(oracle, completion, tally)
    tally.assert_rare()


def test_a_prefix_hit_changes_nothing(case: tuple[Shape, Path, torch.nn.Module]) -> None:
    shape, path, oracle = case
    engine = LocalEngine(path, dtype="float32", threads=1, max_num_batched_tokens=64)
    [stem] = prompts(shape, [100])
    generate(engine, [stem])
    tally = Tally()
    for completion in generate(engine, [stem, [*stem[:70], 5, 6, 7]]):
        assert completion.num_cached_tokens >= 64
        compare(oracle, completion, tally)
    tally.assert_rare()


def test_prompt_logprobs_equal_transformers(case: tuple[Shape, Path, torch.nn.Module]) -> None:
    shape, path, oracle = case
    engine = LocalEngine(path, dtype="float32", threads=1, max_num_batched_tokens=32)
    given = prompts(shape, [1, 2, 40, 65])
    params = SamplingParams(max_tokens=0, prompt_logprobs=True, num_logprobs=1)
    for completion in engine.generate(given + given, params):
        ids = torch.tensor([completion.prompt_token_ids])
        with torch.no_grad():
            logprobs = oracle(ids, use_cache=False).logits[0].log_softmax(-1)
        assert [scored.token_id for scored in completion.prompt_logprobs] == completion.prompt_token_ids[1:]
        for position, scored in enumerate(completion.prompt_logprobs):
            assert scored.logprob == pytest.approx(float(logprobs[position, scored.token_id]), abs=TOLERANCE)
        assert (completion.token_ids, completion.finish_reason) == ([], "length")
