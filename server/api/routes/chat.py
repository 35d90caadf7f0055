"""POST /v1/chat/completions: a conversation gets its next message."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.formats.logprobs import chat_logprobs
from server.api.formats.reply import common_fields, reply
from server.api.request_body import ignoring, read_request
from server.chat.mistral_format import CALLS_MARKER
from server.chat.repair import repair_conversation, roles_out_of_order
from server.event_loop import INLINE_CHARS, off_loop
from server.generation.choice import Delta
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
from server.tokenizer.tokenizer import Tokenizer
from server.tools.call_parser import ToolCallFormatter
from server.tools.constraints import ToolUse, check_can_be_emulated, resolve_tool_use, tool_constraints
from server.tools.loose_tools import unsupported_schema_keywords
from server.tools.prompt_emulation import with_prompted_tools

REPAIRED_HEADER = "x-smoe-repaired"

CHARS_OF_A_MESSAGE = 32  # that take as long as a message itself

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(http: HttpRequest) -> Response:
    """Answers with a message per choice."""
    arrival_s = time.monotonic()
    state_of(http).check_queue(http.state.request_id)
    request, headers = await read_request(http, ChatCompletionRequest)
    turn = await prepare_chat(http, request, arrival_s)
    return await reply(http, request, turn.generation, turn.layout, turn.fields, turn.headers_beside(headers))


@dataclass(frozen=True)
class ChatTurn:
    """A chat that is ready to be generated."""

    generation: Generation
    layout: "ChatFormat"
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


class ChatFormat:
    """A choice is a message, or in a stream what was added to it."""

    stream_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(
        self,
        request: ChatCompletionRequest,
        prompt: Prompt,
        tokenizer: Tokenizer,
        calls: ToolCallFormatter | None = None,
    ) -> None:
        """`calls` reads the calls of tools, where there may be some."""
        self._request = request
        self._calls = calls
        self._prompt = prompt
        self._tokenizer = tokenizer
        tells_more = bool(request.logprobs or request.return_token_ids or request.expert_routing)
        self.text_only_stream = calls is None and not tells_more
        self._has_begun = False

    def chunks(self, delta: Delta) -> list[tuple[Mapping[str, object], Mapping[str, object]]]:
        """The role before anything else of a choice, then its text, then its end."""
        chunks: list[tuple[Mapping[str, object], Mapping[str, object]]] = []
        if delta.is_first:
            role = {"role": "assistant", "content": ""}
            chunks.append((self._chunk(Delta(delta.index), role), {} if self._has_begun else self.extra_fields()))
            self._has_begun = True
        for part in delta.split() if delta.text or delta.finish_reason else []:
            chunks += [(self._chunk(piece, added), {}) for piece, added in self._pieces(part)]
        return chunks

    def _pieces(self, part: Delta) -> list[tuple[Delta, Mapping[str, object]]]:
        if self._calls is not None:
            return self._calls.pieces(part)
        return [(part, {"content": part.text} if part.text else {})]

    def whole(self, delta: Delta) -> Mapping[str, object]:
        message: Mapping[str, object] = {"role": "assistant", "content": delta.text, "refusal": None}
        if self._calls is not None:
            delta, message = self._calls.whole(delta)
        return {"index": delta.index, "message": message, **self._rest(delta)}

    def extra_fields(self) -> Mapping[str, object]:
        return {"prompt_token_ids": self._prompt.token_ids} if self._request.return_token_ids else {}

    def _chunk(self, part: Delta, added: Mapping[str, object]) -> Mapping[str, object]:
        return {"index": part.index, "delta": added, **self._rest(part, is_chunk=True)}

    def _rest(self, delta: Delta, *, is_chunk: bool = False) -> Mapping[str, object]:
        """What a chunk and a whole choice have alike. A chunk without tokens has no logprobs to tell."""
        has_logprobs = self._request.logprobs and bool(delta.positions or not is_chunk)
        rest: dict[str, object] = {
            "logprobs": chat_logprobs(delta.positions, self._tokenizer) if has_logprobs else None,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._request.expert_routing:
            rest["expert_routing"] = delta.routing
        if self._request.return_token_ids:
            rest["token_ids"] = delta.token_ids
        return rest
