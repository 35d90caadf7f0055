"""Render conversations to token ids by the checkpoint's chat template, or by Mistral's format if it has none."""

import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError

from server.chat.jinja_sandbox import SandboxedTemplate, TemplateRefusal
from server.chat.mistral_format import CALLS_MARKER, has_control_tokens, mistral_format
from server.chat.render_budget import TemplateBudgetExceeded
from server.chat.repair import SystemPlace
from server.chat.turns import Message, PromptTool, Turn
from server.errors import ApiError
from server.strict_json import JsonValue
from server.tokenizer.tokenizer import Tokenizer, TokenizerError

MAX_TEMPLATE_CHARS = 1 << 20
PRIVATE_USE = range(
    0xE000, 0xF900
)  # Unicode characters without a meaning; two that the conversation does not use serve as marks
SYSTEM_PROBE = "Be brief."
TOOL_PROBE = "probe_of_tools"
PROBE_TOOLS: list[JsonValue] = [
    {"type": "function", "function": {"name": TOOL_PROBE, "description": "", "parameters": {}}}
]
NO_KWARGS: Mapping[str, str | bool] = MappingProxyType({})


class ChatTemplate:
    """Chat template of one checkpoint. Control tokens come from the template, never from a message's text.

    system_place: where the system text goes. takes_tools: whether the template writes tools into the prompt.
    """

    def __init__(self, source: str | None, tokenizer: Tokenizer) -> None:
        """`source`: jinja; None for Mistral's own format. Raises TokenizerError if the template is unusable."""
        self._tokenizer = tokenizer
        self.source = source if source is not None else mistral_format(tokenizer)
        self._template = _compile(self.source)
        self._inside_spelling = re.compile(f"(?=(?:{tokenizer.special_pattern.pattern})).", re.DOTALL)
        self._beginnings = frozenset(s[:end] for s in tokenizer.special_spellings for end in range(1, len(s)))
        self._max_beginning = max(map(len, self._beginnings), default=0)
        self._check_renders()
        self.system_place = self._detect_system_place()
        self.takes_tools = self._detect_tools()

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, str | bool] = NO_KWARGS,
        tools: Sequence[PromptTool] = (),
    ) -> list[int]:
        """Render a conversation to token ids, with bos if the template writes it.

        `kwargs`: further variables of the template. `tools`: only if the template `takes_tools`.

        Raises ApiError 400, param "messages", with the template's own message if it refuses the conversation.
        """
        turns = [_template_message(message) for message in messages]
        texts: dict[str, Any] = {**kwargs, "messages": turns, "tools": [tool.as_mistral() for tool in tools]}
        guard, end = self._unused_characters(json.dumps(texts, ensure_ascii=False))
        guarded = {name: self._guard_value(value, guard) for name, value in texts.items()}
        if continue_final_message:
            guarded["messages"][-1]["content"] += end
        variables = self._variables(guarded["messages"], add_generation_prompt, continue_final_message)
        rendered = self._render_text({**variables, **guarded, "tools": guarded["tools"] or None})
        if continue_final_message:
            rendered = _cut_at_mark(rendered, end)
        return self._tokenizer.encode_with_specials(rendered, guard=guard)

    def _check_renders(self) -> None:
        """Render the simplest conversation, so that a template that can never work is refused at start-up.

        A template that fails without tools may have been written for conversations with tools only.
        """
        variables = self._variables([{"role": "user", "content": "Hello"}], True, False)
        faults: list[TemplateBudgetExceeded | TemplateError] = []
        for tools in (None, PROBE_TOOLS):
            try:
                self._template.render({**variables, "tools": tools})
            except TemplateRefusal:
                return  # the template may have rules of its own; its refusal reaches each client
            except (TemplateBudgetExceeded, TemplateError) as error:
                faults.append(error)
            else:
                return
        raise TokenizerError(f"the chat template fails on a simple conversation: {faults[0]}")

    def _detect_system_place(self) -> SystemPlace:
        """Find where the system text goes by rendering one: some templates refuse system messages, others drop them."""
        turns = [{"role": "system", "content": SYSTEM_PROBE}, {"role": "user", "content": "Hello"}]
        try:
            is_taken = SYSTEM_PROBE in self._template.render(self._variables(turns, True, False))
        except (TemplateRefusal, TemplateBudgetExceeded, TemplateError):
            is_taken = False
        if is_taken:
            return "own_message"
        return "last_user_turn" if has_control_tokens(self._tokenizer) else "first_user_turn"

    def _detect_tools(self) -> bool:
        """Return whether the model can call tools: it has a token for calls, and the template writes the tools."""
        if self._tokenizer.special_token_id(CALLS_MARKER) is None:
            return False
        variables = self._variables([{"role": "user", "content": "Hello"}], True, False)
        try:
            return TOOL_PROBE in self._template.render({**variables, "tools": PROBE_TOOLS})
        except (TemplateRefusal, TemplateBudgetExceeded, TemplateError):
            return False

    def _variables(
        self, turns: Sequence[Mapping[str, object]], add_generation_prompt: bool, continue_final_message: bool
    ) -> dict[str, object]:
        return {
            "messages": turns,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "bos_token": self._spelling(self._tokenizer.bos_id),
            "eos_token": self._spelling(next(iter(self._tokenizer.eos_ids), None)),
            "tools": None,
            "documents": None,
        }

    def _render_text(self, variables: dict[str, object]) -> str:
        try:
            return self._template.render(variables)
        except TemplateRefusal as refusal:
            raise ApiError(str(refusal), param="messages", code="invalid_value") from None
        except TemplateBudgetExceeded:
            message = "The conversation is too large to render with the model's chat template."
            raise ApiError(message, param="messages", code="invalid_value") from None
        except TemplateError:
            message = "The model's chat template failed on this conversation."
            raise ApiError(message, param="messages", code="invalid_value") from None

    def _spelling(self, token_id: int | None) -> str:
        return "" if token_id is None else self._tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")

    def _unused_characters(self, texts: str) -> tuple[str, str]:
        """Find two private-use characters that neither the conversation nor the template contains."""
        used = set(self.source).union(texts)
        unused = [character for character in map(chr, PRIVATE_USE) if character not in used]
        if len(unused) < 2:
            message = "The messages use every private-use character; this server needs two of them."
            raise ApiError(message, param="messages", code="invalid_value")
        return unused[0], unused[1]

    def _guard_value(self, value: Any, guard: str) -> Any:
        """Copy a JSON value with the guard inside each control token's spelling, in keys as well."""
        if isinstance(value, str):
            return self._guard_text(value, guard)
        if isinstance(value, list):
            return [self._guard_value(item, guard) for item in value]
        if isinstance(value, dict):
            return {self._guard_text(key, guard): self._guard_value(item, guard) for key, item in value.items()}
        return value

    def _guard_text(self, text: str, guard: str) -> str:
        """Put the guard inside each control token's spelling, also inside one that only begins at the text's end."""
        guarded = text
        for length in range(1, min(self._max_beginning, len(text)) + 1):
            start = len(text) - length
            if text[start:] in self._beginnings:
                guarded = guarded[: start + 1] + guard + guarded[start + 1 :]
        return self._inside_spelling.sub(lambda match: match.group() + guard, guarded)


def _template_message(message: Message) -> dict[str, Any]:
    """Convert a message for templates: Hugging Face's keys, and `calls` and `result` as Mistral writes them."""
    turn: dict[str, Any] = {"role": message.template_role, "content": message.text}
    if message.calls:
        functions = [(call.id, {"name": call.name, "arguments": call.arguments}) for call in message.calls]
        turn["tool_calls"] = [{"id": i, "type": "function", "function": function} for i, function in functions]
        turn["calls"] = [call.as_mistral() for call in message.calls]
    if message.template_role == "tool":
        turn["tool_call_id"] = message.call_id
        turn["result"] = Turn("tool", message.text, (), message.call_id).result()
    return turn


def _compile(source: str) -> SandboxedTemplate:
    if len(source) > MAX_TEMPLATE_CHARS:
        raise TokenizerError(f"the chat template has more than {MAX_TEMPLATE_CHARS} characters")
    try:
        return SandboxedTemplate(source)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise TokenizerError(f"the chat template is not valid jinja (line {line})") from None
    except TemplateBudgetExceeded as error:
        raise TokenizerError(f"the chat template cannot be used: {error}") from None


def _cut_at_mark(rendered: str, end: str) -> str:
    """Cut the rendered text at the end of the final message, so that the model continues it."""
    before, mark, _ = rendered.rpartition(end)
    if not mark:
        message = "The model's chat template does not let the last message be continued."
        raise ApiError(message, param="continue_final_message", code="unsupported_parameter")
    return before
