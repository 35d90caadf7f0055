"""Conversations to token ids: the checkpoint's own chat template, or Mistral's format where it has none."""

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from jinja2 import TemplateError

from server.errors import ApiError
from server.repair import Message, SystemPlace
from server.template_sandbox import SandboxedTemplate, TemplateRefusal, TemplateRunsAway
from server.tokenizer import Tokenizer, TokenizerError

MAX_TEMPLATE_CHARS = 1 << 20
PRIVATE_USE = range(0xE000, 0xF900)  # Unicode's characters without a meaning; two that no one used serve as marks
SYSTEM_PROBE = "Be brief."
NO_KWARGS: Mapping[str, str | bool] = MappingProxyType({})

MISTRAL_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{% if not loop.first %}{{ raise_exception('the system message must come first') }}{% endif %}"
    "{% if loop.last %}{{ raise_exception('a message of the user must follow the system message') }}{% endif %}"
    "{% elif message['role'] == 'user' %}"
    "{% if loop.previtem is defined and loop.previtem['role'] == 'user' %}"
    "{{ raise_exception('roles must alternate: user, assistant, user, ...') }}{% endif %}"
    "{{ '[INST]' + START }}"
    "{% if messages[0]['role'] == 'system' and HAS_SYSTEM %}{{ messages[0]['content'] + '\\n\\n' }}{% endif %}"
    "{{ message['content'] + END + '[/INST]' }}"
    "{% else %}"
    "{% if loop.previtem is not defined or loop.previtem['role'] != 'user' %}"
    "{{ raise_exception('roles must alternate: user, assistant, user, ...') }}{% endif %}"
    "{{ START + message['content'] + eos_token }}"
    "{% endif %}"
    "{% endfor %}"
)


class ChatTemplate:
    """One checkpoint's way to write a conversation down. Control tokens come from the template, never from a text."""

    def __init__(self, source: str | None, tokenizer: Tokenizer) -> None:
        """`source`: jinja; None for Mistral's own format. Raises TokenizerError where it is no usable template."""
        self._tokenizer = tokenizer
        self.source = source if source is not None else _mistral_format(tokenizer)
        self._template = _compiled(self.source)
        self._inside_spelling = re.compile(f"(?=(?:{tokenizer.special_pattern.pattern})).", re.DOTALL)
        self._beginnings = frozenset(s[:end] for s in tokenizer.special_spellings for end in range(1, len(s)))
        self._max_beginning = max(map(len, self._beginnings), default=0)
        self._try_out()
        self.system_place = self._system_place()

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, str | bool] = NO_KWARGS,
    ) -> list[int]:
        """The conversation's ids, bos included where the template writes it. `kwargs` are more of its variables.

        Raises ApiError 400, param "messages": the template's own words where it refuses the conversation, else that the
        template failed on it.
        """
        given = [value for value in kwargs.values() if isinstance(value, str)]
        guard, end = self._unused_characters([*(message.text for message in messages), *given])
        turns = [{"role": message.template_role, "content": self._guarded(message.text, guard)} for message in messages]
        if continue_final_message:
            turns[-1]["content"] += end
        variables = self._variables(turns, add_generation_prompt, continue_final_message)
        texts = {name: self._guarded(value, guard) for name, value in kwargs.items() if isinstance(value, str)}
        rendered = self._rendered({**variables, **kwargs, **texts})
        if continue_final_message:
            rendered = _cut_at(rendered, end)
        return self._tokenizer.encode_with_specials(rendered, guard=guard)

    def _try_out(self) -> None:
        """Renders the simplest conversation, so that a template that can never work is found at the start."""
        try:
            self._template.render(self._variables([{"role": "user", "content": "Hello"}], True, False))
        except TemplateRefusal:
            return  # it may insist on something; each conversation will be told
        except (TemplateRunsAway, TemplateError) as error:
            raise TokenizerError(f"the chat template fails on a simple conversation: {error}") from None

    def _system_place(self) -> SystemPlace:
        """Where the system's text goes. Found by trying: some templates refuse a system message, others lose it."""
        turns = [{"role": "system", "content": SYSTEM_PROBE}, {"role": "user", "content": "Hello"}]
        try:
            is_taken = SYSTEM_PROBE in self._template.render(self._variables(turns, True, False))
        except (TemplateRefusal, TemplateRunsAway, TemplateError):
            is_taken = False
        if is_taken:
            return "own_message"
        return "last_user_turn" if _has_control_inst(self._tokenizer) else "first_user_turn"

    def _variables(
        self, turns: list[dict[str, str]], add_generation_prompt: bool, continue_final_message: bool
    ) -> dict[str, object]:
        return {
            "messages": turns,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "bos_token": self._spelling_of(self._tokenizer.bos_id),
            "eos_token": self._spelling_of(next(iter(self._tokenizer.eos_ids), None)),
            "tools": None,
            "documents": None,
        }

    def _rendered(self, variables: dict[str, object]) -> str:
        try:
            return self._template.render(variables)
        except TemplateRefusal as refusal:
            raise ApiError(str(refusal), param="messages", code="invalid_value") from None
        except TemplateRunsAway:
            message = "The conversation is more than the model's chat template can render here."
            raise ApiError(message, param="messages", code="invalid_value") from None
        except TemplateError:
            message = "The model's chat template failed on this conversation."
            raise ApiError(message, param="messages", code="invalid_value") from None

    def _spelling_of(self, token_id: int | None) -> str:
        return "" if token_id is None else self._tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")

    def _unused_characters(self, texts: Iterable[str]) -> tuple[str, str]:
        """Two private-use characters that stand nowhere in the conversation or the template."""
        used = set(self.source).union(*texts)
        unused = [character for character in map(chr, PRIVATE_USE) if character not in used]
        if len(unused) < 2:
            message = "The messages use every private-use character; this server needs two of them."
            raise ApiError(message, param="messages", code="invalid_value")
        return unused[0], unused[1]

    def _guarded(self, text: str, guard: str) -> str:
        """The text with the guard inside each spelling of a control token, also where one only begins at its end."""
        guarded = text
        for length in range(1, min(self._max_beginning, len(text)) + 1):
            start = len(text) - length
            if text[start:] in self._beginnings:
                guarded = guarded[: start + 1] + guard + guarded[start + 1 :]
        return self._inside_spelling.sub(lambda match: match.group() + guard, guarded)


def _compiled(source: str) -> SandboxedTemplate:
    if len(source) > MAX_TEMPLATE_CHARS:
        raise TokenizerError(f"the chat template has more than {MAX_TEMPLATE_CHARS} characters")
    try:
        return SandboxedTemplate(source)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise TokenizerError(f"the chat template is not valid jinja (line {line})") from None
    except TemplateRunsAway as error:
        raise TokenizerError(f"the chat template cannot be used: {error}") from None


def _mistral_format(tokenizer: Tokenizer) -> str:
    """Version 1 where [INST] is plain text: `[INST] user [/INST] answer`, the system text in the first user turn.

    Where [INST] is a control token the texts stand between such tokens, and the system text is in the last user turn.
    """
    if _has_control_inst(tokenizer):
        has_system = "(loop.last or loop.index0 == messages | length - 2)"
        start, end = "" if tokenizer.prefixes_each_text else " ", ""
    else:
        has_system, start, end = "loop.index0 == 1", " ", " "
    template = MISTRAL_TEMPLATE.replace("HAS_SYSTEM", has_system)
    return template.replace("START", repr(start)).replace("END", repr(end))


def _has_control_inst(tokenizer: Tokenizer) -> bool:
    return tokenizer.id_of_special("[INST]") is not None


def _cut_at(rendered: str, end: str) -> str:
    """The rendered text up to the end of the final message, so that the model goes on with it."""
    before, mark, _ = rendered.rpartition(end)
    if not mark:
        message = "The model's chat template does not let the last message be continued."
        raise ApiError(message, param="continue_final_message", code="unsupported_parameter")
    return before
