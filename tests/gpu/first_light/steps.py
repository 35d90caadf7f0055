"""Stages eager, steps and final: whole steps of Mixtral-8x7B in fp8 with random weights, as shares of the bandwidth.

A step is the network and the sampler. The experts that the rows chose are counted, not assumed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from model.bench.roofline import Roofline, measure
from model.dummy_weights import random_model
from model.forward_batch import ForwardBatch
from model.kv_pool import KvPool
from model.mixtral import Mixtral, uniform_routing
from model.mixtral_cuda_graphs import CudaRecorder, EagerRecorder, GraphedMixtral
from model.ops.interface import packed_bytes
from model.profile_step import sampling_rows
from model.sampling_batch import FloatParam
from tests.gpu.first_light.result import Options, Row
from tests.gpu.first_light.shapes import Setting, setting_of

BLOCK_SIZE = 16
NUM_TIMED = 20
NUM_LAYERS = 32


@dataclass(frozen=True)
class Sizes:
    """Steps to time."""

    decodes: tuple[tuple[int, int], ...]  # rows, and positions of each
    prompts: tuple[int, ...]
    deterministic: tuple[tuple[int, int], ...] = ()  # as `decodes`
    sampled: tuple[int, ...] = ()  # rows of the sampler alone

    @property
    def most_rows(self) -> int:
        return max(rows for rows, _ in self.decodes)

    @property
    def longest(self) -> int:
        return max(context for _, context in self.decodes)

    def most_blocks(self) -> int:
        tokens = max(*(rows * context for rows, context in self.decodes), *self.prompts)
        return tokens // BLOCK_SIZE + self.most_rows + 2


ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LONG = ((1, 16384), (8, 16384), (1, 32768))
FEW = Sizes(decodes=((1, 256), (8, 256), (64, 256)), prompts=(512,))
ALL = Sizes(  # 131,072 positions at most: 17 GB beside 47 GB of weights
    decodes=(*((rows, 256) for rows in ROWS), *((rows, 1024) for rows in ROWS[:-1]), *LONG),
    prompts=(512, 2048, 8192),
    deterministic=FEW.decodes,
    sampled=(1, 64, 256),
)
TINY = Sizes(decodes=((1, 20), (3, 20)), prompts=(20,), deterministic=((2, 20),), sampled=(3,))


def time_eager_steps(options: Options) -> list[Row]:
    """Time a few steps without CUDA graphs."""
    return list(_time(options, FEW, is_graphed=False))


def time_graphed_steps(options: Options) -> list[Row]:
    """Time a few steps with CUDA graphs."""
    return list(_time(options, FEW, is_graphed=True))


def time_all_steps(options: Options) -> list[Row]:
    """Time the steps whose figures are reported."""
    return list(_time(options, ALL, is_graphed=True))


def _time(options: Options, sizes: Sizes, is_graphed: bool) -> Iterator[Row]:
    setting = setting_of(options, num_layers=2 if options.tiny else NUM_LAYERS)
    sizes = TINY if options.tiny else sizes
    model = random_model(setting.config, setting.dtype, setting.device, setting.ops("fp8"), seed=0)
    kv_dtype = "bfloat16" if setting.device.type == "cuda" else "float32"
    pool = KvPool(model.config, sizes.most_blocks(), BLOCK_SIZE, kv_dtype, setting.device)
    limits = measure(model.ops, setting.device)
    step = model
    if is_graphed:
        start = time.monotonic()
        step = _graphed(model, pool, setting, sizes.most_rows, sizes.longest)
        yield {"case": "capture of all buckets", "seconds": time.monotonic() - start}
    for count, context in sizes.decodes:
        yield _decode_row(step, pool, setting, limits, count, context)
    for length in sizes.prompts:
        yield _prompt_row(model, pool, setting, length)
    for count in sizes.sampled:
        yield from _sampler_rows(model, setting, count)
    if sizes.deterministic:
        del step  # its graphs
        yield from _deterministic_rows(model, pool, setting, limits, sizes.deterministic)


def _graphed(model: Mixtral, pool: KvPool, setting: Setting, most_rows: int, longest: int) -> GraphedMixtral:
    recorder = CudaRecorder() if setting.device.type == "cuda" else EagerRecorder()
    graphed = GraphedMixtral(model, pool, recorder, most_rows, -(-longest // BLOCK_SIZE))
    graphed.capture_all()
    return graphed


def _deterministic_rows(
    model: Mixtral, pool: KvPool, setting: Setting, limits: Roofline, decodes: tuple[tuple[int, int], ...]
) -> Iterator[Row]:
    """Time decode steps with --deterministic, over the same weights."""
    same_bits = Mixtral(model.config, model.weights, setting.ops("fp8", deterministic=True))
    graphed = _graphed(
        same_bits, pool, setting, max(count for count, _ in decodes), max(context for _, context in decodes)
    )
    for count, context in decodes:
        row = _decode_row(graphed, pool, setting, limits, count, context)
        yield {**row, "case": f"deterministic {row['case']}"}


def _sampler_rows(model: Mixtral, setting: Setting, count: int) -> Iterator[Row]:
    """Time the sampler alone: the most likely token, top_p, and top_p with 20 log probabilities."""
    logits = torch.randn(count, setting.config.vocab_size, device=setting.device)
    for case, temperature, num_logprobs in (("greedy", 0.0, -1), ("top_p", 1.0, -1), ("top_p, logprobs", 1.0, 20)):
        rows = replace(sampling_rows(count, -1, setting.device), max_logprobs=num_logprobs, has_penalties=False)
        rows.float_params[:, FloatParam.TEMPERATURE] = temperature
        seconds = _seconds(lambda rows=rows: model.ops.sample(logits, rows), setting.device)  # type: ignore[misc]
        yield {"case": f"sampler {count}, {case}", "microseconds": 1e6 * seconds}


def _decode_row(model: Mixtral, pool: KvPool, setting: Setting, limits: Roofline, count: int, context: int) -> Row:
    width = -(-context // BLOCK_SIZE)
    tables = 1 + torch.arange(count * width, dtype=torch.int32, device=setting.device).view(count, width)
    batch = _batch(setting, [context - 1] * count, tables, list(range(count + 1)))
    assert batch.routing is not None
    seconds = _seconds(_step(model, pool, setting, batch), setting.device)
    chosen = sum(len(set(layer.flatten().tolist())) for layer in batch.routing.expert_ids.cpu()) / len(
        batch.routing.expert_ids
    )
    num_bytes = _bytes_read(model, pool, chosen, count * context)
    return {
        "case": f"decode {count} at {context}",
        "milliseconds": 1e3 * seconds,
        "tokens_per_s": count / seconds,
        "experts": chosen,
        "share": num_bytes / limits.bytes_per_s / seconds,
    }


def _prompt_row(model: Mixtral, pool: KvPool, setting: Setting, length: int) -> Row:
    tables = 1 + torch.arange(-(-length // BLOCK_SIZE), dtype=torch.int32, device=setting.device)[None]
    batch = _batch(setting, list(range(length)), tables, [0, length])
    seconds = _seconds(_step(model, pool, setting, batch), setting.device)
    config = model.config
    operations = 6.0 * length * config.num_layers * config.experts_per_token * config.dim * config.hidden_dim
    return {
        "case": f"prompt of {length}",
        "milliseconds": 1e3 * seconds,
        "tokens_per_s": length / seconds,
        "teraops_per_s_of_experts": operations / seconds / 1e12,
    }


def _batch(setting: Setting, positions: Sequence[int], tables: torch.Tensor, starts: Sequence[int]) -> ForwardBatch:
    """Build a step: decode rows, or one prompt. Tokens are spread over the vocabulary."""
    device, num_rows = setting.device, len(positions)
    places = torch.tensor(positions, device=device)
    lengths = [positions[end - 1] + 1 for end in starts[1:]]
    owners = torch.arange(len(tables), device=device).repeat_interleave(
        torch.tensor(starts[1:], device=device) - torch.tensor(starts[:-1], device=device)
    )
    return ForwardBatch(
        token_ids=torch.arange(num_rows, device=device) * 7919 % setting.config.vocab_size,
        positions=places,
        slot_mapping=tables[owners, places // BLOCK_SIZE].long() * BLOCK_SIZE + places % BLOCK_SIZE,
        query_start=torch.tensor(starts, dtype=torch.int32, device=device),
        context_len=torch.tensor(lengths, dtype=torch.int32, device=device),
        block_tables=tables,
        logit_rows=torch.tensor(starts[1:], device=device) - 1,
        routing=uniform_routing(setting.config, num_rows, device),
    )


def _step(model: Mixtral, pool: KvPool, setting: Setting, batch: ForwardBatch) -> Callable[[], object]:
    rows = sampling_rows(len(batch.logit_rows), -1, setting.device)
    rows = replace(rows, max_logprobs=-1, has_penalties=False)
    return lambda: model.ops.sample(model.forward(batch, pool), rows)


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    """Return the median time of a step, launched one after another as an engine does."""
    times = []
    for index in range(3 + NUM_TIMED if device.type == "cuda" else 1):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if index >= 3 or device.type == "cpu":
            times.append(time.perf_counter() - start)
    return median(times)


def _bytes_read(model: Mixtral, pool: KvPool, num_chosen: float, num_visible: int) -> float:
    weights, config = model.weights, model.config
    dense = packed_bytes(weights.head) + sum(packed_bytes((layer.qkv, layer.output)) for layer in weights.layers)
    experts = sum(packed_bytes(layer.ffn) for layer in weights.layers)
    per_position = 2.0 * pool.k[:, 0, 0].numel() * pool.k.element_size()
    return dense + experts * num_chosen / config.num_experts + per_position * num_visible
