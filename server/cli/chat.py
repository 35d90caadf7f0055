"""`smoe chat`: a conversation with a running server."""

import readline
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.cli.api_client import ApiClient, ApiError
from server.cli.streamed_answer import StreamedAnswer, read_answer

HELP = """\
/stats     tokens and times of the last answer
/experts   share of each expert in the last minute's tokens, layer by layer
/reset     start a new conversation
/quit      leave; Ctrl-D does too
Ctrl-C stops an answer. The arrow keys recall earlier lines."""
PROMPT = "> "
HISTORY_LENGTH = 1000
BARS = " ▁▂▃▄▅▆▇█"
FULL_BAR = 4.0  # a full bar is this many times the even share


class ChatSession:
    """State of one conversation: its messages and the last answer. Writes to the terminal through `write`."""

    def __init__(
        self,
        client: ApiClient,
        model: str,
        fields: Mapping[str, object],
        system: str | None,
        write: Callable[[str], None],
    ) -> None:
        """`fields` are added to every request. `write` adds no line end."""
        self._client = client
        self._model = model
        self._fields = fields
        self._initial_messages = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, str]] = list(self._initial_messages)
        self._write = write
        self._last_answer: StreamedAnswer | None = None
        self._commands: dict[str, Callable[[], str]] = {
            "/stats": self._stats,
            "/experts": self._experts,
            "/reset": self._reset,
            "/help": lambda: HELP,
        }

    def handle_line(self, line: str, *, with_stats: bool) -> None:
        """Execute a command, or send a message and print its answer."""
        if line.startswith("/"):
            command = self._commands.get(line)
            self._write(f"{command() if command else f'unknown command {line}; /help lists the commands'}\n")
        elif line:
            self._send(line, with_stats=with_stats)

    def _send(self, message: str, *, with_stats: bool) -> None:
        """Send a message and print the answer. If this fails, neither becomes part of the conversation."""
        messages = [*self._messages, {"role": "user", "content": message}]
        options = {"include_usage": True, "continuous_usage_stats": True}
        fields = {**self._fields, "model": self._model, "messages": messages, "stream_options": options}
        try:
            answer = read_answer(self._client.stream("/v1/chat/completions", fields), self._write)
        except ApiError as error:
            self._write(f"\nsmoe: {error}\n")
            return
        self._write("\n")
        self._last_answer = answer
        if answer.text:
            self._messages = [*messages, {"role": "assistant", "content": answer.text}]
        if with_stats:
            self._write(f"[{answer.figures}]\n")

    def _stats(self) -> str:
        return self._last_answer.figures if self._last_answer else "no answer yet"

    def _experts(self) -> str:
        try:
            return "\n".join(expert_lines(self._client.get("/experts?window=60")))
        except ApiError as error:
            return f"smoe: {error}"

    def _reset(self) -> str:
        self._messages = list(self._initial_messages)
        return "a new conversation"


def served_model(client: ApiClient) -> str:
    """Return the first model id of the server. Raises ApiError."""
    try:
        return str(client.get("/v1/models")["data"][0]["id"])
    except (LookupError, TypeError):
        raise ApiError("the server lists no model at /v1/models") from None


def converse(session: ChatSession, history: Path, *, with_stats: bool) -> None:
    """Read lines until the user leaves. `history` keeps the lines of earlier conversations for the arrow keys."""
    if history.is_file():
        readline.read_history_file(history)
    readline.set_history_length(HISTORY_LENGTH)
    try:
        while _read_line(session, with_stats=with_stats):
            pass
    finally:
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(history)


def _read_line(session: ChatSession, *, with_stats: bool) -> bool:
    """Handle one line; return False if the user leaves. Ctrl-C discards the line, also around its answer."""
    try:
        line = input(PROMPT).strip()
        if line == "/quit":
            return False
        session.handle_line(line, with_stats=with_stats)
    except EOFError:
        print()  # noqa: T201  # the shell's prompt gets a line of its own
        return False
    except KeyboardInterrupt:
        print()  # noqa: T201
    return True


def expert_lines(usage: Mapping[str, Any]) -> list[str]:
    """Return a line per layer of GET /experts: a bar per expert (half height: twice the even share), the top expert."""
    layers = usage["layers"]
    if not layers:
        return ["this model has no experts"]
    if not sum(layers[0]["tokens"]):
        return ["no tokens in the last minute"]
    return [_layer_line(layer["layer"], layer["share"]) for layer in layers]


def _layer_line(layer: int, shares: Sequence[float]) -> str:
    heights = (round(share * len(shares) / FULL_BAR * (len(BARS) - 1)) for share in shares)
    bars = "".join(BARS[min(len(BARS) - 1, height)] for height in heights)
    top = max(range(len(shares)), key=shares.__getitem__)
    return f"layer {layer:<3}|{bars}|  most: expert {top}, {shares[top]:.0%}"
