"""Chat completions: a choice as a message, and in a stream as what was added to the message."""

from collections.abc import Mapping

from server.api.formats.logprobs import chat_logprobs
from server.api.formats.tool_calls import ToolCallFormatter
from server.generation.choice import Delta
from server.generation.jobs import Prompt
from server.schemas import ChatCompletionRequest
from server.tokenizer.tokenizer import Tokenizer


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
