"""On a GPU: transformers' logits, the reference's numbers, equal bits with --deterministic, graphs as plain steps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from model.checkpoint.config_file import load_config
from model.dummy_weights import random_model
from model.forward_batch import ForwardBatch
from model.kv_pool import KvPool
from model.loader import LoadOptions, load_model
from model.mixtral import Mixtral
from model.mixtral_cuda_graphs import CudaRecorder, GraphedMixtral
from model.ops.interface import Ops
from model.ops.reference.ops import ReferenceOps
from model.ops.triton.launch import launcher_for
from model.ops.triton.ops import TritonOps
from model.ops.triton.packed_weights import WeightFormat
from smoe import LocalEngine, SamplingParams
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.paged import Running, make_batch

GPU = torch.device("cuda")
CONFIG = replace(Heads(8, 2, 64, 300).config, dim=256, hidden_dim=512, num_layers=2, num_experts=8, experts_per_token=2)
BLOCK_SIZE = 16


def _on_gpu(batch: ForwardBatch) -> ForwardBatch:
    names = ("token_ids", "positions", "slot_mapping", "query_start", "context_len", "block_tables", "logit_rows")
    return replace(batch, **{name: getattr(batch, name).to(GPU) for name in names})


def _computed(model: Mixtral, sequences: list[list[int]], chunks: list[int]) -> list[Tensor]:
    """Logits of every position of every sequence; sequence i advances by chunks[i] tokens a step."""
    sizes = [-(-len(ids) // BLOCK_SIZE) for ids in sequences]
    dtype = "bfloat16" if model.weights.embedding.dtype == torch.bfloat16 else "float32"
    pool = KvPool(model.config, sum(sizes) + 1, BLOCK_SIZE, dtype, GPU)
    free = list(range(sum(sizes), 0, -1))
    runs = [Running(ids, [free.pop() for _ in range(size)]) for ids, size in zip(sequences, sizes, strict=True)]
    while left := [i for i, run in enumerate(runs) if run.num_computed < len(run.token_ids)]:
        parts = [(runs[i], min(chunks[i], len(runs[i].token_ids) - runs[i].num_computed)) for i in left]
        logits = model.forward(_on_gpu(make_batch(parts, BLOCK_SIZE)), pool)
        for (run, length), rows in zip(parts, logits.split_with_sizes([n for _, n in parts]), strict=True):
            run.logits.append(rows)
            run.num_computed += length
    return [torch.cat(run.logits) for run in runs]


def _sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(32, (n,), generator=generator).tolist() for n in (700, 3, 260, 31)]


@pytest.mark.parametrize("num_experts", [4, 0], ids=["moe", "dense"])
def test_logits_equal_transformers_on_the_gpu(tmp_path: Path, num_experts: int) -> None:
    save_random_checkpoint(Shape(num_experts=num_experts), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).to(GPU)
    config, _ = load_config(tmp_path)
    ops = TritonOps(torch.float32)
    ours = load_model(tmp_path, config, ops, LoadOptions(torch.float32, GPU))
    ids = torch.randint(config.vocab_size, (90,)).tolist()
    with torch.no_grad():
        expected = theirs(torch.tensor([ids], device=GPU)).logits[0]
    [logits] = _computed(ours, [ids], [17])
    assert torch.allclose(logits, expected.float(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("deterministic", [False, True], ids=["by load", "deterministic"])
def test_bfloat16_logits_are_near_the_references(deterministic: bool) -> None:
    reference = _computed(_model(ReferenceOps()), _sequences(), [700, 1, 64, 5])
    ours = _computed(_model(TritonOps(torch.bfloat16, deterministic=deterministic)), _sequences(), [700, 1, 64, 5])
    for mine, theirs in zip(ours, reference, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 0.03


@pytest.mark.parametrize("weight_format", ["plain", "int8", "fp8"])
def test_deterministic_logits_are_the_same_bits_alone_and_together_and_however_cut(weight_format: WeightFormat) -> None:
    ops = TritonOps(torch.bfloat16, weight_format, deterministic=True)
    model = _model(ops)
    together = _computed(model, _sequences(), [700, 1, 64, 5])
    for expected, ids, chunk in zip(together, _sequences(), [33, 3, 1, 31], strict=True):
        [alone] = _computed(model, [ids], [chunk])
        assert torch.equal(alone, expected)


def test_graphs_whose_kernels_start_early_give_the_steps_as_they_are() -> None:
    ops = TritonOps(torch.bfloat16, deterministic=True)
    model = _model(ops)
    early = Mixtral(CONFIG, model.weights, ops.launched_by(launcher_for(_arch())))
    pools = [KvPool(CONFIG, 40, BLOCK_SIZE, "bfloat16", GPU) for _ in range(2)]
    graphed = GraphedMixtral(early, pools[0], CudaRecorder(), 8, 4)
    graphed.capture_all()
    for num_rows in (5, 8, 3, 7):
        parts = [(Running([index + 1] * 20, [2 * index + 1, 2 * index + 2], 19), 1) for index in range(num_rows)]
        batch = _on_gpu(make_batch(parts, BLOCK_SIZE))
        assert torch.equal(graphed.forward(batch, pools[0]), model.forward(batch, pools[1]))
        assert torch.equal(pools[0].k[:, 1:], pools[1].k[:, 1:])


def test_the_engine_serves_the_same_tokens_and_logprobs_alone_and_in_a_batch(tmp_path: Path) -> None:
    save_random_checkpoint(Shape(), tmp_path)
    engine = LocalEngine(tmp_path, device="cuda", deterministic=True, num_kv_blocks=200)
    params = [SamplingParams(max_tokens=30, temperature=0.8, seed=seed, num_logprobs=2) for seed in range(12)]
    prompts = [[1 + seed] * (1 + 7 * seed) for seed in range(12)]
    together = engine.generate(prompts, params)
    for prompt, wish, expected in zip(prompts, params, together, strict=True):
        [alone] = engine.generate([prompt], [wish])
        assert alone.token_ids == expected.token_ids and alone.logprobs == expected.logprobs


def _model(ops: Ops) -> Mixtral:
    return random_model(CONFIG, torch.bfloat16, GPU, ops, seed=2)


def _arch() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor
