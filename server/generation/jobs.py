"""Build the jobs of a valid request and its tokenized prompts: per choice, the engine's request and the text state."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest

from engine.capacity.expert_options import ExpertLayout, resolve_experts
from engine.errors import RequestRejectedError
from engine.messages import Ready
from engine.token_constraints import TokenConstraints
from engine.types import Request, SamplingParams
from server.errors import ApiError, invalid_value, no_generation, unsupported_parameter
from server.generation.choice import Choice, StopConditions
from server.generation.prediction import NO_PREDICTION, PredictedTokens
from server.generation.prompt import Prompt, check_prompt_chars, completion_limit
from server.generation.reply_size import limit_reply
from server.generation.sampling_params import (
    check_bad_words,
    check_listed_ids,
    check_token_ids,
    packed_constraints,
    sampling_params,
)
from server.generation.state import ServerState, TextFrontend, fingerprint_of, hold_adapter, state_of, tenant_of
from server.schemas import GenerationRequest
from server.structured_output.constraints import CompiledGrammar, grammar_too_large
from server.tokenizer.detokenizer import Detokenizer
from server.tokenizer.stop_strings import StopStringMatcher

CHECKED_BYTES_PER_CHAR = 8  # of a body, of which a parsed one is checked so much faster than a text is tokenized
CHARS_OF_A_WORD = 1024  # a bad word is tokenized in several spellings
JOBS_PER_TURN = 32  # choices that are prepared in one turn of the event loop: about 1 ms
MAX_TOTAL_GRAMMAR_CHARS = 2**21  # of a request's grammar times its choices: it is sent and compiled once per choice


@dataclass(frozen=True)
class Job:
    """One choice: the request for the engine, the state that turns its tokens into text, and the text predicted."""

    request: Request
    choice: Choice
    prediction: PredictedTokens = NO_PREDICTION  # the same for all choices of a prompt


@dataclass(frozen=True)
class _Slot:
    """The place of one choice among the choices of its request."""

    request_id: int
    group: int  # request id of the first choice
    prompt: Prompt
    prompt_index: int
    choice_index: int
    max_tokens: int


@dataclass(frozen=True)
class JobBuilder:
    """Builds the jobs of one HTTP request."""

    state: ServerState
    ready: Ready
    texts: TextFrontend
    request: GenerationRequest
    tenant: int
    arrival_s: float  # monotonic
    adapter: str = ""  # digest of the LoRA adapter that the request names as its model; empty: none

    @classmethod
    async def from_request(cls, http: HttpRequest, request: GenerationRequest, arrival_s: float) -> "JobBuilder":
        """Check a request against the served model, as far as its tokens are not needed, and return its builder.

        Checks a long body in a thread.

        Raises ApiError 404 for another model, 503 while no model is ready, 400 for token ids outside the vocabulary and
        for texts that are certainly too long.
        """
        state = state_of(http)
        state.served_name(request.model)
        ready, texts = state.serving()
        adapter = hold_adapter(http, request.model)
        if not ready.generates:
            raise no_generation()

        def check() -> None:
            check_token_ids(request, ready.vocab_size, ready.eos_token_ids)
            if request.truncate_prompt_tokens is None:
                check_prompt_chars(texts, ready, request.prompt_texts, request.prompt_field)

        tenant = tenant_of(http)
        await state.heavy_work.run(check, size=len(await http.body()) // CHECKED_BYTES_PER_CHAR, tenant=tenant)
        return cls(state, ready, texts, request, tenant, arrival_s, adapter)

    @property
    def model_name(self) -> str:
        """The model's name as the reply repeats it."""
        return self.request.model or self.state.model_names[0]

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the numerics and weights that compute the request."""
        return fingerprint_of(self.ready, self.adapter)

    async def check_queue(self, num_prompts: int) -> None:
        """Raise ApiError 429 if the queue has no room for the request, before its texts and jobs cost any work."""
        await self.state.check_queue(self.tenant, num_prompts * self.request.n)

    async def build(self, prompts: Sequence[Prompt], grammar: CompiledGrammar | None = None) -> list[Job]:
        """Return one job per prompt and choice, ordered by prompt, then by choice.

        The output of each choice follows `grammar`. Raises ApiError 400 if the request exceeds a limit of the model or
        of this server.
        """
        limits = self.limits([len(prompt.token_ids) for prompt in prompts])
        seed = resolve_seed(self.state, self.request)
        self._check_num_choices(
            [len(prompt.token_ids) + len(prompt.prediction.token_ids) for prompt in prompts], grammar
        )
        check_experts(self.request, self.ready)
        ids = [self.state.engine.new_request_id() for _ in range(len(prompts) * self.request.n)]
        places = itertools.product(range(len(prompts)), range(self.request.n))
        slots = [_Slot(i, ids[0], prompts[p], p, choice, limits[p]) for i, (p, choice) in zip(ids, places, strict=True)]
        constraints = await self._constraints(len(slots))
        jobs: list[Job] = []
        for first in range(0, len(slots), JOBS_PER_TURN):
            if first:
                await self.next_turn()
            part = slots[first : first + JOBS_PER_TURN]
            jobs += [self._job(first + i, slot, seed, constraints, grammar) for i, slot in enumerate(part)]
        return jobs

    def limits(self, prompt_lengths: Sequence[int]) -> list[int]:
        """Return the most tokens to generate after each prompt. Raises ApiError 400 for a request that cannot fit."""
        limits = [completion_limit(self.request, length, self.ready) for length in prompt_lengths]
        return limit_reply(self.request, self.ready, prompt_lengths, limits, self.state.max_reply_values)

    async def next_turn(self) -> None:
        """Wait until this request may run a slice of long work on the event loop."""
        await self.state.turns.next(self.tenant)

    def _check_num_choices(self, num_prompt_tokens: Sequence[int], grammar: CompiledGrammar | None) -> None:
        num_prompts = len(num_prompt_tokens)
        num_choices = num_prompts * self.request.n
        limit = self.state.admission.max_choices_of_request
        if num_choices > limit:
            message = f"At most {limit} choices can wait here; this request has {num_choices}."
            raise ApiError(message, param="prompt" if num_prompts > 1 else "n", code="array_above_max_length")
        max_ids = self.state.max_total_prompt_ids
        if sum(num_prompt_tokens) * self.request.n > max_ids:
            message = f"The prompts of all choices may have at most {max_ids} tokens together."
            raise ApiError(message, param="n", code="integer_above_max_value")
        if grammar is not None and len(grammar.grammar) * num_choices > MAX_TOTAL_GRAMMAR_CHARS:
            raise grammar_too_large(self.request, num_choices)

    async def _constraints(self, num_choices: int) -> TokenConstraints:
        """Return the constraints of each choice. Raises ApiError 400."""
        words = self.request.bad_words
        bad_words = await self.state.heavy_work.run(
            lambda: self.texts.tokenizer.encode_words(words), size=CHARS_OF_A_WORD * len(words), tenant=self.tenant
        )
        check_bad_words(self.request, bad_words)
        check_listed_ids(self.request, bad_words, num_choices)
        return packed_constraints(self.request, bad_words)

    def _job(
        self, index: int, slot: _Slot, seed: int, constraints: TokenConstraints, grammar: CompiledGrammar | None
    ) -> Job:
        params = sampling_params(
            self.request,
            max_tokens=slot.max_tokens,
            seed=seed,
            prompt_index=slot.prompt_index,
            choice_index=slot.choice_index,
            defaults=self.texts.defaults,
            constraints=constraints,
        )
        choice = self._choice(index, slot.prompt, grammar)
        return Job(self._engine_request(slot, params, grammar), choice, slot.prompt.prediction)

    def _engine_request(self, slot: _Slot, params: SamplingParams, grammar: CompiledGrammar | None) -> Request:
        request = self.request
        return Request(
            request_id=slot.request_id,
            prompt_token_ids=slot.prompt.token_ids,
            params=params,
            priority=request.priority,
            cache_salt=request.cache_salt,
            arrival_s=self.arrival_s,
            tenant=self.tenant,
            overhead_tokens=self.state.heavy_work.pop_owed_tokens(self.tenant),
            deadline_s=self._after_arrival(request.timeout_s),
            queue_deadline_s=self._after_arrival(request.queue_timeout_s),
            grammar=None if grammar is None else grammar.grammar,
            prediction_token_ids=slot.prompt.prediction.token_ids,
            group=slot.group,
            experts_per_token=request.experts_per_token,
            expert_mask=request.expert_mask,
            expert_usage=request.expert_usage and slot.choice_index == 0,  # a prompt counts once, whatever `n` is
            expert_routing=request.expert_usage or request.has_routing,
            gate_logits=request.gate_logits,
            prompt_routing=request.has_prompt_routing,
            adapter=self.adapter,
        )

    def _after_arrival(self, timeout_s: float | None) -> float | None:
        return None if timeout_s is None else self.arrival_s + timeout_s

    def _choice(self, index: int, prompt: Prompt, grammar: CompiledGrammar | None) -> Choice:
        request, tokenizer = self.request, self.texts.tokenizer
        has_all_spaces = prompt.is_continued or (grammar is not None and grammar.is_exact)
        context = prompt.token_ids if has_all_spaces else ()
        shown_ids = () if grammar is None else grammar.shown_ids
        include_stop = request.include_stop_str_in_output
        return Choice(
            index,
            Detokenizer(tokenizer, request.skip_special_tokens, context, shown_ids),
            StopStringMatcher(request.stop, include_stop),
            StopConditions(request.min_tokens, frozenset(request.stop_token_ids), include_stop),
            prompt.echo,
            len(prompt.token_ids) if request.has_prompt_routing else 0,
        )


def resolve_seed(state: ServerState, request: GenerationRequest) -> int:
    """Return the request's seed, or draw one. The reply contains it, so that the client can repeat the request."""
    seed = request.chosen_seed
    return state.draw_seed() if seed is None else seed


def check_experts(request: GenerationRequest, ready: Ready) -> None:
    """Raise ApiError 400 for expert options that this model cannot follow."""
    options = Request(
        0,
        [],
        SamplingParams(),
        experts_per_token=request.experts_per_token,
        expert_mask=request.expert_mask,
        expert_usage=request.expert_usage,
        expert_routing=request.expert_routing,
        gate_logits=request.gate_logits,
    )
    layout = ExpertLayout(ready.num_layers, ready.num_experts, ready.experts_per_token)
    try:
        resolve_experts(options, layout)
    except RequestRejectedError as rejection:
        raise _expert_error(rejection, has_experts=bool(ready.num_experts)) from None


def _expert_error(rejection: RequestRejectedError, *, has_experts: bool) -> ApiError:
    param, message = rejection.param or "", f"'{rejection.param}': {rejection}."
    if not has_experts:
        return unsupported_parameter(param, message)
    if param == "experts_per_token":
        return ApiError(message, param=param, code="integer_above_max_value")
    return invalid_value(message, param)
