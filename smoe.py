"""Python interface of smoe: the server's engine in this process, for tests and offline use.

from smoe import LocalEngine, SamplingParams

engine = LocalEngine("path/to/checkpoint", dtype="float32")
[completion] = engine.generate("It is a truth universally", SamplingParams(max_tokens=20, temperature=0))
print(completion.text, completion.token_ids)
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import RequestRejectedError
from engine.gate_logits import by_layer
from engine.startup.description import fingerprint
from engine.token_constraints import token_constraints
from engine.types import ExpertIds, ExpertReport, Request, RequestOutput, StepStats, TokenLogprobs
from engine.types import SamplingParams as TokenSamplingParams
from server.tokenizer.tokenizer import NoTokenizerError, Tokenizer, load_tokenizer

__all__ = ["Completion", "LocalEngine", "SamplingParams", "TokenLogprobs"]

Prompt = str | Sequence[int]


class SamplingParams(TokenSamplingParams, frozen=True):
    """Sampling and expert parameters of a completion."""

    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None  # None: all
    bad_words: tuple[tuple[int, ...], ...] = ()  # token ids of each word; the last is excluded after the others
    experts_per_token: int | None = None  # None: the engine's default
    expert_mask: list[list[bool]] | None = None  # [layers][experts], False disables an expert; None: all enabled
    expert_usage: bool = False  # count the experts of prompt and completion positions
    expert_routing: bool = False  # return the expert ids of each completion position
    gate_logits: bool = False  # also return the gate logits of each completion position
    prompt_routing: bool = False  # return those of prompt positions too
    adapter: str = ""  # name of one of the engine's LoRA adapters (`lora`); empty: the model alone

    def packed(self) -> "SamplingParams":
        """Return a copy whose `constraints` are made of `logit_bias`, `allowed_token_ids` and `bad_words`.

        Raises TypeError or OverflowError for a token id or bias that is no number of 32 bits.
        """
        constraints = token_constraints(
            logit_bias=self.logit_bias, allowed_token_ids=self.allowed_token_ids, bad_words=self.bad_words
        )
        return msgspec.structs.replace(self, constraints=constraints)


@dataclass
class Completion:
    """Result of one prompt."""

    prompt_token_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    text: str | None = None  # None without a tokenizer
    finish_reason: str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # one per token, if num_logprobs is set
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of prompt tokens 1.., if requested
    num_cached_tokens: int = 0
    error: str | None = None
    expert_prompt_tokens: list[list[int]] = field(default_factory=list)  # [layers][experts], with expert_usage
    expert_routing: list[list[ExpertIds]] = field(default_factory=list)  # [position][layers][k], without the last one
    gate_logits: list[list[list[float]]] = field(default_factory=list)  # [position][layers][experts], likewise

    @property
    def expert_completion_tokens(self) -> list[list[int]]:
        """Tokens per layer and expert, [layers][experts], over the completion's positions but the last."""
        counts = [[0] * len(layer) for layer in self.expert_prompt_tokens]
        for position in self.expert_routing:
            for layer, ids in zip(counts, position, strict=bool(counts)):
                for expert in ids:
                    layer[expert] += 1
        return counts


class LocalEngine:
    """Engine over one checkpoint, with continuous batching. Not thread-safe.

    Keyword arguments are the fields of engine.config.EngineConfig (dtype, max_model_len, num_kv_blocks, ...). Raises
    model.checkpoint.errors.CheckpointError, engine.errors.EngineConfigError, or
    server.tokenizer.tokenizer.TokenizerError for a damaged tokenizer, which says what ends an answer too. Without a
    tokenizer prompts are token ids.
    """

    def __init__(self, model: str | Path, **settings: Any) -> None:
        self._tokenizer = _tokenizer_or_none(Path(model))
        end_ids = self._tokenizer.eos_ids if self._tokenizer else ()
        self._engine = Engine.load(EngineConfig(model=str(model), **settings), end_ids=end_ids)
        self._next_id = 0
        self._aborted: set[int] = set()  # one that the engine has rejected still gets an output from it
        self._kept: list[RequestOutput] = []  # of requests of add() that generate() has computed beside its own
        self.num_preemptions = 0

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. Raises TokenizerError if there is none."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(Path(self._engine.config.model))
        return self._tokenizer

    @property
    def stats(self) -> StepStats:
        """Current number of requests and blocks."""
        return self._engine.stats()

    @property
    def fingerprint(self) -> str:
        """Name of the numerics, as in the server's replies."""
        return fingerprint(self._engine.loaded)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Return one completion per prompt, in order. Prompts are texts or lists of token ids; `params` holds for all
        prompts, or has one element for each.

        Raises what add() raises, and then computes none of them.
        """
        listed = _as_list(prompts)
        each = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(listed)
        by_id: dict[int, Completion] = {}
        with self._queueing() as queued:
            for prompt, one in zip(listed, each, strict=True):
                ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
                queued.append(self.add(ids, one))
                by_id[queued[-1]] = Completion(ids)
            for output in self._outputs_of(queued):
                _extend(by_id[output.request_id], output)
        completions = list(by_id.values())
        if any(isinstance(prompt, str) for prompt in listed):
            for completion in completions:
                completion.text = self._generated_text(completion)
        return completions

    def embed(self, prompts: Prompt | Sequence[Prompt], dimensions: int | None = None) -> list[list[float]]:
        """Return the embedding of each prompt, in order: the last token's hidden state, scaled to length 1.

        `dimensions`: keep so many of its first numbers; None: all. Raises RequestRejectedError for a prompt that does
        not fit, or more dimensions than the model has.
        """
        listed = _as_list(prompts)
        length = self._engine.loaded.config.dim if dimensions is None else dimensions
        with self._queueing() as ids:
            for prompt in listed:
                self._next_id += 1
                tokens = self.tokenizer.encode_to_embed(prompt) if isinstance(prompt, str) else list(prompt)
                params = TokenSamplingParams(max_tokens=0)
                self._engine.add(Request(self._next_id, tokens, params, embedding_len=length))
                ids.append(self._next_id)
            outputs = {output.request_id: output for output in self._outputs_of(ids)}
        return [_embedding_of(outputs[request_id]) for request_id in ids]

    @contextmanager
    def _queueing(self) -> Iterator[list[int]]:
        """Give a list for the ids of requests that the block queues and computes. If it raises, these requests end."""
        ids: list[int] = []
        try:
            yield ids
        except BaseException:
            for request_id in ids:
                self.abort(request_id)
            raise

    def _outputs_of(self, ids: Sequence[int]) -> Iterator[RequestOutput]:
        """Compute all requests; yield the outputs of these, and keep those of others for step()."""
        own = frozenset(ids)
        while self._engine.has_work():
            for output in self._compute():
                if output.request_id in own:
                    yield output
                else:
                    self._kept.append(output)

    def _compute(self) -> list[RequestOutput]:
        step = self._engine.step()
        self.num_preemptions += step.stats.num_preemptions
        outputs = [output for output in step.outputs if output.request_id not in self._aborted]
        if not self._engine.has_work():
            self._aborted.clear()
        return outputs

    def add(self, prompt_token_ids: Sequence[int], params: SamplingParams | None = None, priority: int = 0) -> int:
        """Queue one request and return its id; step() computes it. Raises what SamplingParams.packed() raises, and
        RequestRejectedError for an unknown adapter."""
        self._next_id += 1
        params = params or SamplingParams()
        request = Request(
            self._next_id,
            list(prompt_token_ids),
            params.packed(),
            priority,
            experts_per_token=params.experts_per_token,
            expert_mask=params.expert_mask,
            expert_usage=params.expert_usage,
            expert_routing=params.expert_routing or params.expert_usage or params.gate_logits,
            gate_logits=params.gate_logits,
            prompt_routing=params.prompt_routing,
            adapter=self._digest(params.adapter),
        )
        self._engine.add(request)
        return self._next_id

    def abort(self, request_id: int) -> None:
        """End a request without an output."""
        self._engine.abort(request_id)
        self._aborted.add(request_id)
        self._kept = [output for output in self._kept if output.request_id != request_id]

    def has_work(self) -> bool:
        return bool(self._kept) or self._engine.has_work()

    def step(self) -> list[RequestOutput]:
        """Compute one step of all queued requests. Return its outputs, behind those of steps of generate()."""
        kept, self._kept = self._kept, []
        return kept + self._compute()

    def experts(self, window_s: float | None = None) -> ExpertReport:
        """Report the experts of all positions computed here, since the start or in the last 1 to 60 seconds."""
        return self._engine.experts.report(window_s)

    def reset_experts(self) -> None:
        """Let experts() count from zero again."""
        self._engine.experts.reset()

    def check_integrity(self) -> None:
        """Raise AssertionError if a KV block is lost or counted wrongly."""
        self._engine.scheduler.check_integrity()

    def _digest(self, adapter: str) -> str:
        """Return the digest of the adapter with this name; empty without one."""
        digests = self._engine.loaded.runner.adapters.digests
        if adapter and adapter not in digests:
            raise RequestRejectedError(
                f"there is no LoRA adapter {adapter!r}; there are: {', '.join(digests) or 'none'}"
            )
        return digests[adapter] if adapter else ""

    def _generated_text(self, completion: Completion) -> str:
        prompt = self.tokenizer.decode(completion.prompt_token_ids)
        return self.tokenizer.decode(completion.prompt_token_ids + completion.token_ids)[len(prompt) :]


def _tokenizer_or_none(model: Path) -> Tokenizer | None:
    """Load the tokenizer; None if there is none: token ids need none. Raises TokenizerError for a damaged one."""
    try:
        return load_tokenizer(model)
    except NoTokenizerError:
        return None


def _embedding_of(output: RequestOutput) -> list[float]:
    if output.embedding is None:
        raise RequestRejectedError(output.error or "the engine returned no embedding")
    return list(struct.unpack(f"<{len(output.embedding) // 4}f", output.embedding))


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Turn one text, or one list of token ids, into a list of one prompt."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _extend(completion: Completion, output: RequestOutput) -> None:
    completion.token_ids += output.token_ids
    completion.logprobs += output.logprobs or []
    completion.prompt_logprobs += output.prompt_logprobs or []
    completion.finish_reason = output.finish_reason
    completion.num_cached_tokens = output.num_cached_tokens
    completion.error = output.error
    completion.expert_prompt_tokens += output.expert_prompt_tokens or []
    completion.expert_routing += output.expert_routing or []
    for packed, layers in zip(output.gate_logits or [], output.expert_routing or [], strict=False):
        completion.gate_logits.append(list(map(list, by_layer(packed, len(layers)))))


if __name__ == "__main__":  # python -m smoe: the command, as .venv/bin/smoe
    from server.cli.main import main

    main()
