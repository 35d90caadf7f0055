"""Reads one streamed answer and measures it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StreamedAnswer:
    """Text of one answer, and its times as this client measured them."""

    text: str
    num_prompt_tokens: int
    num_tokens: int
    first_token_s: float | None
    total_s: float
    finish_reason: str | None  # None: stopped by Ctrl-C
    seed: int | None

    @property
    def figures(self) -> str:
        """Tokens, times, finish reason and seed in one line."""
        if self.first_token_s is None:
            return "no tokens"
        decode_s = self.total_s - self.first_token_s
        pace = f", {(self.num_tokens - 1) / decode_s:.0f} tokens/s" if self.num_tokens > 1 and decode_s > 0 else ""
        return (
            f"{self.num_prompt_tokens} + {self.num_tokens} tokens, first after {1000 * self.first_token_s:.0f} ms"
            f"{pace}, {self.finish_reason or 'stopped'}, seed {self.seed}"
        )


def read_answer(
    chunks: Iterable[dict[str, Any]],
    write: Callable[[str], None],
    write_choice: Callable[[dict[str, Any]], None] | None = None,
) -> StreamedAnswer:
    """Pass each piece of text to `write` and return the answer. Ctrl-C ends the answer, not the program.

    `write_choice`: gets the choices of the chunks instead.
    """
    started_s = time.monotonic()
    first_s, finish_reason, seed = None, None, None
    usage: dict[str, Any] = {}
    pieces: list[str] = []
    try:
        for chunk in chunks:
            usage, seed = chunk.get("usage") or usage, chunk.get("seed", seed)
            for choice in chunk["choices"]:
                piece = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
                finish_reason = choice["finish_reason"] or finish_reason
                if piece:
                    first_s = first_s or time.monotonic()
                    pieces.append(piece)
                if write_choice is not None:
                    write_choice(choice)
                elif piece:
                    write(piece)
    except KeyboardInterrupt:
        finish_reason = None
    return StreamedAnswer(
        text="".join(pieces),
        num_prompt_tokens=usage.get("prompt_tokens", 0),
        num_tokens=usage.get("completion_tokens", 0),
        first_token_s=first_s and first_s - started_s,
        total_s=time.monotonic() - started_s,
        finish_reason=finish_reason,
        seed=seed,
    )
