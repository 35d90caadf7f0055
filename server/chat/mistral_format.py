"""Mistral's own prompt formats as jinja templates, for checkpoints without a template."""

from server.tokenizer.tokenizer import Tokenizer

CALLS_MARKER = "[TOOL_CALLS]"  # start of an answer that calls tools
SEPARATE_CALLS = 11  # from this version on a call is no part of a list, but text between control tokens
RESULT_AS_JSON = "START + message['result'] | tojson"

TEMPLATE = (
    "{{ bos_token }}"
    "{% set last = namespace(user=-1) %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{% set last.user = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for message in messages %}"
    "{% set before = loop.previtem['role'] if loop.previtem is defined else 'none' %}"
    "{% if message['role'] == 'system' %}"
    "{% if not loop.first %}{{ raise_exception('the system message must come first') }}{% endif %}"
    "{% if loop.last %}{{ raise_exception('a message of the user must follow the system message') }}{% endif %}"
    "{{ SYSTEM_TURN }}"
    "{% elif message['role'] == 'user' %}"
    "{% if before == 'user' %}"
    "{{ raise_exception('roles must alternate: user, assistant, user, ...') }}{% endif %}"
    "{% if tools and WITH_TOOLS %}{{ '[AVAILABLE_TOOLS]' + START + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST]' + START }}"
    "{% if messages[0]['role'] == 'system' and WITH_SYSTEM %}{{ messages[0]['content'] + '\\n\\n' }}{% endif %}"
    "{{ message['content'] + END + '[/INST]' }}"
    "{% elif message['role'] == 'tool' %}"
    "{{ '[TOOL_RESULTS]' + TOOL_TEXT + '[/TOOL_RESULTS]' }}"
    "{% else %}"
    "{% if before not in ('user', 'tool') %}"
    "{{ raise_exception('roles must alternate: user, assistant, user, ...') }}{% endif %}"
    "{% if message['content'] or not message['calls'] %}{{ START + ANSWER }}{% endif %}"
    "{% if message['calls'] %}{{ '[TOOL_CALLS]' + START + message['calls'] | tojson }}{% endif %}"
    "{{ eos_token }}"
    "{% endif %}"
    "{% endfor %}"
)


def mistral_format(tokenizer: Tokenizer) -> str:
    """Return the jinja template of the tokenizer's version.

    Version 1, where [INST] is plain text: `[INST] user [/INST] answer`, with the system text in the first user turn.
    Version 3, where [INST] is a control token: the texts are between such tokens, the system text is in the last user
    turn and the tools are in front of it. In byte-level vocabularies (Mistral Nemo) no space follows a control token.
    From version 7 on the system text has control tokens of its own, and the result of a tool is plain text.
    Versions 1, and 11 and later, whose calls this server does not read, have no tools here:
    server/tools/prompt_emulation.py writes them as text.
    """
    template = TEMPLATE
    for word, meaning in _words(tokenizer).items():  # START comes after the words whose meanings contain it
        template = template.replace(word, meaning)
    return template


def _words(tokenizer: Tokenizer) -> dict[str, str]:
    """Return what the words in capitals in TEMPLATE stand for."""
    if not has_control_tokens(tokenizer):
        words = {"WITH_SYSTEM": "loop.index0 == 1", "WITH_TOOLS": "false", "ANSWER": "message['content']"}
        return words | {"SYSTEM_TURN": "''", "TOOL_TEXT": RESULT_AS_JSON, "START": "' '", "END": "' '"}
    has_system_tokens = tokenizer.special_token_id("[SYSTEM_PROMPT]") is not None
    version = tokenizer.version or 3
    words = _words_of_version_7(version) if version >= 7 and has_system_tokens else _words_of_version_3()
    start = "" if tokenizer.prefixes_each_text or tokenizer.is_byte_level else " "
    return words | {"ANSWER": "message['content'].rstrip(' ')", "START": repr(start), "END": "''"}


def _words_of_version_3() -> dict[str, str]:
    place = "loop.index0 == last.user"
    return {"WITH_SYSTEM": place, "WITH_TOOLS": place, "SYSTEM_TURN": "''", "TOOL_TEXT": RESULT_AS_JSON}


def _words_of_version_7(version: int) -> dict[str, str]:
    return {
        "WITH_SYSTEM": "false",
        "WITH_TOOLS": "loop.index0 == last.user" if version < SEPARATE_CALLS else "false",
        "SYSTEM_TURN": "'[SYSTEM_PROMPT]' + START + message['content'] + '[/SYSTEM_PROMPT]'",
        "TOOL_TEXT": "START + message['tool_call_id'] + '[TOOL_CONTENT]' + START + message['content']",
    }


def has_control_tokens(tokenizer: Tokenizer) -> bool:
    """Return whether turns are marked by control tokens, which no text can spell."""
    return tokenizer.special_token_id("[INST]") is not None
