"""A chat request, checked against the model, rendered and tokenized: what its generation needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest

from server.api.formats.chat import ChatFormat
from server.api.formats.reply import common_fields
from server.api.formats.tool_calls import ToolCallFormatter
from server.api.request_body import ignoring
from server.chat.mistral_format import CALLS_MARKER
from server.chat.repair import repair_conversation, roles_out_of_order
from server.event_loop import INLINE_CHARS, off_loop
from server.generation.generation import Generation
from server.generation.jobs import (
    Prompt,
    build_jobs,
    check_prompt_chars,
    completion_limit,
    resolve_seed,
    truncated,
)
from server.generation.sampling_params import check_token_ids
from server.generation.state import ServerState, TextFrontend, state_of, tenant_of
from server.schemas import ChatCompletionRequest, Conversation
from server.structured_output.constraints import Constraint
from server.tools.constraints import ToolUse, check_can_be_emulated, resolve_tool_use, tool_constraints
from server.tools.loose_tools import unsupported_schema_keywords
from server.tools.prompt_emulation import with_prompted_tools

REPAIRED_HEADER = "x-smoe-repaired"

CHARS_OF_A_MESSAGE = 32  # that take as long as a message itself


@dataclass(frozen=True)
class ChatTurn:
    """A chat that is ready to be generated."""

    generation: Generation
    layout: ChatFormat
    fields: Mapping[str, str | int]  # of the reply's envelope
    repair_headers: Mapping[str, str]  # that name the conversation's repairs
    ignored: Sequence[str]  # what of its tools will not be followed

    def headers_beside(self, headers: dict[str, str]) -> dict[str, str]:
        """All headers of the reply, with those that the request has got already."""
        return {**ignoring(headers, self.ignored), **self.repair_headers}


async def prepare_chat(http: HttpRequest, request: ChatCompletionRequest, arrival_s: float) -> ChatTurn:
    """The request, checked against the model and tokenized. Raises ApiError."""
    state = state_of(http)
    state.check_model(request.model)
    ready, texts = state.serving()
    check_token_ids(request, ready.vocab_size, ready.eos_token_ids)
    if request.truncate_prompt_tokens is None:
        check_prompt_chars(texts, ready, request.contents, "messages")
    use = resolve_tool_use(request)
    constraints, ignored = await _tool_constraints(use, request, state, texts)
    token_ids, repair_headers = await render_prompt(request, state, texts, use)
    prompt = Prompt(truncated(token_ids, request), is_continued=request.continue_final_message)
    limit = completion_limit(len(prompt.token_ids), request.completion_limit, ready, "messages")
    form = await texts.grammars.compile(request, constraints)
    seed = resolve_seed(state, request)
    jobs = await build_jobs(
        state, texts, request, [prompt], [limit], seed=seed, arrival_s=arrival_s, tenant=tenant_of(http), form=form
    )
    http_id = http.state.request_id
    return ChatTurn(
        Generation(state, jobs, http_id, request.user),
        ChatFormat(request, prompt, texts.tokenizer, None if use is None else ToolCallFormatter(http_id)),
        common_fields("chatcmpl", http_id, request.model, ready, seed),
        repair_headers,
        ignored,
    )


async def _tool_constraints(
    use: ToolUse | None, request: ChatCompletionRequest, state: ServerState, texts: TextFrontend
) -> tuple[list[Constraint], list[str]]:
    """What the tools imply for the answer's form, and what of their schemas it leaves out."""
    if use is None:
        return [], []
    if not texts.chat_template.takes_tools:
        check_can_be_emulated(use, is_allowed=state.tool_emulation)
    marker_id = texts.tokenizer.special_token_id(CALLS_MARKER) if texts.chat_template.takes_tools else None
    num_chars = sum(map(len, request.contents))
    loose = {} if state.strict_params else await unsupported_schema_keywords(use, texts.grammars, num_chars)
    constraints = await off_loop(
        lambda: tool_constraints(use, request, marker_id, loose), heavy=num_chars > INLINE_CHARS
    )
    return constraints, [name for names in loose.values() for name in names]


async def render_prompt(
    conversation: Conversation, state: ServerState, texts: TextFrontend, use: ToolUse | None = None
) -> tuple[list[int], dict[str, str]]:
    """The conversation's token ids, as the checkpoint's template writes it, and the headers that name its repairs.

    Raises ApiError 400.
    """
    template = texts.chat_template
    messages = conversation.messages if template.takes_tools else with_prompted_tools(conversation.messages, use)

    def render() -> tuple[list[int], list[str]]:
        turns, repairs = repair_conversation(messages, template.system_place)
        if repairs and state.strict_roles:
            raise roles_out_of_order(repairs)
        token_ids = template.render(
            turns,
            add_generation_prompt=conversation.with_generation_prompt,
            continue_final_message=conversation.continue_final_message,
            kwargs=conversation.chat_template_kwargs.model_dump(exclude_none=True),
            tools=use.tools if use and template.takes_tools else (),
        )
        return token_ids, repairs

    token_ids, repairs = await off_loop(render, heavy=_num_chars(conversation) > INLINE_CHARS)
    return token_ids, {REPAIRED_HEADER: ", ".join(repairs)} if repairs else {}


def _num_chars(conversation: Conversation) -> int:
    """As far as work goes: an empty message is some as well."""
    return sum(map(len, conversation.contents)) + CHARS_OF_A_MESSAGE * len(conversation.messages)
