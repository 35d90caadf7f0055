"""One conversation with a running server, and the commands inside it."""

import secrets
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from server.cli.chat import saved
from server.cli.chat.expert_bars import expert_lines
from server.cli.chat.sampling import described, with_setting
from server.cli.chat.surprise import write_painted
from server.cli.client.api_client import ApiClient, ApiError
from server.cli.client.streamed_answer import StreamedAnswer, read_answer
from server.cli.colours import WITHOUT_COLOURS, Colours
from server.cli.errors import report_error

HELP = """\
/again            answer the last message again
/k N              use N experts per token; /k alone: the server's number
/set NAME VALUE   set temperature, top_p, max_tokens, seed ...; /set alone lists, /set NAME forgets
/system TEXT      set the system message; /system alone removes it
/tokens           colour the next answers by how surprising each token is; again: stop
/stats            tokens and times of the last answer
/experts          share of each expert in the last minute's tokens, layer by layer
/save FILE        write the conversation to a new file; /load FILE reads it back
/reset            start a new conversation
/quit             leave; Ctrl-D does too
A pasted text is one message, whatever its lines; \"\"\" begins and ends a message of several lines.
Ctrl-C stops an answer. The arrow keys recall earlier lines."""


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
        colours: Colours = WITHOUT_COLOURS,
    ) -> None:
        """`fields` are added to every request. `write` adds no line end; `note` writes what is no answer."""
        self._client = client
        self._model = model
        self._fields = dict(fields)
        self._colours = colours
        self._is_painted = False  # answers are coloured by surprise
        self._initial_messages: list[saved.Message] = []
        self._messages: list[saved.Message] = []
        self._set_system(system or "")
        self._write = write
        self._note = note or write
        self._session_id = new_session_id()
        self._last_answer: StreamedAnswer | None = None
        self.has_failed = False  # a request has failed
        self._commands: dict[str, Callable[[str], str]] = {
            "/k": lambda text: self._set(f"experts_per_token {text}"),
            "/set": self._set,
            "/system": self._set_system,
            "/tokens": self._toggle_tokens,
            "/stats": self._stats,
            "/experts": self._experts,
            "/save": lambda text: f"saved as {saved.save(text, self._messages)}",
            "/load": self._load,
            "/reset": self._reset,
            "/help": lambda _: HELP,
        }

    def handle_line(self, line: str, *, with_stats: bool) -> None:
        """Execute a command, or send a message and print its answer."""
        if line.startswith("/") and "\n" not in line:
            self._execute(*line.split(" ", 1), with_stats=with_stats)
        elif line:
            self.send(line, with_stats=with_stats)

    def _execute(self, name: str, argument: str = "", *, with_stats: bool) -> None:
        if name == "/again":
            self._answer_again(with_stats=with_stats)
            return
        command = self._commands.get(name)
        try:
            said = command(argument.strip()) if command else f"unknown command {name}; /help lists the commands"
        except (ValueError, saved.SavedChatError) as error:
            said = str(error)
        self._note(f"{said}\n")

    def _answer_again(self, *, with_stats: bool) -> None:
        """Send the last message again, in place of its answer."""
        if len(self._messages) < 2 or self._messages[-2]["role"] != "user":
            self._note("no message was answered yet\n")
            return
        before = self._messages
        self._messages = before[:-2]
        self.send(before[-2]["content"], with_stats=with_stats)
        if len(self._messages) < len(before):  # it failed, or was stopped before its first token
            self._messages = before

    def send(self, message: str, *, with_stats: bool) -> None:
        """Send a message and print the answer. If this fails, neither becomes part of the conversation."""
        messages = [*self._messages, {"role": "user", "content": message}]
        options = {"include_usage": True, "continuous_usage_stats": True}
        fields = {**self._fields, "model": self._model, "messages": messages, "stream_options": options}
        paint = partial(write_painted, colours=self._colours, stream=sys.stdout) if self._is_painted else None
        if self._is_painted:
            fields["logprobs"] = True
        try:
            chunks = self._client.stream("/v1/chat/completions", fields, self._headers)
            answer = read_answer(chunks, self._write, paint)
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

    def _set(self, text: str) -> str:
        fields = with_setting(self._fields, text) if text else self._fields
        wanted = fields.get("experts_per_token")
        if isinstance(wanted, int) and wanted != self._fields.get("experts_per_token"):
            self._check_experts(wanted)
        self._fields = fields
        return described(self._fields)

    def _check_experts(self, wanted: int) -> None:
        """Raise ValueError if the model has fewer experts. A server that does not say how many checks it later."""
        try:
            num_experts = len(self._client.get("/experts?window=60")["layers"][0]["tokens"])
        except (ApiError, LookupError, TypeError):
            return
        if wanted > num_experts:
            raise ValueError(f"experts_per_token should be at most {num_experts}")

    def _set_system(self, text: str) -> str:
        """Replace the system message, also that of the running conversation."""
        self._initial_messages = [{"role": "system", "content": text}] if text else []
        self._messages = [*self._initial_messages, *(one for one in self._messages if one["role"] != "system")]
        return "the system message holds from the next message on" if text else "no system message"

    def _toggle_tokens(self, _: str) -> str:
        self._is_painted = not self._is_painted
        marks = "yellow below 50 %, red below 10 %" if self._colours.is_on else "probabilities below 10 % in braces"
        return f"tokens by probability: {marks}" if self._is_painted else "answers without marks"

    def _load(self, text: str) -> str:
        self._messages = saved.load(text)
        self._session_id = new_session_id()
        return f"{len(self._messages)} messages; go on, or /again"

    def _stats(self, _: str) -> str:
        return self._last_answer.figures if self._last_answer else "no answer yet"

    def _experts(self, _: str) -> str:
        try:
            return "\n".join(expert_lines(self._client.get("/experts?window=60")))
        except ApiError as error:
            return f"smoe: {error}"

    def _reset(self, _: str) -> str:
        self._messages = list(self._initial_messages)
        self._session_id = new_session_id()
        return "a new conversation"


def new_session_id() -> str:
    """Return a random name of one conversation."""
    return secrets.token_hex(16)


def served_model(client: ApiClient, name: str | None = None) -> str:
    """Return the id of the model or LoRA adapter `name`, or of the server's first model. Raises ApiError."""
    return str(model_entry(client, name)["id"])


def model_entry(client: ApiClient, name: str | None = None) -> dict[str, Any]:
    """Return what /v1/models says of the model or LoRA adapter `name`, or of the first model. Raises ApiError."""
    try:
        entries: dict[str, dict[str, Any]] = {entry["id"]: entry for entry in client.get("/v1/models")["data"]}
        first = next(iter(entries))
    except (LookupError, TypeError, StopIteration):
        raise ApiError("the server lists no model at /v1/models") from None
    if name is not None and name not in entries:
        raise ApiError(f"the server has no model {name}, but {', '.join(map(str, entries))}")
    return entries[first if name is None else name]
