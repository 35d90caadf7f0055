"""The reply format of chat completions: a choice has a message, or in a stream the new part of the message."""

from collections.abc import Mapping, Sequence

from server.api.formats.gate_weights import gate_fields
from server.api.formats.logprobs import chat_logprobs
from server.api.formats.sliced_logprobs import Logprobs
from server.api.formats.tool_calls import ToolCallFormatter
from server.generation.choice import Delta, Position
from server.generation.prompt import Prompt
from server.schemas import ChatCompletionRequest
from server.tokenizer.tokenizer import Tokenizer


class ChatFormat:
    """ReplyFormat of chat completions: a choice with its message, or in a stream with the new part of it."""

    stream_object = "chat.completion.chunk"
    full_object = "chat.completion"

    def __init__(
        self,
        request: ChatCompletionRequest,
        prompt: Prompt,
        tokenizer: Tokenizer,
        calls: ToolCallFormatter | None = None,
    ) -> None:
        """`calls`: the formatter of tool calls, if the output may have any."""
        self._request = request
        self._calls = calls
        self._prompt = prompt
        self._tokenizer = tokenizer
        has_more_fields = bool(request.logprobs or request.return_token_ids or request.has_routing)
        self.text_only_stream = calls is None and not has_more_fields
        self._has_begun = False
        self._prompt_logprobs: object = None  # JSON

    def chunks(self, delta: Delta) -> list[tuple[Mapping[str, object], Mapping[str, object]]]:
        """Return the chunk with the role before anything else of a choice, then its text, then its finish reason."""
        chunks: list[tuple[Mapping[str, object], Mapping[str, object]]] = []
        if delta.is_first:
            role = {"role": "assistant", "content": "" if self._calls is None else self._calls.first_text}
            chunks.append((self._chunk(Delta(delta.index), role), {} if self._has_begun else self.extra_fields()))
            self._has_begun = True
        for part in delta.split() if delta.text or delta.finish_reason else []:
            chunks += [(self._chunk(piece, added), {}) for piece, added in self._pieces(part)]
        return chunks

    def _pieces(self, part: Delta) -> list[tuple[Delta, Mapping[str, object]]]:
        if self._calls is not None:
            return self._calls.pieces(part)
        return [(part, {"content": part.text} if part.text else {})]

    def full(self, delta: Delta) -> Mapping[str, object]:
        self._prompt_logprobs = delta.rendered_prompt_logprobs
        message: Mapping[str, object] = {"role": "assistant", "content": delta.text, "refusal": None}
        if self._calls is not None:
            delta, message = self._calls.full(delta)
        return {"index": delta.index, "message": message, **self._other_fields(delta)}

    def extra_fields(self) -> Mapping[str, object]:
        fields: dict[str, object] = {}
        if self._request.return_token_ids:
            fields["prompt_token_ids"] = self._prompt.token_ids
        if self._prompt_logprobs is not None:
            fields["prompt_logprobs"] = self._prompt_logprobs
        return fields

    @property
    def texts(self) -> Tokenizer:
        return self._tokenizer

    @property
    def num_prompt_logprobs(self) -> int | None:
        return self._request.prompt_logprobs

    def logprobs(self, positions: Sequence[Position]) -> Logprobs | None:
        """Return the logprobs of these positions; None if the request has not asked for any."""
        num_top = self._request.num_logprobs
        if num_top is None:
            return None
        return dict(chat_logprobs(positions, self._tokenizer, num_top))  # type: ignore[arg-type]

    def _chunk(self, part: Delta, added: Mapping[str, object]) -> Mapping[str, object]:
        return {"index": part.index, "delta": added, **self._other_fields(part, is_chunk=True)}

    def _other_fields(self, delta: Delta, *, is_chunk: bool = False) -> Mapping[str, object]:
        """Return the fields that chunks and full choices share. A chunk without tokens has no logprobs."""
        has_logprobs = self._request.logprobs and bool(delta.positions or not is_chunk)
        fields: dict[str, object] = {
            "logprobs": (delta.rendered_logprobs or self.logprobs(delta.positions)) if has_logprobs else None,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._request.has_routing:
            fields["expert_routing"] = delta.routing
        if self._request.gate_logits:
            fields |= gate_fields(delta)
        if self._request.return_token_ids:
            fields["token_ids"] = delta.token_ids
        return fields
