"""The reply format of completions: a choice has the same fields in a chunk and in a full reply."""

from collections.abc import Mapping, Sequence

from server.api.formats.gate_weights import gate_fields
from server.api.formats.logprobs import completion_logprobs
from server.api.formats.sliced_logprobs import Logprobs
from server.generation.choice import Delta, Position
from server.generation.prompt import Prompt
from server.schemas import CompletionRequest
from server.tokenizer.tokenizer import Tokenizer


class CompletionFormat:
    """ReplyFormat of completions: a choice with its text, or in a stream with the new part of it."""

    stream_object = full_object = "text_completion"

    def __init__(self, request: CompletionRequest, prompts: Sequence[Prompt], tokenizer: Tokenizer) -> None:
        self._request = request
        self._prompts = prompts
        self._tokenizer = tokenizer
        has_more_fields = request.return_token_ids or request.has_routing
        self.text_only_stream = request.logprobs is None and not has_more_fields
        self._choices_with_prompt_ids: set[int] = set()  # their prompt's ids were sent

    def chunks(self, delta: Delta) -> list[tuple[Mapping[str, object], Mapping[str, object]]]:
        """Return the chunks of a delta. A first delta without text makes no chunk: completions have no role to send."""
        parts = delta.split() if delta.text or delta.finish_reason else []
        return [(self.full(part), {}) for part in parts]

    def full(self, delta: Delta) -> Mapping[str, object]:
        choice: dict[str, object] = {
            "index": delta.index,
            "text": delta.text,
            "logprobs": delta.rendered_logprobs or self.logprobs(delta.positions),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._request.has_routing:
            choice["expert_routing"] = delta.routing
        if self._request.gate_logits:
            choice |= gate_fields(delta)
        if self._request.prompt_logprobs is not None:
            choice["prompt_logprobs"] = delta.rendered_prompt_logprobs
        if self._request.return_token_ids:
            choice["token_ids"] = delta.token_ids
            choice |= self._prompt_token_ids(delta.index)
        return choice

    def extra_fields(self) -> Mapping[str, object]:
        return {}

    @property
    def texts(self) -> Tokenizer:
        return self._tokenizer

    @property
    def num_prompt_logprobs(self) -> int | None:
        return self._request.prompt_logprobs

    def logprobs(self, positions: Sequence[Position]) -> Logprobs | None:
        """Return the logprobs of these positions; None if there are none."""
        if self._request.logprobs is None or not positions:
            return None
        return dict(completion_logprobs(positions, self._tokenizer, self._request.logprobs))  # type: ignore[arg-type]

    def _prompt_token_ids(self, index: int) -> Mapping[str, object]:
        """Return the prompt's ids at the first call for a choice, then nothing."""
        if index in self._choices_with_prompt_ids:
            return {}
        self._choices_with_prompt_ids.add(index)
        return {"prompt_token_ids": self._prompts[index // self._request.n].token_ids}
