"""Embed prompts: each is a choice that generates no token, and whose only output is the embedding.

The prompts of one request enter the engine's queue in parts, so that a request of two thousand texts neither fills the
queue nor needs one as long.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest

from engine.messages import Ready
from engine.types import Request, SamplingParams
from server.errors import ApiError, internal_error, no_embeddings, prompt_too_long
from server.generation.choice import Choice, StopConditions
from server.generation.generation import Generation
from server.generation.jobs import Job
from server.generation.sampling_params import check_ids
from server.generation.state import ServerState, TextFrontend, fingerprint_of, hold_adapter, state_of, tenant_of
from server.generation.usage import Usage, count_usage
from server.observability.access_log import RequestRecord
from server.schemas.embeddings import WHOLE_CONTEXT, EmbeddedRequest
from server.tokenizer.detokenizer import Detokenizer
from server.tokenizer.stop_strings import StopStringMatcher

NUMBERS_PER_TURN = 1 << 13  # numbers that become JSON, or part of a score, in one turn of the event loop: about 1 ms
IDS_PER_CHAR = 16  # ids that are checked in the time in which a character becomes tokens
MAX_PART = 64  # prompts of one request that are in the engine at a time
IDLE_S = 10.0  # nothing is sent to the client before the end, so this only bounds a wait

EmbeddedPrompt = str | list[int]


@dataclass
class Embedder:
    """Embeds the prompts of one HTTP request. `usage` counts those that are done."""

    state: ServerState
    ready: Ready
    texts: TextFrontend
    request: EmbeddedRequest
    tenant: int
    record: RequestRecord
    arrival_s: float
    dimensions: int
    usage: Usage
    adapter: str = ""  # digest of the LoRA adapter that the request names as its model; empty: none

    @classmethod
    def from_request(
        cls, http: HttpRequest, request: EmbeddedRequest, arrival_s: float, dimensions: int | None = None
    ) -> "Embedder":
        """Check a request against the served model. `dimensions`: numbers of an embedding; None: all of the model's.

        Raises ApiError 404 for another model, 503 while no model is ready, 400 for a model that does not embed and for
        more dimensions than it has.
        """
        state = state_of(http)
        state.served_name(request.model)
        ready, texts = state.serving()
        adapter = hold_adapter(http, request.model)
        if not ready.embeds and not state.embeddings:
            raise no_embeddings()
        if dimensions is not None and dimensions > ready.dim:
            message = f"'dimensions' must be at most {ready.dim}."
            raise ApiError(message, param="dimensions", code="integer_above_max_value")
        usage = count_usage(num_prompt=0, num_cached=0, num_completion=0)
        record: RequestRecord = http.state.record
        record.user = request.user
        numbers = dimensions or ready.dim
        return cls(state, ready, texts, request, tenant_of(http), record, arrival_s, numbers, usage, adapter)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the numerics and weights that compute the request."""
        return fingerprint_of(self.ready, self.adapter)

    @property
    def part_size(self) -> int:
        """Number of prompts that are in the engine at a time."""
        return max(1, min(MAX_PART, self.state.admission.max_choices_of_request))

    async def check_queue(self, num_prompts: int) -> None:
        """Raise ApiError 429 if the queue has no room for the first part, before the texts cost any work."""
        await self.state.check_queue(self.tenant, min(num_prompts, self.part_size))

    async def tokenize(self, prompts: Sequence[EmbeddedPrompt], param: str) -> list[list[int]]:
        """Return the token ids of each prompt of the field `param`. Raises ApiError 400 for one that does not fit."""
        limit, tokenizer = self.ready.max_model_len, self.texts.tokenizer
        keep = self.request.truncate_prompt_tokens
        most = limit if keep == WHOLE_CONTEXT else keep
        for prompt in prompts:
            if isinstance(prompt, str):
                num_tokens = tokenizer.min_num_tokens(prompt)
                if most is None and num_tokens > limit:
                    raise prompt_too_long(num_tokens, limit, limit, param)
        all_ids = await self.state.heavy_work.run(
            lambda: [self._ids(prompt, most, param) for prompt in prompts],
            size=sum(len(prompt) if isinstance(prompt, str) else len(prompt) // IDS_PER_CHAR for prompt in prompts),
            tenant=self.tenant,
        )
        longest = max(map(len, all_ids))
        if longest > limit:
            raise prompt_too_long(longest, limit, limit, param)
        if not all(all_ids):
            raise ApiError(f"'{param}' has a text without tokens.", param=param, code="empty_string")
        return all_ids

    def _ids(self, prompt: EmbeddedPrompt, most: int | None, param: str) -> list[int]:
        if isinstance(prompt, str):
            return self.texts.tokenizer.encode_to_embed(prompt, self.request.add_special_tokens, most)
        check_ids(prompt, self.ready.vocab_size, param)
        return prompt[:most]

    async def vectors(self, prompts: Sequence[list[int]]) -> AsyncGenerator[bytes, None]:
        """Yield the embeddings one by one, so that the caller's work on them is sliced into turns of the event loop.

        Raises and closes as embed().
        """
        per_turn = max(1, NUMBERS_PER_TURN // self.dimensions)
        async with aclosing(self.embed(prompts)) as parts:
            async for part in parts:
                for index, vector in enumerate(part):
                    if index and index % per_turn == 0:
                        await self.state.turns.next(self.tenant)
                    yield vector

    async def embed(self, prompts: Sequence[list[int]]) -> AsyncGenerator[list[bytes], None]:
        """Yield the embeddings of the prompts in order, in parts: little-endian float32, scaled to length 1.

        Raises ApiError as Generation.deltas. Close it: closing ends the engine's work.
        """
        size = self.part_size
        for first in range(0, len(prompts), size):
            jobs = self._jobs(prompts[first : first + size])
            generation = Generation(self.state, jobs, self.record, is_continued=first > 0)
            yield await self._vectors(generation)

    async def _vectors(self, generation: Generation) -> list[bytes]:
        vectors: list[bytes | None] = [None] * generation.num_choices
        async with aclosing(generation.deltas(IDLE_S)) as batches:
            async for deltas in batches:
                for delta in deltas:
                    vectors[delta.index] = delta.embedding
        usage = generation.usage()
        self.usage = count_usage(
            num_prompt=self.usage["prompt_tokens"] + usage["prompt_tokens"],
            num_cached=_cached(self.usage) + _cached(usage),
            num_completion=0,
        )
        complete = [vector for vector in vectors if vector is not None]
        if len(complete) < len(vectors):
            raise internal_error()
        return complete

    def _jobs(self, prompts: Sequence[list[int]]) -> list[Job]:
        ids = [self.state.engine.new_request_id() for _ in prompts]
        return [
            Job(self._engine_request(request_id, ids[0], index, prompt), self._choice(index))
            for index, (request_id, prompt) in enumerate(zip(ids, prompts, strict=True))
        ]

    def _engine_request(self, request_id: int, group: int, index: int, prompt: list[int]) -> Request:
        request = self.request
        return Request(
            request_id=request_id,
            prompt_token_ids=prompt,
            params=SamplingParams(max_tokens=0, prompt_index=index),
            priority=request.priority,
            cache_salt=request.cache_salt,
            arrival_s=self.arrival_s,
            tenant=self.tenant,
            overhead_tokens=self.state.heavy_work.pop_owed_tokens(self.tenant),
            deadline_s=self._after_arrival(request.timeout_s),
            queue_deadline_s=self._after_arrival(request.queue_timeout_s),
            group=group,
            embedding_len=self.dimensions,
            adapter=self.adapter,
        )

    def _after_arrival(self, timeout_s: float | None) -> float | None:
        return None if timeout_s is None else self.arrival_s + timeout_s

    def _choice(self, index: int) -> Choice:
        return Choice(index, Detokenizer(self.texts.tokenizer), StopStringMatcher([], False), StopConditions())


def _cached(usage: Usage) -> int:
    return usage["prompt_tokens_details"]["cached_tokens"]
