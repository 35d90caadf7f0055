"""Steps of the engine that are only launched, on a device whose tensors have no numbers. Reading one raises."""

from dataclasses import replace
from typing import Any

import torch

from engine.execution.experts.stats import ExpertReporter, ExpertStats
from engine.execution.model_runner import ModelRunner
from engine.execution.persistent_batch import PersistentBatch
from engine.execution.sampler import Sampler
from engine.scheduling.expert_usage import ExpertUsage
from engine.scheduling.sequence import Sequence, Status
from engine.scheduling.step_plan import Chunk
from engine.token_constraints import token_constraints
from engine.types import Request, SamplingParams
from model.kv_format import KvDtype
from model.kv_pool import KvPool
from model.mixtral import LayerWeights, Mixtral, MixtralWeights
from model.ops.interface import FfnWeights
from model.ops.triton.ops import TritonOps
from tests.support.kernels.attention_cases import Heads

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


def launched_network(device: torch.device) -> Mixtral:
    """Return a network with fp8 weights whose kernels are not launched."""
    ops = TritonOps(torch.bfloat16, "fp8", launch=lambda *arguments, **options: None)
    dim, hidden = CONFIG.dim, CONFIG.hidden_dim

    def weight(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16, device=device)

    ffn = FfnWeights(weight(hidden, dim), weight(hidden, dim), weight(dim, hidden))
    layer = LayerWeights(
        weight(dim),
        ops.pack_linear(weight(128, dim)),
        ops.pack_linear(weight(dim, 64)),
        weight(dim),
        ops.pack_moe(weight(4, dim), (ffn for _ in range(4))),
    )
    head = ops.pack_linear(weight(CONFIG.vocab_size, dim))
    return Mixtral(CONFIG, MixtralWeights(weight(CONFIG.vocab_size, dim), [layer] * 2, weight(dim), head), ops)


def launched_pool(device: torch.device, kv_dtype: KvDtype = "bfloat16") -> KvPool:
    return KvPool(CONFIG, 100, 4, kv_dtype, device)


def launched_runner(model: Mixtral, pool: KvPool) -> ModelRunner:
    """Return the runner of a network, as the engine builds it."""
    device = model.weights.embedding.device
    requests = PersistentBatch(16, 100, 4, CONFIG.vocab_size, device)
    experts = ExpertReporter(ExpertStats(CONFIG, device))
    return ModelRunner(model, pool, requests, Sampler(model.ops, requests, (2,)), experts)


def chunk(request_id: int, params: SamplingParams, length: int, **options: Any) -> Chunk:
    """Return the last `length` of a prompt's 9 positions."""
    request = Request(request_id, [1 + index % 20 for index in range(9)], params, **options)
    sequence = Sequence(request, (0, request_id), 16)
    sequence.experts = ExpertUsage(request, 4) if options else None
    sequence.status = Status.RUNNING
    sequence.block_table = [3 * request_id + index + 1 for index in range(3)]
    return Chunk(sequence, 9 - length, length, samples=True, is_prefill=True)


def chunks(params: SamplingParams, length: int) -> tuple[Chunk, ...]:
    """Return three requests of a step: with `params`, without, and with `params` and its own experts."""
    options = {"experts_per_token": 3, "expert_routing": True, "expert_mask": [[True, True, False, True]] * 2}
    options |= {"gate_logits": True, "prompt_routing": True}
    return chunk(0, params, length), chunk(1, SamplingParams(), length), chunk(2, params, length, **options)
