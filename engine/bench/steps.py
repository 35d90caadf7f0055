"""Benchmark of whole engine steps: decode at several batch sizes, prefill at several lengths, against the roofline."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median

from engine.engine import Engine
from engine.errors import EngineConfigError
from engine.types import Request, SamplingParams
from model.bench.kernels import distinct_experts
from model.bench.roofline import RooflineProbe
from model.config import ModelConfig
from model.mixtral_native import NativeMixtral
from model.ops.interface import packed_bytes

WARM_UP_STEPS = 2
DECODE_STEPS = 12
COUNTED_STEPS = 4  # whose experts are counted, outside the measurement
PREFILL_RUNS = 3


@dataclass(frozen=True)
class StepTime:
    """Measured time of one kind of step. `share` is the roofline's time divided by `seconds`."""

    kind: str  # decode or prefill
    batch: int
    context: int  # positions before the step's row; for a prefill the prompt's length
    seconds: float
    tokens_per_s: float
    gigabytes_per_s: float
    gigaops_per_s: float
    share: float


@dataclass(frozen=True)
class Costs:
    """Bytes read and operations computed by a step, from the packed weights and the network's shape."""

    config: ModelConfig
    dense_bytes: int  # attention, norms and head: read in every step
    expert_bytes: int  # all experts, or the dense FFN
    kv_bytes_per_token: float
    skips_unread: bool  # the last layer's experts are computed only for rows with logits

    @classmethod
    def of(cls, engine: Engine) -> "Costs":
        weights, config = engine.loaded.runner.model.weights, engine.loaded.config
        expert_bytes = sum(packed_bytes(layer.ffn) for layer in weights.layers)
        attention_bytes = sum(packed_bytes((layer.qkv, layer.output)) for layer in weights.layers)
        per_token = engine.loaded.kv_block_bytes / engine.config.block_size
        skips_unread = isinstance(engine.loaded.runner.model, NativeMixtral)
        return cls(config, attention_bytes + packed_bytes(weights.head), expert_bytes, per_token, skips_unread)

    def num_bytes(self, num_rows: int, num_visible: int, num_chosen: float | None = None) -> float:
        """Return the bytes read by a step of `num_rows` rows that attend to `num_visible` positions in all.

        `num_chosen`: distinct experts that the rows chose, on average over the layers; None: those of random choices.
        """
        config, share = self.config, 1.0
        if config.num_experts:
            expected = distinct_experts(config.num_experts, config.experts_per_token, num_rows)
            share = (expected if num_chosen is None else num_chosen) / config.num_experts
        return self.dense_bytes + self.expert_bytes * share + self.kv_bytes_per_token * num_visible

    def num_operations(self, num_rows: int, num_seen: int, num_logits: int) -> float:
        """Return the operations of a step of `num_rows` rows; `num_seen` is the sum of the rows' context lengths."""
        config = self.config
        heads = 2 * config.num_heads + 2 * config.num_kv_heads
        per_layer = config.dim * (heads * config.head_dim + config.num_experts)
        ffn = config.dim * 3 * config.hidden_dim * max(config.experts_per_token, 1)
        ffn_rows = (config.num_layers - 1) * num_rows + (num_logits if self.skips_unread else num_rows)
        attention = 4.0 * num_seen * config.num_heads * config.head_dim
        head = 2.0 * num_logits * config.vocab_size * config.dim
        return config.num_layers * (2.0 * num_rows * per_layer + attention) + 2.0 * ffn_rows * ffn + head


class StepBench:
    """Measures steps of one engine, whose prefix cache and speculation must be off."""

    def __init__(self, engine: Engine, limits: RooflineProbe, arithmetic: str) -> None:
        assert engine.config.speculation == "off", "drafts change how many rows and tokens a step has"
        self._engine = engine
        self._limits = limits
        self._arithmetic = arithmetic
        self._costs = Costs.of(engine)
        self._rng = random.Random(0)
        self._last_id = 0

    def fitting(self, batches: Sequence[int], on_left_out: Callable[[str], object]) -> list[int]:
        """Return the batches beside which a step has room for prompts, and say which have none. Raises
        EngineConfigError if that is all of them."""
        budget = self._engine.loaded.limits.max_num_batched_tokens
        fitting = [batch for batch in batches if batch < budget]
        reasons = [
            f"a batch of {batch} leaves no room for prompts in steps of {budget} tokens, what this machine computes in "
            "half a second"
            for batch in batches
            if batch >= budget
        ]
        if not fitting:
            raise EngineConfigError(f"{reasons[0]}; --batches takes smaller ones")
        for reason in reasons:
            on_left_out(reason)
        return fitting

    def decode(self, batches: Sequence[int], context: int) -> Iterator[StepTime]:
        """Measure decode steps of `batch` sequences with about `context` positions each."""
        window = self._costs.config.window
        for batch in batches:
            seconds, num_chosen = self._decode(batch, context)
            seen = batch * min(context, window or context)
            yield self._step_time("decode", batch, context, seconds, batch, seen, seen, num_chosen)

    def prefill(self, lengths: Sequence[int]) -> Iterator[StepTime]:
        """Measure prompts of these lengths, each alone, in as many steps as the engine's token budget needs."""
        window = self._costs.config.window
        for length in lengths:
            seconds = self._prefill_s(length)
            seen = sum(min(position + 1, window or length) for position in range(length))
            yield self._step_time("prefill", 1, length, seconds, length, length, seen)

    def _step_time(
        self,
        kind: str,
        batch: int,
        context: int,
        seconds: float,
        num_rows: int,
        num_visible: int,
        num_seen: int,
        num_chosen: float | None = None,
    ) -> StepTime:
        num_bytes = self._costs.num_bytes(num_rows, num_visible, num_chosen)
        operations = self._costs.num_operations(num_rows, num_seen, batch)
        return StepTime(
            kind=kind,
            batch=batch,
            context=context,
            seconds=seconds,
            tokens_per_s=num_rows / seconds,
            gigabytes_per_s=num_bytes / seconds / 1e9,
            gigaops_per_s=operations / seconds / 1e9,
            share=self._limits.now().limit_s(num_bytes, operations, self._arithmetic) / seconds,
        )

    def _decode(self, batch: int, context: int) -> tuple[float, float | None]:
        """Return the median duration of a step after all prompts are computed, and the experts that its rows chose."""
        num_prompt = max(1, context - DECODE_STEPS // 2)
        budget = self._engine.loaded.limits.max_num_batched_tokens
        assert batch < budget, "the batch leaves no room for prompts"
        # Prompts get the budget that decoding sequences leave. The first sequences decode during the last prompts.
        # One more step, without a prompt, shows that all are computed.
        first_steps = batch * (1 + num_prompt // max(1, budget - batch)) + 1
        num_tokens = first_steps + WARM_UP_STEPS + DECODE_STEPS + COUNTED_STEPS
        self._check_capacity(batch, num_prompt + num_tokens)
        ids = [self._add(num_prompt, num_tokens) for _ in range(batch)]
        while (stats := self._engine.step().stats).num_prefill_tokens or stats.num_running < batch:
            assert self._engine.has_work(), "a sequence ended before the last one began"
        seconds = [self._step_s() for _ in range(WARM_UP_STEPS + DECODE_STEPS)]
        num_chosen = self._num_chosen()
        for request_id in ids:
            self._engine.abort(request_id)
        return median(seconds[WARM_UP_STEPS:]), num_chosen

    def _num_chosen(self) -> float | None:
        """Return the distinct experts of a few more steps, on average over steps and layers; None without experts."""
        experts = self._engine.experts
        experts.pop_new_counts()
        chosen = []
        for _ in range(COUNTED_STEPS):
            stats = self._engine.step().stats  # has the counts of a step that took long
            for layer in stats.expert_tokens or experts.pop_new_counts() or ():
                chosen.append(sum(count > 0 for count in layer))
        return mean(chosen) if chosen else None

    def _check_capacity(self, batch: int, length: int) -> None:
        """Raise EngineConfigError if a sequence would be preempted or wait during the measurement."""
        limits, block_size = self._engine.loaded.limits, self._engine.config.block_size
        num_blocks = batch * (1 + length // block_size)
        if num_blocks > limits.num_blocks or length > limits.max_model_len or batch > self._engine.config.max_num_seqs:
            raise EngineConfigError(f"a batch of {batch} with {length} positions each does not fit the KV cache here")

    def _prefill_s(self, length: int) -> float:
        times = []
        for _ in range(PREFILL_RUNS):
            self._add(length, 1)
            start = time.perf_counter()
            while self._engine.has_work():
                self._engine.step()
            times.append(time.perf_counter() - start)
        return median(times)

    def _step_s(self) -> float:
        start = time.perf_counter()
        self._engine.step()
        return time.perf_counter() - start

    def _add(self, num_prompt: int, num_tokens: int) -> int:
        self._last_id += 1
        vocab_size = self._costs.config.vocab_size
        prompt = [self._rng.randrange(3, vocab_size) for _ in range(num_prompt)]
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        self._engine.add(Request(self._last_id, prompt, params))
        return self._last_id
