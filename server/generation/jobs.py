"""From a valid request and its prompts' token ids to what is generated: the limits, the seed, one job per choice."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.messages import Ready
from engine.types import Request
from server.errors import ApiError, context_length_exceeded, prompt_too_long
from server.event_loop import off_loop
from server.generation.choice import Choice, Echo, StopConditions
from server.generation.generation import Job
from server.generation.sampling_params import check_bad_words, check_listed_ids, sampling_params
from server.generation.state import ServerState, TextFrontend
from server.generation.usage import check_experts
from server.schemas import GenerationRequest
from server.structured_output.constraints import CompiledGrammar, form_too_large
from server.tokenizer.detokenizer import Detokenizer
from server.tokenizer.stop_strings import StopStringMatcher

INLINE_CHOICES = 32  # more choices are prepared in a thread
MAX_FORM_CHARS = 2**21  # of a grammar, in all choices of a request together: each is sent and built by itself


@dataclass(frozen=True)
class Prompt:
    """One prompt, tokenized."""

    token_ids: list[int]
    is_continued: bool  # the reply goes on where the prompt's text ends, instead of being a text of its own
    echo: Echo | None = None


def truncated(token_ids: list[int], request: GenerationRequest) -> list[int]:
    """The prompt's last tokens, as many as the request keeps of it; all where it does not say."""
    keep = request.truncate_prompt_tokens
    return token_ids if keep is None or keep >= len(token_ids) else token_ids[-keep:]


def check_prompt_chars(texts: TextFrontend, ready: Ready, contents: Sequence[str], param: str) -> None:
    """Raises ApiError 400 for a text that is too long whatever its tokens are, without tokenizing it."""
    num_tokens = sum(map(texts.tokenizer.min_num_tokens, contents))
    if num_tokens > ready.max_prompt_tokens:
        raise prompt_too_long(num_tokens, ready.max_prompt_tokens, param)


def completion_limit(num_prompt: int, asked: int | None, ready: Ready, param: str, *, is_default: bool = False) -> int:
    """Tokens to generate at most: `asked`, or all the room that the prompt leaves where nothing was asked.

    `is_default`: `asked` is not the client's own figure, and gives way. Raises ApiError 400 where it does not fit.
    """
    if num_prompt > ready.max_prompt_tokens:
        raise prompt_too_long(num_prompt, ready.max_prompt_tokens, param)
    room = ready.max_model_len - num_prompt
    if asked is None or is_default:
        if room < 1:
            raise context_length_exceeded(num_prompt, asked or 1, ready.max_model_len, param)
        return room if asked is None else min(asked, room)
    if asked > room:
        raise context_length_exceeded(num_prompt, asked, ready.max_model_len, param)
    return asked


def resolve_seed(state: ServerState, request: GenerationRequest) -> int:
    """The request's own, or one drawn for it: the reply names it, so that it can be repeated."""
    return state.draw_seed() if request.seed is None else request.seed


async def build_jobs(
    state: ServerState,
    texts: TextFrontend,
    request: GenerationRequest,
    prompts: Sequence[Prompt],
    limits: Sequence[int],
    *,
    seed: int,
    arrival_s: float,
    tenant: int = 0,
    form: CompiledGrammar | None = None,
) -> list[Job]:
    """One per prompt and choice, the choices of a prompt together.

    `limits` has each prompt's completion limit; every choice must have the `form`.
    """
    num_choices = len(prompts) * request.n
    if num_choices > state.max_num_queued:
        message = f"At most {state.max_num_queued} choices can wait here; this request asks for {num_choices}."
        raise ApiError(message, param="prompt" if len(prompts) > 1 else "n", code="array_above_max_length")
    if form is not None and len(form.grammar) * num_choices > MAX_FORM_CHARS:
        raise form_too_large(request, num_choices)
    check_experts(request, state.serving()[0])
    ids = [state.engine.new_request_id() for _ in range(num_choices)]
    return await off_loop(
        lambda: _jobs(ids, texts, request, prompts, limits, seed=seed, arrival_s=arrival_s, tenant=tenant, form=form),
        heavy=num_choices > INLINE_CHOICES or bool(request.bad_words),
    )


def _jobs(
    ids: Sequence[int],
    texts: TextFrontend,
    request: GenerationRequest,
    prompts: Sequence[Prompt],
    limits: Sequence[int],
    *,
    seed: int,
    arrival_s: float,
    tenant: int,
    form: CompiledGrammar | None,
) -> list[Job]:
    jobs: list[Job] = []
    bad_words = texts.tokenizer.encode_words(request.bad_words)
    check_bad_words(request, bad_words)
    check_listed_ids(request, bad_words, len(prompts) * request.n)
    for prompt_index, prompt in enumerate(prompts):
        for choice_index in range(request.n):
            params = sampling_params(
                request,
                max_tokens=limits[prompt_index],
                seed=seed,
                prompt_index=prompt_index,
                choice_index=choice_index,
                defaults=texts.defaults,
                bad_words=bad_words,
            )
            engine_request = Request(
                request_id=ids[len(jobs)],
                prompt_token_ids=prompt.token_ids,
                params=params,
                priority=request.priority,
                cache_salt=request.cache_salt,
                arrival_s=arrival_s,
                tenant=tenant,
                deadline_s=_after(arrival_s, request.timeout_s),
                queue_deadline_s=_after(arrival_s, request.queue_timeout_s),
                grammar=None if form is None else form.grammar,
                experts_per_token=request.experts_per_token,
                expert_mask=request.expert_mask,
                expert_usage=request.expert_usage and choice_index == 0,  # a prompt counts once, whatever n is
                expert_routing=request.expert_usage or request.expert_routing,
            )
            jobs.append(Job(engine_request, _choice(len(jobs), texts, request, prompt, form)))
    return jobs


def _after(arrival_s: float, timeout_s: float | None) -> float | None:
    return None if timeout_s is None else arrival_s + timeout_s


def _choice(
    index: int, texts: TextFrontend, request: GenerationRequest, prompt: Prompt, form: CompiledGrammar | None
) -> Choice:
    has_all_spaces = prompt.is_continued or (form is not None and form.is_exact)
    context = prompt.token_ids if has_all_spaces else ()
    shown_ids = () if form is None else form.shown_ids
    ending = StopConditions(request.min_tokens, frozenset(request.stop_token_ids), request.include_stop_str_in_output)
    return Choice(
        index,
        Detokenizer(texts.tokenizer, request.skip_special_tokens, context, shown_ids),
        StopStringMatcher(request.stop, request.include_stop_str_in_output),
        ending,
        prompt.echo,
    )
