"""Prepare a chat: check the request against the model, render its prompt, and build its generation and reply format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from starlette.requests import Request as HttpRequest

from server.api.formats.chat import ChatFormat
from server.api.formats.reply import common_fields
from server.api.formats.tool_calls import ToolCallFormatter
from server.api.request_body import add_ignored_params
from server.chat.mistral_format import CALLS_MARKER
from server.chat.rendering import render_text_of
from server.chat.repair import repair_conversation, roles_out_of_order
from server.chat.template import PreparedConversation
from server.errors import invalid_value
from server.fairness.event_loop import INLINE_CHARS
from server.generation.generation import Generation
from server.generation.jobs import JobBuilder
from server.generation.prediction import PredictedTokens
from server.generation.prompt import Prompt, completion_limit, truncated
from server.generation.state import ServerState, TextFrontend
from server.schemas import ChatCompletionRequest, Conversation
from server.structured_output.constraints import Constraint
from server.tools.constraints import (
    ToolUse,
    check_can_be_emulated,
    described_arguments,
    resolve_tool_use,
    tool_constraints,
    unsupported_schema_keywords,
)
from server.tools.prompt_emulation import with_prompted_tools

REPAIRED_HEADER = "x-smoe-repaired"

CHARS_OF_A_MESSAGE = 32  # a message takes as long to render as this many characters of its text


@dataclass(frozen=True)
class ChatTurn:
    """A chat that is ready to be generated."""

    generation: Generation
    reply_format: ChatFormat
    fields: Mapping[str, str | int]  # of the reply's envelope
    repair_headers: Mapping[str, str]  # name the repairs of the conversation
    ignored: Sequence[str]  # parts of the tools' schemas that the output need not follow

    def add_to_headers(self, headers: dict[str, str]) -> dict[str, str]:
        """Return `headers`, which read_request returned, with those that this chat adds."""
        return {**add_ignored_params(headers, self.ignored), **self.repair_headers}


@dataclass(frozen=True)
class RenderedChat:
    """A chat whose prompt is known and fits. It may be dropped: its tenant's work has not been charged to it yet."""

    request: ChatCompletionRequest
    builder: JobBuilder
    use: ToolUse | None
    prompt: Prompt
    max_tokens: int  # of the reply
    repair_headers: Mapping[str, str]

    @property
    def max_model_len(self) -> int:
        """How many tokens prompt and reply may have together."""
        return self.builder.ready.max_model_len


async def prepare_chat(http: HttpRequest, request: ChatCompletionRequest, arrival_s: float) -> ChatTurn:
    """Check the request against the model, tokenize its conversation and build its generation. Raises ApiError.

    A prompt that is too long is rejected before any grammar is made or compiled.
    """
    return await prepare_rendered(http, await render_chat(http, request, arrival_s))


async def render_chat(http: HttpRequest, request: ChatCompletionRequest, arrival_s: float) -> RenderedChat:
    """Check the request against the model and tokenize its conversation. Raises ApiError."""
    builder = await JobBuilder.from_request(http, request, arrival_s)
    state, texts = builder.state, builder.texts
    await builder.check_queue(1)
    use = resolve_tool_use(request)
    if use is not None and not texts.chat_template.takes_tools:
        check_can_be_emulated(use, is_allowed=state.tool_emulation)
    raw = request.raw_prompt
    if raw is None:
        token_ids, repair_headers = await render_prompt(request, state, texts, use, builder.tenant)
    else:
        token_ids, repair_headers = await _encode(raw, builder), {}
    is_continued = raw is not None or request.is_continued
    prompt = Prompt(truncated(token_ids, request, builder.ready), is_continued=is_continued)
    max_tokens = completion_limit(request, len(prompt.token_ids), builder.ready)
    return RenderedChat(request, builder, use, prompt, max_tokens, repair_headers)


async def prepare_rendered(http: HttpRequest, chat: RenderedChat) -> ChatTurn:
    """Compile the chat's grammar and build its generation, which takes the work that the tenant owes. Raises ApiError.

    Call it once for a request.
    """
    request, builder, prompt = chat.request, chat.builder, chat.prompt
    constraints, ignored = await _tool_constraints(chat.use, builder)
    if request.prediction is not None:
        prompt = replace(prompt, prediction=await _encode_prediction(request.prediction.text, builder))
    generation = await Generation.prepare(builder, [prompt], http.state.record, constraints)
    return ChatTurn(
        generation,
        ChatFormat(request, prompt, builder.texts.tokenizer, _call_formatter(chat.use, generation.http_id)),
        common_fields("chatcmpl", generation, builder.model_name, builder.fingerprint),
        chat.repair_headers,
        ignored,
    )


async def _encode(text: str, builder: JobBuilder) -> list[int]:
    """Return the token ids of a text that no template renders."""
    tokenizer = builder.texts.tokenizer
    return await builder.state.heavy_work.run(
        lambda: tokenizer.encode(text, add_special_tokens=True), size=len(text), tenant=builder.tenant
    )


async def _encode_prediction(text: str, builder: JobBuilder) -> PredictedTokens:
    """Return the tokens of a predicted text. Raises ApiError 400 if it is certainly longer than any reply."""
    tokenizer, limit = builder.texts.tokenizer, builder.ready.max_model_len

    def encode() -> PredictedTokens:
        if tokenizer.min_num_tokens(text) > limit:
            raise invalid_value(
                f"'prediction' is longer than a reply of this model can be: {limit} tokens.", "prediction"
            )
        return PredictedTokens(tokenizer.encode(text, add_special_tokens=False)[:limit])

    return await builder.state.heavy_work.run(encode, size=len(text), tenant=builder.tenant)


def _call_formatter(use: ToolUse | None, http_id: str) -> ToolCallFormatter | None:
    return None if use is None else ToolCallFormatter(http_id, must_call=use.must_call)


async def _tool_constraints(use: ToolUse | None, builder: JobBuilder) -> tuple[list[Constraint], list[str]]:
    """Return the constraints that the tools imply for the output, and the schema parts that they do not enforce."""
    if use is None:
        return [], []
    request, state, texts = builder.request, builder.state, builder.texts
    assert isinstance(request, ChatCompletionRequest)
    marker_id = texts.tokenizer.special_token_id(CALLS_MARKER) if texts.chat_template.takes_tools else None
    # Always in a thread: small schemas may take long to rewrite.
    in_thread = partial(
        state.heavy_work.run,
        size=max(sum(map(len, request.tool_texts)), INLINE_CHARS + 1),
        tenant=builder.tenant,
    )
    unsupported: Mapping[int, list[str]] = {}
    if not state.strict_params:
        described = await in_thread(lambda: described_arguments(use))
        unsupported = await unsupported_schema_keywords(described, texts.grammars, builder.tenant)
    constraints = await in_thread(lambda: tool_constraints(use, request, marker_id, unsupported))
    return constraints, [name for names in unsupported.values() for name in names]


async def render_prompt(
    conversation: Conversation, state: ServerState, texts: TextFrontend, use: ToolUse | None = None, tenant: int = 0
) -> tuple[list[int], dict[str, str]]:
    """Return the conversation's token ids by the checkpoint's template, and the headers that name its repairs.

    Raises ApiError 400.
    """
    template = texts.chat_template

    def prepare() -> tuple[PreparedConversation, list[str]]:
        whole, repairs = conversation.turns()
        messages = whole if template.takes_tools else with_prompted_tools(whole, use)
        turns, repairs_of_roles = repair_conversation(messages, template.system_place)
        repairs += repairs_of_roles
        if repairs and state.strict_roles:
            raise roles_out_of_order(repairs)
        prepared = template.prepare(
            turns,
            add_generation_prompt=conversation.with_generation_prompt,
            continue_final_message=conversation.is_continued,
            kwargs=conversation.chat_template_kwargs.model_dump(exclude_none=True),
            tools=use.tools if use and template.takes_tools else (),
        )
        return prepared, repairs

    size = _num_chars(conversation)
    prepared, repairs = await state.heavy_work.run(prepare, size=size, tenant=tenant)
    text = await render_text_of(template, prepared, texts.sandbox, heavy=size > INLINE_CHARS, tenant=tenant)
    token_ids = await state.heavy_work.run(
        lambda: template.encode(prepared, text), size=max(size, len(text)), tenant=tenant
    )
    return token_ids, {REPAIRED_HEADER: ", ".join(repairs)} if repairs else {}


def _num_chars(conversation: Conversation) -> int:
    """Estimate the work of rendering, in characters: even an empty message takes some."""
    return sum(map(len, conversation.contents)) + CHARS_OF_A_MESSAGE * len(conversation.messages)
