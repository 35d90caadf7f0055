"""Render conversations to token ids by the checkpoint's chat template, or by Mistral's format if it has none."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError

from server.chat import chatml_format, llama3_format
from server.chat.jinja_sandbox import TemplateRefusal
from server.chat.mistral_format import CALLS_MARKER, has_control_tokens, mistral_format
from server.chat.render_budget import MAX_STEPS, TemplateBudgetExceeded
from server.chat.repair import SystemPlace
from server.chat.template_jobs import Rendered, TemplateProbe, compile_template, probe_template, template_variables
from server.chat.turns import Message, PromptTool, Turn
from server.errors import ApiError
from server.tokenizer.tokenizer import Tokenizer, TokenizerError

PRIVATE_USE = range(
    0xE000, 0xF900
)  # Unicode characters without a meaning; two that the conversation does not use serve as marks
NO_KWARGS: Mapping[str, str | bool] = MappingProxyType({})


@dataclass(frozen=True)
class PreparedConversation:
    """A conversation as a template gets it. Its texts have the guard inside each control token's spelling."""

    variables: Mapping[str, Any]
    guard: str
    end_mark: str | None  # behind the final message, if that is to be continued

    def as_json(self) -> str:
        """Return the variables for a rendering in another process."""
        return json.dumps(self.variables)


class ChatTemplate:
    """Chat template of one checkpoint. Control tokens come from the template, never from a message's text.

    system_place: where the system text goes. takes_tools: whether the template writes tools into the prompt.
    is_trusted: whether the template is this server's own.
    """

    def __init__(self, source: str | None, tokenizer: Tokenizer, probe: TemplateProbe | None = None) -> None:
        """`source`: jinja; None for the format that the control tokens tell. `probe`: of this source, made in the
        sandbox; without one the template is tried out in this process. Raises TokenizerError if the template is
        unusable.
        """
        self._tokenizer = tokenizer
        self.is_trusted = source is None
        self.source = source if source is not None else _built_in_format(tokenizer)
        self._bos, self._eos = spellings_of_ends(tokenizer)
        probe = probe_template(self.source, self._bos, self._eos) if probe is None else probe
        if probe.fault is not None:
            raise TokenizerError(f"the chat template {probe.fault}")
        self._template = compile_template(self.source)
        self._inside_spelling = re.compile(f"(?=(?:{tokenizer.special_pattern.pattern})).", re.DOTALL)
        self._beginnings = frozenset(s[:end] for s in tokenizer.special_spellings for end in range(1, len(s)))
        self._max_beginning = max(map(len, self._beginnings), default=0)
        self.system_place = self._system_place(probe)
        self._no_tools: list[object] | None = [] if probe.needs_tools else None
        self.takes_tools = probe.writes_tools and tokenizer.special_token_id(CALLS_MARKER) is not None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, str | bool] = NO_KWARGS,
        tools: Sequence[PromptTool] = (),
    ) -> list[int]:
        """Render a conversation to token ids in this process, with bos if the template writes it.

        The arguments and errors are those of prepare() and text_of().
        """
        conversation = self.prepare(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            kwargs=kwargs,
            tools=tools,
        )
        rendered = self.render_here(conversation, MAX_STEPS)
        return self.encode(conversation, text_of(Rendered(is_too_large=True) if rendered is None else rendered))

    def prepare(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, str | bool] = NO_KWARGS,
        tools: Sequence[PromptTool] = (),
    ) -> PreparedConversation:
        """Return a conversation as the template gets it.

        `kwargs`: further variables of the template. `tools`: only if the template `takes_tools`. Raises ApiError 400.
        """
        turns = [_template_message(message) for message in messages]
        texts: dict[str, Any] = {**kwargs, "messages": turns, "tools": [tool.as_mistral() for tool in tools]}
        guard, end = self._unused_characters(json.dumps(texts, ensure_ascii=False))
        guarded = {name: self._guard_value(value, guard) for name, value in texts.items()}
        if continue_final_message:
            guarded["messages"][-1]["content"] += end
        variables = template_variables(guarded["messages"], self._bos, self._eos)
        variables["add_generation_prompt"] = add_generation_prompt
        variables["continue_final_message"] = continue_final_message
        variables |= {**guarded, "tools": guarded["tools"] or self._no_tools}
        return PreparedConversation(variables, guard, end if continue_final_message else None)

    def render_here(self, conversation: PreparedConversation, max_steps: int) -> Rendered | None:
        """Render in this process; None if that takes more steps."""
        try:
            return Rendered(self._template.render(dict(conversation.variables), max_steps))
        except TemplateRefusal as refusal:
            return Rendered(refusal=str(refusal))
        except TemplateBudgetExceeded:
            return None
        except TemplateError:
            return Rendered(has_failed=True)

    def encode(self, conversation: PreparedConversation, text: str) -> list[int]:
        """Return the token ids of a rendered text. Raises ApiError 400 if its final message cannot be continued."""
        if conversation.end_mark is not None:
            text = _cut_at_mark(text, conversation.end_mark)
        return self._tokenizer.encode_with_specials(text, guard=conversation.guard)

    def _system_place(self, probe: TemplateProbe) -> SystemPlace:
        """Return where the system text goes: some templates refuse system messages, others drop them."""
        if probe.writes_system:
            return "own_message"
        return "last_user_turn" if has_control_tokens(self._tokenizer) else "first_user_turn"

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


def _built_in_format(tokenizer: Tokenizer) -> str:
    """Return the template of a checkpoint that has none: ChatML or Llama 3's if it has their control tokens, else
    Mistral's."""
    if chatml_format.has_chatml_tokens(tokenizer):
        return chatml_format.TEMPLATE
    return llama3_format.TEMPLATE if llama3_format.has_llama3_tokens(tokenizer) else mistral_format(tokenizer)


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


def spellings_of_ends(tokenizer: Tokenizer) -> tuple[str, str]:
    """Return the spellings of bos and of the first eos; "" for one that the tokenizer lacks."""
    ids = tokenizer.bos_id, next(iter(tokenizer.eos_ids), None)
    bos, eos = ("" if i is None else tokenizer.token_bytes(i).decode("utf-8", errors="replace") for i in ids)
    return bos, eos


def text_of(rendered: Rendered) -> str:
    """Return the rendered text. Raises ApiError 400, param "messages", with the template's own message if it refuses
    the conversation."""
    if rendered.text is not None:
        return rendered.text
    if rendered.refusal is not None:
        message = rendered.refusal
    elif rendered.is_too_large:
        message = "The conversation is too large to render with the model's chat template."
    else:
        message = "The model's chat template failed on this conversation."
    raise ApiError(message, param="messages", code="invalid_value")


def _cut_at_mark(rendered: str, end: str) -> str:
    """Cut the rendered text at the end of the final message, so that the model continues it."""
    before, mark, _ = rendered.rpartition(end)
    if not mark:
        message = "The model's chat template does not let the last message be continued."
        raise ApiError(message, param="continue_final_message", code="unsupported_parameter")
    return before
