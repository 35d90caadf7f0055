"""Launching a step never waits for the device.

The step runs on torch's meta device, whose tensors have no numbers: whatever reads one on the host raises.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from engine.execution.expert_stats import ExpertReporter, ExpertStats
from engine.execution.model_runner import ModelRunner
from engine.execution.persistent_batch import PersistentBatch
from engine.execution.sampler import Sampler
from engine.scheduling.expert_usage import ExpertUsage
from engine.scheduling.sequence import Sequence, Status
from engine.scheduling.step_plan import Chunk, StepPlan
from engine.token_constraints import token_constraints
from engine.types import Request, SamplingParams
from model.kv_pool import KvPool
from model.mixtral import LayerWeights, Mixtral, MixtralWeights
from model.ops.interface import FfnWeights
from model.ops.triton.ops import TritonOps
from tests.support.attention_cases import Heads

META = torch.device("meta")
CONFIG = replace(Heads(4, 2, 16).config, dim=64, hidden_dim=96, num_layers=2, num_experts=4, experts_per_token=2)
PARAMS = {
    "plain": SamplingParams(temperature=0.0),
    "sampled": SamplingParams(temperature=1.0, top_p=0.9, top_k=5, num_logprobs=3),
    "biased": SamplingParams(constraints=token_constraints(logit_bias={3: 1.0, 5: -2.0})),
    "bad words": SamplingParams(constraints=token_constraints(bad_words=((4,), (1, 2)))),
    "min tokens": SamplingParams(min_tokens=3, stop_token_ids=(7,)),
    "allowed": SamplingParams(constraints=token_constraints(allowed_token_ids=(1, 2, 3))),
    "penalties": SamplingParams(repetition_penalty=1.2, presence_penalty=0.5),
    "prompt logprobs": SamplingParams(prompt_logprobs=True, num_logprobs=2),
}


def _runner() -> ModelRunner:
    ops = TritonOps(torch.bfloat16, "fp8", launch=lambda *arguments, **options: None)
    dim, hidden = CONFIG.dim, CONFIG.hidden_dim
    ffn = FfnWeights(_weight(hidden, dim), _weight(hidden, dim), _weight(dim, hidden))
    layer = LayerWeights(
        _weight(dim),
        ops.pack_linear(_weight(128, dim)),
        ops.pack_linear(_weight(dim, 64)),
        _weight(dim),
        ops.pack_moe(_weight(4, dim), (ffn for _ in range(4))),
    )
    head = ops.pack_linear(_weight(CONFIG.vocab_size, dim))
    weights = MixtralWeights(_weight(CONFIG.vocab_size, dim), [layer] * 2, _weight(dim), head)
    requests = PersistentBatch(16, 100, 4, CONFIG.vocab_size, META)
    model = Mixtral(CONFIG, weights, ops)
    pool = KvPool(CONFIG, 100, 4, "bfloat16", META)
    return ModelRunner(model, pool, requests, Sampler(ops, requests, (2,)), ExpertReporter(ExpertStats(CONFIG, META)))


def _weight(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16, device=META)


def _chunk(request_id: int, params: SamplingParams, length: int, **options: Any) -> Chunk:
    request = Request(request_id, [1 + index % 20 for index in range(9)], params, **options)
    sequence = Sequence(request, (0, request_id), 16)
    sequence.experts = ExpertUsage(request, 4) if options else None
    sequence.status = Status.RUNNING
    sequence.block_table = [3 * request_id + index + 1 for index in range(3)]
    return Chunk(sequence, 9 - length, length, samples=True, is_prefill=True)


@pytest.fixture(autouse=True)
def _no_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("length", [1, 5], ids=["decode", "prompt"])
def test_a_step_is_launched_without_reading_from_the_device(params: SamplingParams, length: int) -> None:
    runner = _runner()
    options = {"experts_per_token": 3, "expert_routing": True, "expert_mask": [[True, True, False, True]] * 2}
    options |= {"gate_logits": True, "prompt_routing": True}
    chunks = _chunk(0, params, length), _chunk(1, SamplingParams(), length), _chunk(2, params, length, **options)
    for _ in range(2):  # the second step reuses the first one's arrays
        runner.launch(StepPlan(chunks))


def test_embeddings_are_launched_without_reading_from_the_device() -> None:
    chunk = _chunk(0, SamplingParams(max_tokens=0), 5, embedding_len=64)
    step = _runner().launch(StepPlan((chunk._replace(samples=False), _chunk(1, SamplingParams(), 1))))
    assert step.embeddings is not None


def test_blocks_are_cleared_without_reading_from_the_device() -> None:
    _runner().zero_blocks((1, 2))


def test_the_meta_device_notices_reads() -> None:
    counts = torch.from_numpy(np.array([1, 2])).to(META)
    with pytest.raises((RuntimeError, NotImplementedError)):
        counts.tolist()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.arange(2, device=META).repeat_interleave(counts)
