"""`smoe chat`: a conversation with a running server."""

import readline
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.cli.api_client import ApiClient, ApiError
from server.cli.colours import WITHOUT_COLOURS, Colours
from server.cli.errors import report_error
from server.cli.streamed_answer import StreamedAnswer, read_answer

HELP = """\
/stats     tokens and times of the last answer
/experts   share of each expert in the last minute's tokens, layer by layer
/reset     start a new conversation
/quit      leave; Ctrl-D does too
A pasted text is one message, whatever its lines; \"\"\" begins and ends a message of several lines.
Ctrl-C stops an answer. The arrow keys recall earlier lines."""
PROMPT, CONTINUED = "> ", "... "
QUOTES = '"""'
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
        note: Callable[[str], None] | None = None,
    ) -> None:
        """`fields` are added to every request. `write` adds no line end; `note` writes what is no answer."""
        self._client = client
        self._model = model
        self._fields = fields
        self._initial_messages = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, str]] = list(self._initial_messages)
        self._write = write
        self._note = note or write
        self._session_id = new_session_id()
        self._last_answer: StreamedAnswer | None = None
        self.has_failed = False  # a request has failed
        self._commands: dict[str, Callable[[], str]] = {
            "/stats": self._stats,
            "/experts": self._experts,
            "/reset": self._reset,
            "/help": lambda: HELP,
        }

    def handle_line(self, line: str, *, with_stats: bool) -> None:
        """Execute a command, or send a message and print its answer."""
        if line.startswith("/") and "\n" not in line:
            command = self._commands.get(line)
            self._note(f"{command() if command else f'unknown command {line}; /help lists the commands'}\n")
        elif line:
            self.send(line, with_stats=with_stats)

    def send(self, message: str, *, with_stats: bool) -> None:
        """Send a message and print the answer. If this fails, neither becomes part of the conversation."""
        messages = [*self._messages, {"role": "user", "content": message}]
        options = {"include_usage": True, "continuous_usage_stats": True}
        fields = {**self._fields, "model": self._model, "messages": messages, "stream_options": options}
        try:
            answer = read_answer(self._client.stream("/v1/chat/completions", fields, self._headers), self._write)
        except ApiError as error:
            self.has_failed = True
            self._write("\n" if sys.stdin.isatty() else "")
            report_error(error)
            return
        self._write("\n")
        self._last_answer = answer
        if answer.text:
            self._messages = [*messages, {"role": "assistant", "content": answer.text}]
        if with_stats:
            self._note(f"[{answer.figures}]\n")

    @property
    def _headers(self) -> dict[str, str]:
        """Headers that name the conversation, so that a proxy sends all of it to one replica and its prefix cache."""
        return {"X-Session-Id": self._session_id}

    def _stats(self) -> str:
        return self._last_answer.figures if self._last_answer else "no answer yet"

    def _experts(self) -> str:
        try:
            return "\n".join(expert_lines(self._client.get("/experts?window=60")))
        except ApiError as error:
            return f"smoe: {error}"

    def _reset(self) -> str:
        self._messages = list(self._initial_messages)
        self._session_id = new_session_id()
        return "a new conversation"


def new_session_id() -> str:
    """Return a random name of one conversation."""
    return secrets.token_hex(16)


def served_model(client: ApiClient) -> str:
    """Return the first model id of the server. Raises ApiError."""
    try:
        return str(client.get("/v1/models")["data"][0]["id"])
    except (LookupError, TypeError):
        raise ApiError("the server lists no model at /v1/models") from None


def answer_lines(session: ChatSession, lines: Iterable[str], *, with_stats: bool) -> bool:
    """Answer each line of a file or a pipe, without prompts. Return whether no request failed."""
    source = iter(lines)
    reader = MessageReader(lambda _: _next_line(source))
    while (message := reader.read()) is not None and message != "/quit":
        session.handle_line(message, with_stats=with_stats)
    return not session.has_failed


def converse(
    session: ChatSession, history: Path, colours: Colours, *, with_stats: bool, is_plain: bool = False
) -> None:
    """Read messages until the user leaves. `history` keeps the lines of earlier chats for the arrow keys.

    `is_plain`: the terminal obeys no control sequences, so that pasted lines cannot be told from typed ones.
    """
    reader = MessageReader(input, colours)
    if not is_plain:
        readline.parse_and_bind("set enable-bracketed-paste on")  # Python turns it off
    if history.is_file():
        readline.read_history_file(history)
    readline.set_history_length(HISTORY_LENGTH)
    try:
        while _handle_message(session, reader, with_stats=with_stats):
            pass
    finally:
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(history)


class MessageReader:
    """Reads messages: a line each, or the lines between two triple quotes."""

    def __init__(self, read_line: Callable[[str], str], colours: Colours = WITHOUT_COLOURS) -> None:
        """`read_line` takes the prompt and raises EOFError at the end of the input."""
        self._read_line = read_line
        self._prompt, self._continued = colours.prompt(PROMPT), colours.prompt(CONTINUED)

    def read(self) -> str | None:
        """Return the next message without blanks around it; None at the end of the input."""
        try:
            line = self._read_line(self._prompt).strip()
            if not line.startswith(QUOTES):
                return line
            return self._rest(line.removeprefix(QUOTES)).strip()
        except EOFError:
            return None

    def _rest(self, text: str) -> str:
        while QUOTES not in text:
            text += "\n" + self._read_line(self._continued)
        return text.partition(QUOTES)[0]


def _next_line(lines: Iterator[str]) -> str:
    for line in lines:
        return line.rstrip("\n")
    raise EOFError


def _handle_message(session: ChatSession, reader: MessageReader, *, with_stats: bool) -> bool:
    """Handle one message; return False if the user leaves. Ctrl-C discards it, also around its answer."""
    try:
        message = reader.read()
        if message is None:
            print()  # noqa: T201  # the shell's prompt gets a line of its own
        if message is None or message == "/quit":
            return False
        session.handle_line(message, with_stats=with_stats)
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
