"""Text completions: a choice has the same shape in a chunk and in the full reply."""

from collections.abc import Mapping, Sequence

from server.api.formats.logprobs import completion_logprobs
from server.generation.choice import Delta
from server.generation.jobs import Prompt
from server.schemas import CompletionRequest
from server.tokenizer.tokenizer import Tokenizer


class CompletionFormat:
    """A choice is the same thing in a chunk and in the whole reply: what there is of its text."""

    stream_object = whole_object = "text_completion"

    def __init__(self, request: CompletionRequest, prompts: Sequence[Prompt], tokenizer: Tokenizer) -> None:
        self._request = request
        self._prompts = prompts
        self._tokenizer = tokenizer
        tells_more = request.return_token_ids or request.expert_routing
        self.text_only_stream = request.logprobs is None and not tells_more
        self._has_prompt_ids: set[int] = set()  # choices that have told their prompt's ids

    def chunks(self, delta: Delta) -> list[tuple[Mapping[str, object], Mapping[str, object]]]:
        """Nothing for a first delta without text: completions have no role to tell."""
        parts = delta.split() if delta.text or delta.finish_reason else []
        return [(self.whole(part), {}) for part in parts]

    def whole(self, delta: Delta) -> Mapping[str, object]:
        choice: dict[str, object] = {
            "index": delta.index,
            "text": delta.text,
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._request.expert_routing:
            choice["expert_routing"] = delta.routing
        if self._request.return_token_ids:
            choice["token_ids"] = delta.token_ids
            choice |= self._prompt_token_ids(delta.index)
        return choice

    def extra_fields(self) -> Mapping[str, object]:
        return {}

    def _logprobs(self, delta: Delta) -> Mapping[str, object] | None:
        if self._request.logprobs is None or not delta.positions:
            return None
        return dict(completion_logprobs(delta.positions, self._tokenizer))

    def _prompt_token_ids(self, index: int) -> Mapping[str, object]:
        """Once per choice."""
        if index in self._has_prompt_ids:
            return {}
        self._has_prompt_ids.add(index)
        return {"prompt_token_ids": self._prompts[index // self._request.n].token_ids}
