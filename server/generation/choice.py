"""One choice of a generation: the engine's outputs come in, deltas of text go out.

Streamed and whole replies are made of the same deltas, so the concatenation of a stream is the whole text by
construction. Knows nothing of HTTP, of other choices or of the reply's shape.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from engine.types import ExpertIds, RequestOutput, TokenLogprobs


class TextDecoder(Protocol):
    """Token ids to text, whole characters only: server.detokenizer.Detokenizer."""

    def push(self, token_ids: Iterable[int]) -> str: ...
    def finish(self) -> str: ...


class TextMatcher(Protocol):
    """Finds stop strings: server.stop.StopStringMatcher."""

    def push(self, text: str) -> tuple[str, str | None]: ...
    def finish(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Position:
    """One token of a reply, as the logprobs formats need it."""

    token_id: int
    text_offset: int  # characters of the reply's text before this token
    logprobs: TokenLogprobs | None  # None for the first token of all, which nothing predicts


@dataclass(slots=True)
class Delta:
    """What one choice gained. A choice's first delta comes with the engine's first result and may be empty."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)  # generated ones
    positions: list[Position] = field(default_factory=list)  # echoed and generated ones, where logprobs are wanted
    routing: list[list[ExpertIds]] = field(
        default_factory=list
    )  # [position][layers][k], of generated tokens but the last
    is_first: bool = False
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None
    stop_reason: str | int | None = None

    @property
    def is_text_alone(self) -> bool:
        """Whether a chunk tells nothing of it but text, unless it tells token ids or logprobs."""
        return bool(self.text) and self.finish_reason is None and not self.is_first

    def split(self) -> list["Delta"]:
        """Its text and its end apart: a stream tells them in two chunks."""
        if not self.text or self.finish_reason is None:
            return [self]
        text = replace(self, finish_reason=None, stop_reason=None)
        return [text, Delta(self.index, finish_reason=self.finish_reason, stop_reason=self.stop_reason)]


def merge_deltas(deltas: Sequence[Delta]) -> Delta:
    """All deltas of one choice as a single one; at least one."""
    return Delta(
        index=deltas[0].index,
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        positions=[position for delta in deltas for position in delta.positions],
        routing=[position for delta in deltas for position in delta.routing],
        is_first=True,
        finish_reason=deltas[-1].finish_reason,
        stop_reason=deltas[-1].stop_reason,
    )


@dataclass(frozen=True, slots=True)
class StopConditions:
    """What ends a choice, beside the model's end token and the length."""

    min_tokens: int = 0  # stop strings are not looked for in the text of so many first tokens
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False  # the stop token stays in the text (the matcher is told the same of stop strings)


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt to repeat at the start of the reply."""

    text: str
    token_ids: Sequence[int] = ()  # empty where no logprobs are wanted
    text_offsets: Sequence[int] = ()  # of each of them


class Choice:
    """Owns a choice's text state. Feed it every output of its request, in order, until `finish_reason` is set."""

    def __init__(
        self, index: int, decoder: TextDecoder, matcher: TextMatcher, ending: StopConditions, echo: Echo | None = None
    ) -> None:
        self.index = index
        self.finish_reason: Literal["stop", "length"] | None = None
        self.num_tokens = 0  # generated, the end token included
        self.num_routed = 0  # of those, whose experts are known: all but the last, where the engine tells them
        self._decoder = decoder
        self._matcher = matcher
        self._ending = ending
        self._echo = echo
        self._offset = len(echo.text) if echo else 0
        self._pending = Delta(index, is_first=True)

    def push(self, output: RequestOutput) -> Delta | None:
        """The delta to send now, or None while all there is must be held back.

        A stop string ends the choice at the token that completed it, even where the output has later tokens.
        """
        if self._echo:
            self._start_echo(self._echo, output.prompt_logprobs or [])
            self._echo = None
        self._take_all(output)
        if output.expert_routing:
            self._take_routing(output.expert_routing)
        if self.finish_reason is None and output.finish_reason in ("stop", "length"):
            self._finish(output)
        return self._flush()

    def _start_echo(self, echo: Echo, prompt_logprobs: Sequence[TokenLogprobs]) -> None:
        self._pending.text = echo.text
        if echo.token_ids:
            logprobs = [None, *prompt_logprobs]
            self._pending.positions = list(map(Position, echo.token_ids, echo.text_offsets, logprobs))

    def _take_all(self, output: RequestOutput) -> None:
        end = len(output.token_ids) - 1 if output.stop_token_id is not None else None
        for i, token_id in enumerate(output.token_ids):
            if output.logprobs is not None:
                self._pending.positions.append(Position(token_id, self._offset, output.logprobs[i]))
            self._pending.token_ids.append(token_id)
            self.num_tokens += 1
            if i == end and not self._ending.include_stop:
                return
            text = self._decoder.push([token_id])
            self._offset += len(text)
            self._match(text)
            if self.finish_reason:
                return

    def _take_routing(self, routing: Sequence[list[ExpertIds]]) -> None:
        """Of tokens that were computed as input: not of the last one, nor of any behind a stop string."""
        taken = routing[: self.num_tokens - 1 - self.num_routed]
        self._pending.routing += taken
        self.num_routed += len(taken)

    def _match(self, text: str) -> None:
        if self.num_tokens <= self._ending.min_tokens:
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
            if output.stop_token_id in self._ending.stop_token_ids:
                self._pending.stop_reason = output.stop_token_id

    def _flush(self) -> Delta | None:
        """Tokens wait for text to go with, so that no chunk is empty; the first delta goes at once, without them."""
        if self._pending.text or self.finish_reason:
            delta, self._pending = self._pending, Delta(self.index)
            delta.finish_reason = self.finish_reason
            return delta
        if self._pending.is_first:
            self._pending.is_first = False
            return Delta(self.index, is_first=True)
        return None
