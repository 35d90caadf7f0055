"""One choice of a generation: turns the engine's outputs into deltas of text.

Streams and full replies are made of the same deltas, so the concatenation of a stream is the full text by construction.
Knows nothing of HTTP, of other choices or of the reply's format.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from engine.types import ExpertIds, RequestOutput, TokenLogprobs


class TextDecoder(Protocol):
    """Turns token ids into text, complete characters only: server.tokenizer.detokenizer.Detokenizer."""

    def push(self, token_ids: Sequence[int]) -> str: ...
    def finish(self) -> str: ...


class TextMatcher(Protocol):
    """Finds stop strings: server.tokenizer.stop_strings.StopStringMatcher."""

    def push(self, text: str) -> tuple[str, str | None]: ...
    def finish(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Position:
    """One token of a reply, with the fields that the logprobs formats need."""

    token_id: int
    text_offset: int  # characters of the reply's text before this token
    logprobs: TokenLogprobs | None  # None for the first token of a prompt, which has no prediction
    text: str = ""  # that a generated token added to the reply's text, complete characters only


class Delta(msgspec.Struct):
    """The new part of one choice. The engine's first output always makes a delta, which may be empty."""

    index: int
    text: str = ""
    token_ids: list[int] = []  # generated tokens only
    positions: list[Position] = []  # echoed and generated tokens, if logprobs were requested
    # [position][layers][k], of all generated tokens except the last, behind those of an echoed prompt
    routing: list[list[ExpertIds]] = []
    gates: list[bytes] = []  # gate logits of these positions: [layers][experts] float32
    prompt_logprobs: list[TokenLogprobs] | None = None  # of the prompt's tokens from the second on, in the first delta
    rendered_prompt_logprobs: object = None  # their JSON
    rendered_logprobs: object = None  # the logprobs of many positions, whose lists were rendered ahead in slices
    embedding: bytes | None = None  # of the prompt: little-endian float32
    is_first: bool = False
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None
    stop_reason: str | int | None = None

    @property
    def is_text_only(self) -> bool:
        """True if its chunk differs from others only in the text, for formats without token ids and logprobs."""
        return bool(self.text) and self.finish_reason is None and not self.is_first

    def split(self) -> list["Delta"]:
        """Split the text from the finish reason: a stream sends them in two chunks."""
        if not self.text or self.finish_reason is None:
            return [self]
        text = msgspec.structs.replace(self, finish_reason=None, stop_reason=None)
        return [text, Delta(self.index, finish_reason=self.finish_reason, stop_reason=self.stop_reason)]


def merge_deltas(deltas: Sequence[Delta]) -> Delta:
    """Return all deltas of one choice, in order, as a single delta. There must be at least one."""
    return Delta(
        index=deltas[0].index,
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        positions=[position for delta in deltas for position in delta.positions],
        routing=[position for delta in deltas for position in delta.routing],
        gates=[position for delta in deltas for position in delta.gates],
        prompt_logprobs=next((d.prompt_logprobs for d in deltas if d.prompt_logprobs is not None), None),
        is_first=True,
        finish_reason=deltas[-1].finish_reason,
        stop_reason=deltas[-1].stop_reason,
    )


@dataclass(frozen=True, slots=True)
class StopConditions:
    """Conditions that end a choice, besides the model's end token and the length limit."""

    min_tokens: int = 0  # the text of this many first tokens is not searched for stop strings
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False  # keep the stop token's text (the matcher has the same option for stop strings)


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt, to be repeated at the start of the reply."""

    text: str
    token_ids: Sequence[int] = ()  # empty without logprobs
    text_offsets: Sequence[int] = ()  # of each token id, in characters


class Choice:
    """The text state of one choice. Push every output of its request, in order, until `finish_reason` is set."""

    def __init__(
        self,
        index: int,
        decoder: TextDecoder,
        matcher: TextMatcher,
        stop: StopConditions,
        echo: Echo | None = None,
        num_prompt_routed: int = 0,
    ) -> None:
        """`num_prompt_routed`: tokens of the prompt whose experts the reply has, in front of its own."""
        self.index = index
        self.finish_reason: Literal["stop", "length"] | None = None
        self.num_tokens = 0  # generated tokens, including the end token
        self.num_prompt_routed = num_prompt_routed
        self.num_routed = 0  # tokens with known experts: of the generated ones all except the last
        self._decoder = decoder
        self._matcher = matcher
        self._stop = stop
        self._echo = echo
        self._offset = len(echo.text) if echo else 0
        self._pending = Delta(index, is_first=True)

    def push(self, output: RequestOutput) -> Delta | None:
        """Return the delta to send now, or None while all pending text is held back.

        A stop string ends the choice at the token that completed it, even if the output has later tokens.
        """
        if output.prompt_logprobs is not None:
            self._pending.prompt_logprobs = output.prompt_logprobs
        self._pending.embedding = output.embedding
        if self._echo:
            self._start_echo(self._echo, output.prompt_logprobs or [])
            self._echo = None
        self._push_tokens(output)
        if output.expert_routing:
            self._push_routing(output.expert_routing, output.gate_logits or ())
        if self.finish_reason is None and output.finish_reason in ("stop", "length"):
            self._finish(output)
        return self._flush()

    def _start_echo(self, echo: Echo, prompt_logprobs: Sequence[TokenLogprobs]) -> None:
        self._pending.text = echo.text
        if echo.token_ids:
            logprobs = [None, *prompt_logprobs]
            self._pending.positions = list(map(Position, echo.token_ids, echo.text_offsets, logprobs))

    def _push_tokens(self, output: RequestOutput) -> None:
        end = len(output.token_ids) - 1 if output.stop_token_id is not None else None
        for i, token_id in enumerate(output.token_ids):
            is_shown = i != end or self._stop.include_stop
            text = self._decoder.push([token_id]) if is_shown else ""
            if output.logprobs is not None:
                self._pending.positions.append(Position(token_id, self._offset, output.logprobs[i], text))
            self._pending.token_ids.append(token_id)
            self.num_tokens += 1
            if not is_shown:
                return
            self._offset += len(text)
            self._match(text)
            if self.finish_reason:
                return

    def _push_routing(self, routing: Sequence[list[ExpertIds]], gates: Sequence[bytes]) -> None:
        """Add the experts of tokens that were computed as input: all but the last one and those after a stop string."""
        count = self.num_prompt_routed + max(0, self.num_tokens - 1) - self.num_routed
        self._pending.routing += routing[:count]
        self._pending.gates += gates[:count]
        self.num_routed += len(routing[:count])

    def _match(self, text: str) -> None:
        if self.num_tokens <= self._stop.min_tokens:
            self._pending.text += text
            return
        safe, stop = self._matcher.push(text)
        self._pending.text += safe
        if stop is not None:
            self.finish_reason = "stop"
            self._pending.stop_reason = stop

    def _finish(self, output: RequestOutput) -> None:
        self._match(self._decoder.finish())
        if self.finish_reason is None:
            self._pending.text += self._matcher.finish()
            self.finish_reason = "stop" if output.finish_reason == "stop" else "length"
            if output.stop_token_id in self._stop.stop_token_ids:
                self._pending.stop_reason = output.stop_token_id

    def _flush(self) -> Delta | None:
        """Return the pending delta if it has text or a finish reason. Only the first delta may be empty."""
        if self._pending.text or self.finish_reason:
            delta, self._pending = self._pending, Delta(self.index)
            delta.finish_reason = self.finish_reason
            return delta
        if self._pending.is_first:
            self._pending.is_first = False
            return Delta(self.index, is_first=True)
        return None
