"""`smoe chat`: a conversation with a running server."""

import readline
from collections.abc import Callable, Mapping
from pathlib import Path

from server.cli.api_client import ApiClient, RemoteError
from server.cli.expert_bars import expert_lines
from server.cli.streamed_answer import StreamedAnswer, read_answer

HELP = """\
/stats     tokens and times of the last answer
/experts   which experts took the last minute's tokens, layer by layer
/reset     begin again
/quit      leave; so does Ctrl-D
Ctrl-C stops an answer. The arrow keys bring back what you wrote."""
PROMPT = "> "
HISTORY_LENGTH = 1000


class ChatSession:
    """The conversation so far. `say` writes to the terminal, with no line end of its own."""

    def __init__(
        self,
        remote: ApiClient,
        model: str,
        fields: Mapping[str, object],
        system: str | None,
        say: Callable[[str], None],
    ) -> None:
        """`fields` go into every request."""
        self._remote = remote
        self._model = model
        self._fields = fields
        self._beginning = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, str]] = list(self._beginning)
        self._say = say
        self._last: StreamedAnswer | None = None
        self._commands: dict[str, Callable[[], str]] = {
            "/stats": self._stats,
            "/experts": self._experts,
            "/reset": self._reset,
            "/help": lambda: HELP,
        }

    def line(self, line: str, *, with_stats: bool) -> None:
        """A command, or a message that gets its answer."""
        if line.startswith("/"):
            command = self._commands.get(line)
            self._say(f"{command() if command else f'there is no {line}; /help lists what there is'}\n")
        elif line:
            self._ask(line, with_stats=with_stats)

    def _ask(self, message: str, *, with_stats: bool) -> None:
        """An answer that fails is none, and its question is forgotten."""
        messages = [*self._messages, {"role": "user", "content": message}]
        options = {"include_usage": True, "continuous_usage_stats": True}
        fields = {**self._fields, "model": self._model, "messages": messages, "stream_options": options}
        try:
            answer = read_answer(self._remote.stream("/v1/chat/completions", fields), self._say)
        except RemoteError as error:
            self._say(f"\nsmoe: {error}\n")
            return
        self._say("\n")
        self._last = answer
        if answer.text:
            self._messages = [*messages, {"role": "assistant", "content": answer.text}]
        if with_stats:
            self._say(f"[{answer.figures}]\n")

    def _stats(self) -> str:
        return self._last.figures if self._last else "nothing was answered yet"

    def _experts(self) -> str:
        try:
            return "\n".join(expert_lines(self._remote.get("/experts?window=60")))
        except RemoteError as error:
            return f"smoe: {error}"

    def _reset(self) -> str:
        self._messages = list(self._beginning)
        return "a new conversation"


def served_model(remote: ApiClient) -> str:
    """The first name that the server goes by. Raises RemoteError."""
    try:
        return str(remote.get("/v1/models")["data"][0]["id"])
    except (LookupError, TypeError):
        raise RemoteError("the server names no model at /v1/models") from None


def converse(session: ChatSession, history: Path, *, with_stats: bool) -> None:
    """Reads lines until there are no more, with those of former conversations at hand."""
    if history.is_file():
        readline.read_history_file(history)
    readline.set_history_length(HISTORY_LENGTH)
    try:
        while _takes_a_line(session, with_stats=with_stats):
            pass
    finally:
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(history)


def _takes_a_line(session: ChatSession, *, with_stats: bool) -> bool:
    """Whether another may follow. Ctrl-C throws the line away, also before its answer or just behind it."""
    try:
        line = input(PROMPT).strip()
        if line == "/quit":
            return False
        session.line(line, with_stats=with_stats)
    except EOFError:
        print()  # noqa: T201  # the shell's prompt goes on a line of its own
        return False
    except KeyboardInterrupt:
        print()  # noqa: T201
    return True
