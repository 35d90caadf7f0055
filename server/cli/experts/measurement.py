"""Measurements of `smoe experts`: experts by text, and quality and speed by the number of experts per token.

Runs an engine process. `report` formats the figures.
"""

import asyncio
import math
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.config import EngineConfig
from engine.messages import Ready
from engine.types import Request, RequestOutput, SamplingParams
from server.engine_client.client import EngineClient
from server.engine_client.output_collector import EngineDied
from server.engine_client.status import EngineStatus
from server.errors import ApiError
from server.generation.usage import ExpertTally
from server.tokenizer.tokenizer import Tokenizer

WINDOW_TOKENS = 1024  # a text is split into windows of this length
DECODE_PROMPTS, DECODE_PROMPT_TOKENS, DECODE_TOKENS = 16, 32, 64
ROUNDS = 3  # of each timing; every round times all settings once


class ExpertTextError(Exception):
    """A text or a model that cannot be measured. One line."""


@dataclass(frozen=True)
class Text:
    """Token ids of one file, split into windows."""

    name: str
    windows: list[list[int]]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.windows))


@dataclass(frozen=True)
class SweepPoint:
    """Quality and speed with one number of experts per token."""

    experts_per_token: int
    perplexity: dict[str, float]  # per token, by the name of the text
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def read_texts(paths: Sequence[Path], tokenizer: Tokenizer, max_tokens: int) -> list[Text]:
    """Read at most `max_tokens` tokens of each file. Raises ExpertTextError."""
    texts = []
    for path in paths:
        try:
            ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False)[:max_tokens]
        except OSError as error:
            raise ExpertTextError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ExpertTextError(f"{path}: this is not UTF-8") from None
        except ApiError as error:
            raise ExpertTextError(f"{path}: {error.message}") from None
        if len(ids) < 2:
            raise ExpertTextError(f"{path}: the file has no text")
        windows = [ids[start : start + WINDOW_TOKENS] for start in range(0, len(ids), WINDOW_TOKENS)]
        texts.append(Text(path.stem, windows))
    if len({text.name for text in texts}) < len(texts):
        raise ExpertTextError("two files have the same name, which the result needs to tell texts apart")
    return texts


class TextEngine:
    """Engine process that computes the windows of texts, many in one batch."""

    def __init__(self, client: EngineClient, ready: Ready) -> None:
        self.ready = ready
        self._client = client

    async def count_tokens(self, text: Text) -> list[list[int]]:
        """Return the text's tokens by expert, [layers][experts]."""
        tally = ExpertTally(self.ready.num_layers, self.ready.num_experts)
        for output in await self._run([self._request(ids, expert_usage=True) for ids in text.windows]):
            tally.add_prompt(output.expert_prompt_tokens or [])
        return tally.tokens()["prompt"]

    async def perplexity(self, text: Text, experts_per_token: int) -> float:
        """Return exp(mean(-log p)) over all tokens; p is given the earlier tokens of the same window."""
        params = SamplingParams(max_tokens=0, prompt_logprobs=True)
        requests = [self._request(ids, params, experts_per_token) for ids in text.windows]
        scores = [token.logprob for output in await self._run(requests) for token in output.prompt_logprobs or []]
        return math.exp(-statistics.fmean(scores))

    async def prefill_tokens_per_s(self, texts: Sequence[Text], experts_per_token: int) -> float:
        """Compute all windows of all texts together and return tokens per second."""
        windows = [ids for text in texts for ids in text.windows]
        start = time.monotonic()
        await self._run([self._request(ids, experts_per_token=experts_per_token) for ids in windows])
        return sum(map(len, windows)) / (time.monotonic() - start)

    async def decode_tokens_per_s(self, text: Text, experts_per_token: int) -> float:
        """Generate tokens in a batch of short prompts and return tokens per second. The time includes the prompts."""
        params = SamplingParams(max_tokens=DECODE_TOKENS, ignore_eos=True)
        prompt = text.windows[0][:DECODE_PROMPT_TOKENS]
        requests = [self._request(prompt, params, experts_per_token) for _ in range(DECODE_PROMPTS)]
        start = time.monotonic()
        await self._run(requests)
        return DECODE_PROMPTS * DECODE_TOKENS / (time.monotonic() - start)

    def _request(
        self,
        token_ids: list[int],
        params: SamplingParams | None = None,
        experts_per_token: int | None = None,
        *,
        expert_usage: bool = False,
    ) -> Request:
        return Request(
            self._client.new_request_id(),
            token_ids,
            params or SamplingParams(max_tokens=0),
            experts_per_token=experts_per_token,
            expert_usage=expert_usage,
        )

    async def _run(self, requests: list[Request]) -> list[RequestOutput]:
        """Submit the requests and return all their outputs. Raises ExpertTextError."""
        collector, outputs, num_open = self._client.submit(requests), list[RequestOutput](), len(requests)
        while num_open:
            try:
                outputs += (new := await collector.get())
            except EngineDied as error:
                raise ExpertTextError(str(error)) from None
            for output in new:
                num_open -= output.finish_reason is not None
                if output.error is not None:
                    raise ExpertTextError(output.error)
        return outputs


@asynccontextmanager
async def text_engine(config: EngineConfig) -> AsyncIterator[TextEngine]:
    """Start an engine without prefix caching, so that every text is computed. Raises ExpertTextError."""
    has_loaded_or_failed = asyncio.Event()

    def on_status(status: EngineStatus) -> None:
        if status.phase != "loading":
            has_loaded_or_failed.set()

    client = EngineClient(on_status=on_status)
    try:
        await client.start(msgspec.structs.replace(config, enable_prefix_caching=False))
        await has_loaded_or_failed.wait()
        ready = client.ready
        if ready is None:
            raise ExpertTextError(client.status.message or "the engine did not start")
        if not ready.num_experts:
            raise ExpertTextError("this model has no experts")
        yield TextEngine(client, ready)
    finally:
        await client.stop()


async def count(config: EngineConfig, texts: Sequence[Text]) -> dict[str, list[list[int]]]:
    """Return each text's tokens by expert, [layers][experts]. Raises ExpertTextError."""
    async with text_engine(config) as engine:
        return {text.name: await engine.count_tokens(text) for text in texts}


async def sweep_experts_per_token(config: EngineConfig, texts: Sequence[Text]) -> list[SweepPoint]:
    """Measure 1 expert per token, 2, ... up to all; speeds are medians of ROUNDS. Raises ExpertTextError."""
    async with text_engine(config) as engine:
        numbers = range(1, engine.ready.num_experts + 1)
        quality = {k: {text.name: await engine.perplexity(text, k) for text in texts} for k in numbers}
        prefill: dict[int, list[float]] = {k: [] for k in numbers}
        decode: dict[int, list[float]] = {k: [] for k in numbers}
        for _ in range(ROUNDS):
            for k in numbers:
                prefill[k].append(await engine.prefill_tokens_per_s(texts, k))
                decode[k].append(await engine.decode_tokens_per_s(texts[0], k))
        return [SweepPoint(k, quality[k], statistics.median(prefill[k]), statistics.median(decode[k])) for k in numbers]
