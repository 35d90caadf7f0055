"""POST /v1/chat/completions: a conversation gets its next message."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.body import read_request
from server.choice import Delta
from server.generation import Generation
from server.logprobs import chat_logprobs
from server.prepare import Prompt, check_prompt_chars, completion_limit, jobs_of, off_loop, seed_of, truncated
from server.repair import repaired, roles_out_of_order
from server.reply import common_fields, reply
from server.sampling import check_token_ids
from server.schemas import ChatCompletionRequest, Conversation
from server.state import AppState, Texts, state_of
from server.tokenizer import Tokenizer

REPAIRED_HEADER = "x-smoe-repaired"

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(http: HttpRequest) -> Response:
    """Answers with a message per choice."""
    arrival_s = time.monotonic()
    request, headers = await read_request(http, ChatCompletionRequest)
    turn = await turn_of(http, request, arrival_s)
    return await reply(http, request, turn.generation, turn.layout, turn.fields, {**headers, **turn.headers})


@dataclass(frozen=True)
class ChatTurn:
    """A chat that is ready to be generated."""

    generation: Generation
    layout: "ChatFormat"
    fields: Mapping[str, str | int]  # of the reply's envelope
    headers: Mapping[str, str]  # that name the conversation's repairs


async def turn_of(http: HttpRequest, request: ChatCompletionRequest, arrival_s: float) -> ChatTurn:
    """The request, checked against the model and tokenized. Raises ApiError."""
    state = state_of(http)
    state.check_model(request.model)
    ready, texts = state.serving()
    check_token_ids(request, ready.vocab_size, ready.eos_token_ids)
    if request.truncate_prompt_tokens is None:
        check_prompt_chars(texts, ready, request.contents, "messages")
    token_ids, repair_headers = await rendered(request, state, texts)
    prompt = Prompt(truncated(token_ids, request), is_continued=request.continue_final_message)
    limit = completion_limit(len(prompt.token_ids), request.completion_limit, ready, "messages")
    grammar = await texts.grammars.grammar_of(request)
    seed = seed_of(state, request)
    jobs = await jobs_of(state, texts, request, [prompt], [limit], seed=seed, arrival_s=arrival_s, grammar=grammar)
    http_id = http.state.request_id
    return ChatTurn(
        Generation(state, jobs, http_id, request.user),
        ChatFormat(request, prompt, texts.tokenizer),
        common_fields("chatcmpl", http_id, request.model, ready, seed),
        repair_headers,
    )


async def rendered(conversation: Conversation, state: AppState, texts: Texts) -> tuple[list[int], dict[str, str]]:
    """The conversation's token ids, as the checkpoint's template writes it, and the headers that name its repairs.

    Raises ApiError 400.
    """
    turns, repairs = repaired(conversation.messages, texts.chat_template.system_place)
    if repairs and state.strict_roles:
        raise roles_out_of_order(repairs)
    token_ids = await off_loop(
        sum(map(len, conversation.contents)),
        lambda: texts.chat_template.render(
            turns,
            add_generation_prompt=conversation.with_generation_prompt,
            continue_final_message=conversation.continue_final_message,
            kwargs=conversation.chat_template_kwargs.model_dump(exclude_none=True),
        ),
    )
    return token_ids, {REPAIRED_HEADER: ", ".join(repairs)} if repairs else {}


class ChatFormat:
    """A choice is a message, or in a stream what was added to it."""

    stream_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(self, request: ChatCompletionRequest, prompt: Prompt, tokenizer: Tokenizer) -> None:
        self._request = request
        self._prompt = prompt
        self._tokenizer = tokenizer
        self.tells_text_alone = not request.logprobs and not request.return_token_ids
        self._has_begun = False

    def chunks(self, delta: Delta) -> list[tuple[Mapping[str, object], Mapping[str, object]]]:
        """The role before anything else of a choice, then its text, then its end."""
        chunks: list[tuple[Mapping[str, object], Mapping[str, object]]] = []
        if delta.is_first:
            role = {"role": "assistant", "content": ""}
            chunks.append((self._chunk(Delta(delta.index), role), {} if self._has_begun else self.beside_choices()))
            self._has_begun = True
        for part in delta.split() if delta.text or delta.finish_reason else []:
            chunks.append((self._chunk(part, {"content": part.text} if part.text else {}), {}))
        return chunks

    def whole(self, delta: Delta) -> Mapping[str, object]:
        message = {"role": "assistant", "content": delta.text, "refusal": None}
        return {"index": delta.index, "message": message, **self._rest(delta)}

    def beside_choices(self) -> Mapping[str, object]:
        return {"prompt_token_ids": self._prompt.token_ids} if self._request.return_token_ids else {}

    def _chunk(self, part: Delta, added: Mapping[str, str]) -> Mapping[str, object]:
        return {"index": part.index, "delta": added, **self._rest(part, is_chunk=True)}

    def _rest(self, delta: Delta, *, is_chunk: bool = False) -> Mapping[str, object]:
        """What a chunk and a whole choice have alike. A chunk without tokens has no logprobs to tell."""
        has_logprobs = self._request.logprobs and bool(delta.positions or not is_chunk)
        rest: dict[str, object] = {
            "logprobs": chat_logprobs(delta.positions, self._tokenizer) if has_logprobs else None,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._request.return_token_ids:
            rest["token_ids"] = delta.token_ids
        return rest
