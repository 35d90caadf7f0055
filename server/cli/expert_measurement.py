"""`smoe experts`: which experts take which text, and what the number of experts per token does to quality and speed.

Knows texts and the engine's process; what is shown of the figures is expert_views.py's business.
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
from server.generation.usage import ExpertTally
from server.tokenizer.tokenizer import Tokenizer

WINDOW_TOKENS = 1024  # a text is computed in pieces of at most so many
DECODE_PROMPTS, DECODE_PROMPT_TOKENS, DECODE_TOKENS = 16, 32, 64
ROUNDS = 3  # of what is timed, the settings taking turns


class ExpertTextError(Exception):
    """Nothing can be measured. One line."""


@dataclass(frozen=True)
class Text:
    """One domain: its name, and its tokens in windows."""

    name: str
    windows: list[list[int]]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.windows))


@dataclass(frozen=True)
class DialPoint:
    """What k experts per token gave."""

    experts_per_token: int
    perplexity: dict[str, float]  # by text
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def read_texts(paths: Sequence[Path], tokenizer: Tokenizer, max_tokens: int) -> list[Text]:
    """At most `max_tokens` of each. Raises ExpertTextError."""
    texts = []
    for path in paths:
        try:
            ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False)[:max_tokens]
        except OSError as error:
            raise ExpertTextError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ExpertTextError(f"{path}: this is not UTF-8") from None
        if len(ids) < 2:
            raise ExpertTextError(f"{path}: there is no text in it")
        windows = [ids[start : start + WINDOW_TOKENS] for start in range(0, len(ids), WINDOW_TOKENS)]
        texts.append(Text(path.stem, windows))
    if len({text.name for text in texts}) < len(texts):
        raise ExpertTextError("two files have the same name: their names stand for the texts")
    return texts


class TextEngine:
    """An engine process that computes texts, whole and in company."""

    def __init__(self, client: EngineClient, ready: Ready) -> None:
        self.ready = ready
        self._client = client

    async def tokens_of(self, text: Text) -> list[list[int]]:
        """[layers][experts]: how many of the text's tokens took which expert."""
        tally = ExpertTally(self.ready.num_layers, self.ready.num_experts)
        for output in await self._run([self._request(ids, expert_usage=True) for ids in text.windows]):
            tally.add_prompt(output.expert_prompt_tokens or [])
        return tally.tokens()["prompt"]

    async def perplexity(self, text: Text, experts_per_token: int) -> float:
        """exp of the mean of -log p of each token, given those of its window before it."""
        params = SamplingParams(max_tokens=0, prompt_logprobs=True)
        requests = [self._request(ids, params, experts_per_token) for ids in text.windows]
        scores = [scored.logprob for output in await self._run(requests) for scored in output.prompt_logprobs or []]
        return math.exp(-statistics.fmean(scores))

    async def prefill_tokens_per_s(self, texts: Sequence[Text], experts_per_token: int) -> float:
        windows = [ids for text in texts for ids in text.windows]
        start = time.monotonic()
        await self._run([self._request(ids, experts_per_token=experts_per_token) for ids in windows])
        return sum(map(len, windows)) / (time.monotonic() - start)

    async def decode_tokens_per_s(self, text: Text, experts_per_token: int) -> float:
        """The prompts' time included, which is short beside that of the tokens behind them."""
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
        """All outputs. Raises ExpertTextError."""
        inbox, outputs, num_open = self._client.submit(requests), list[RequestOutput](), len(requests)
        while num_open:
            try:
                outputs += (new := await inbox.get())
            except EngineDied as death:
                raise ExpertTextError(str(death)) from None
            for output in new:
                num_open -= output.finish_reason is not None
                if output.error is not None:
                    raise ExpertTextError(output.error)
        return outputs


@asynccontextmanager
async def text_engine(config: EngineConfig) -> AsyncIterator[TextEngine]:
    """The engine, loaded, for a model that has experts; each text is computed in full. Raises ExpertTextError."""
    settled = asyncio.Event()

    def on_status(status: EngineStatus) -> None:
        if status.phase != "loading":
            settled.set()

    client = EngineClient(on_status=on_status)
    try:
        await client.start(msgspec.structs.replace(config, enable_prefix_caching=False))
        await settled.wait()
        ready = client.ready
        if ready is None:
            raise ExpertTextError(client.status.message or "the engine did not start")
        if not ready.num_experts:
            raise ExpertTextError("this model has no experts")
        yield TextEngine(client, ready)
    finally:
        await client.stop()


async def count(config: EngineConfig, texts: Sequence[Text]) -> dict[str, list[list[int]]]:
    """[layers][experts] by text. Raises ExpertTextError."""
    async with text_engine(config) as engine:
        return {text.name: await engine.tokens_of(text) for text in texts}


async def sweep_experts_per_token(config: EngineConfig, texts: Sequence[Text]) -> list[DialPoint]:
    """From 1 expert per token to all of them; speeds are medians of ROUNDS. Raises ExpertTextError."""
    async with text_engine(config) as engine:
        dial = range(1, engine.ready.num_experts + 1)
        quality = {k: {text.name: await engine.perplexity(text, k) for text in texts} for k in dial}
        prefill: dict[int, list[float]] = {k: [] for k in dial}
        decode: dict[int, list[float]] = {k: [] for k in dial}
        for _ in range(ROUNDS):
            for k in dial:
                prefill[k].append(await engine.prefill_tokens_per_s(texts, k))
                decode[k].append(await engine.decode_tokens_per_s(texts[0], k))
        return [DialPoint(k, quality[k], statistics.median(prefill[k]), statistics.median(decode[k])) for k in dial]
