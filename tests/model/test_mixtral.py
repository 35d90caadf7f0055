"""The network gives the logprobs and greedy tokens of transformers in float32, with rows cut into any chunks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.config_file import load_config
from model.kv_pool import KvPool
from model.loader import LoadOptions, load_model
from model.mixtral import Mixtral
from model.ops.interface import Ops
from model.ops.reference.ops import ReferenceOps
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout
from tests.support.kernels.native_cases import ISAS, native
from tests.support.kernels.paged import CPU, Running, make_batch, teacher_forced

PROMPT_LENGTHS, NUM_NEW = (1, 2, 5, 17, 64, 131, 300), 64
CHUNKS = (1, 7, 64)  # rows of a sequence in one step: each sequence has each number once

MOE, DENSE = Shape(num_experts=4), Shape(num_experts=0)
# Of the pairs of a head with 24 numbers some keep their frequency, some are scaled in part, some wholly.
LLAMA_3_ANGLES = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LINEAR_ANGLES = {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
YARN_ANGLES = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 128}
# Served is the context in which they are not scaled.
DYNAMIC_ANGLES = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
SHAPES = {
    "moe": MOE,
    "one KV head": replace(MOE, num_kv_heads=1),
    "as many KV heads as heads": replace(MOE, num_kv_heads=4),
    "six heads, three KV heads": replace(MOE, dim=48, num_heads=6, num_kv_heads=3),
    "one head": replace(MOE, num_heads=1, num_kv_heads=1, head_dim=32),
    "head_dim larger than dim / heads": replace(MOE, head_dim=24),
    "head_dim null": replace(MOE, extra={"head_dim": None}),
    "one expert": replace(MOE, num_experts=1, experts_per_token=1),
    "eight experts, two": replace(MOE, num_experts=8),
    "eight experts, one": replace(MOE, num_experts=8, experts_per_token=1),
    "eight experts, three": replace(MOE, num_experts=8, experts_per_token=3),
    "dense mixture, all four": replace(MOE, experts_per_token=4),
    "dense mixture, all eight": replace(MOE, num_experts=8, experts_per_token=8),
    "tied head": replace(MOE, tied=True),
    "window 3": replace(MOE, window=3),
    "window 16": replace(MOE, window=16, num_kv_heads=1),
    "window 1": replace(MOE, window=1),
    "odd vocabulary": replace(MOE, vocab_size=1009, num_layers=1),
    "dense FFN": DENSE,
    "dense FFN, window 16": replace(DENSE, window=16, num_kv_heads=4),
    "dense FFN, tied head": replace(DENSE, tied=True, window=3, head_dim=16),
    "scaled as Llama 3.1": replace(MOE, head_dim=24, tied=True, extra={"rope_parameters": LLAMA_3_ANGLES}),
    "scaled by a factor": replace(MOE, num_experts=16, extra={"rope_parameters": LINEAR_ANGLES}),
    "dense FFN, scaled as Llama 3.1": replace(DENSE, extra={"rope_parameters": LLAMA_3_ANGLES}),
    "scaled by YaRN": replace(MOE, head_dim=24, extra={"rope_parameters": YARN_ANGLES}),
    "dense FFN, scaled by YaRN": replace(
        DENSE, head_dim=16, extra={"rope_parameters": {**YARN_ANGLES, "attention_factor": 0.7, "truncate": False}}
    ),
    "scaled by length": replace(MOE, extra={"rope_parameters": DYNAMIC_ANGLES}),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("number", range(len(SHAPES)), ids=list(SHAPES))
def test_logprobs_and_greedy_tokens_equal_those_of_transformers(number: int, tmp_path: Path, scale: int) -> None:
    """On the reference backend, and on the native one with one of its instruction sets (all of them at --scale 10)."""
    shape = replace(list(SHAPES.values())[number], seed=number)
    oracle = random_model(shape)
    fused = number % 2 == 0 and shape.num_experts > 0
    path = save_in_layout(oracle, tmp_path, fused=fused, modern=number % 3 == 0)
    sequences = _sequences(shape.vocab_size, seed=number)
    outputs = [_oracle_outputs(oracle, ids, shape.experts_per_token if shape.num_experts else 0) for ids in sequences]
    isas = ISAS if scale > 1 else [ISAS[number % len(ISAS)]]
    backends: list[Ops] = [ReferenceOps(), *map(native, isas)]
    for ops in backends:
        model = _load(path, ops)
        for turn in range(len(CHUNKS)):
            # Sequences of one batch advance at different speeds: decode rows beside chunks of prompts.
            chunks = [CHUNKS[(i + turn) % len(CHUNKS)] for i in range(len(sequences))]
            ours = teacher_forced(model, sequences, chunks, seed=turn)
            _assert_equal(ours, outputs)


@pytest.mark.parametrize("scaled", [LLAMA_3_ANGLES, LINEAR_ANGLES, YARN_ANGLES], ids=["Llama 3.1", "linear", "YaRN"])
def test_the_oracle_itself_scales_angles(scaled: dict[str, object]) -> None:
    """Guards the test above."""
    plain, other = (random_model(replace(MOE, head_dim=24, extra=extra)) for extra in ({}, {"rope_parameters": scaled}))
    ids = torch.arange(1, 65)[None]
    with torch.no_grad():
        a, b = (oracle(ids, use_cache=False).logits[0] for oracle in (plain, other))
    assert (a[1:] - b[1:]).abs().max() > 1e-2


def _load(path: Path, ops: Ops) -> Mixtral:
    config, _ = load_config(path)
    return load_model(path, config, ops, LoadOptions(torch.float32, CPU))


def _sequences(vocab_size: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1000 + seed)
    lengths = [length + NUM_NEW for length in PROMPT_LENGTHS]
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def _oracle_outputs(oracle: torch.nn.Module, ids: list[int], k: int) -> tuple[Tensor, Tensor]:
    """Return logits [length, V], and a mask of clear positions: no near-tie of the two best logits or of a gate so far.

    A gate that chooses another expert changes that position's keys, and so every later position.
    """
    settings = {"output_router_logits": True} if k else {}
    output = oracle(torch.tensor([ids]), use_cache=False, **settings)
    logits: Tensor = output.logits[0]
    best = logits.topk(2).values
    clear = best[:, 0] - best[:, 1] > 1e-4
    for gate in output.router_logits if k else ():
        ordered = gate.view(len(ids), -1).sort(descending=True).values
        if k < ordered.shape[1]:
            near = ordered[:, k - 1] - ordered[:, k] < 1e-5
            clear &= near.cumsum(0) == 0
    return logits, clear


def _assert_equal(ours: list[Tensor], outputs: list[tuple[Tensor, Tensor]]) -> None:
    num_left_out = sum(int((~clear).sum()) for _, clear in outputs)
    assert num_left_out < 0.01 * sum(len(clear) for _, clear in outputs)
    for mine, (theirs, clear) in zip(ours, outputs, strict=True):
        difference = (mine.log_softmax(-1) - theirs.log_softmax(-1)).abs()[clear]
        assert difference.max() < 1e-4  # also fails for NaN, from a slot that the row must not read
        assert torch.equal(mine.argmax(-1)[clear], theirs.argmax(-1)[clear])


def test_the_oracle_itself_obeys_the_window() -> None:
    """Guards the tests above, which would prove nothing if transformers ignored the window."""
    wide, narrow = (random_model(replace(MOE, window=window)) for window in (None, 3))
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        a, b = (oracle(ids, use_cache=False).logits[0] for oracle in (wide, narrow))
    assert torch.allclose(a[:3], b[:3], atol=1e-5)
    assert (a[3:] - b[3:]).abs().max() > 1e-2


def test_no_logit_rows_give_no_logits(tmp_path: Path) -> None:
    model = _load(save_in_layout(random_model(MOE), tmp_path), ReferenceOps())
    batch = make_batch([(Running([1, 2, 3], [1]), 3)], block_size=4)
    pool = KvPool(model.config, 2, 4, "float32", CPU)
    nothing = replace(batch, logit_rows=torch.empty(0, dtype=torch.int64))
    assert model.forward(nothing, pool).shape == (0, MOE.vocab_size)


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    path = save_in_layout(random_model(replace(MOE, experts_per_token=4)), tmp_path)
    config, _ = load_config(path)
    ids = _sequences(MOE.vocab_size, seed=0)[:3]
    wide, narrow = (
        teacher_forced(load_model(path, config, ReferenceOps(), LoadOptions(dtype, CPU)), ids, [7, 7, 7])
        for dtype in (torch.float32, torch.bfloat16)
    )
    difference = torch.cat([(a.log_softmax(-1) - b.log_softmax(-1)).abs() for a, b in zip(wide, narrow, strict=True)])
    assert 1e-5 < difference.mean() < 0.05
