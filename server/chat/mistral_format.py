"""Mistral's own prompt formats as jinja templates, for checkpoints without a template."""

from server.tokenizer.tokenizer import Tokenizer

CALLS_MARKER = "[TOOL_CALLS]"  # start of an answer that calls tools

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
    "{% elif message['role'] == 'user' %}"
    "{% if before == 'user' %}"
    "{{ raise_exception('roles must alternate: user, assistant, user, ...') }}{% endif %}"
    "{% if tools and WITH_TOOLS %}{{ '[AVAILABLE_TOOLS]' + START + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST]' + START }}"
    "{% if messages[0]['role'] == 'system' and WITH_SYSTEM %}{{ messages[0]['content'] + '\\n\\n' }}{% endif %}"
    "{{ message['content'] + END + '[/INST]' }}"
    "{% elif message['role'] == 'tool' %}"
    "{{ '[TOOL_RESULTS]' + START + message['result'] | tojson + '[/TOOL_RESULTS]' }}"
    "{% else %}"
    "{% if before not in ('user', 'tool') %}"
    "{{ raise_exception('roles must alternate: user, assistant, user, ...') }}{% endif %}"
    "{% if message['content'] or not message['calls'] %}{{ START + CONTENT }}{% endif %}"
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
    Version 1 has no tools: server/tools/prompt_emulation.py writes them as text.
    """
    if has_control_tokens(tokenizer):
        start, end = "" if tokenizer.prefixes_each_text or tokenizer.is_byte_level else " ", ""
        words = {"WITH_SYSTEM": "loop.index0 == last.user", "WITH_TOOLS": "loop.index0 == last.user"}
        words["CONTENT"] = "message['content'].rstrip(' ')"
    else:
        start, end = " ", " "
        words = {"WITH_SYSTEM": "loop.index0 == 1", "WITH_TOOLS": "false", "CONTENT": "message['content']"}
    template = TEMPLATE
    for word, meaning in {**words, "START": repr(start), "END": repr(end)}.items():
        template = template.replace(word, meaning)
    return template


def has_control_tokens(tokenizer: Tokenizer) -> bool:
    """Return whether turns are marked by control tokens, which no text can spell."""
    return tokenizer.special_token_id("[INST]") is not None
