"""Llama 3's format as a jinja template, for models that have its control tokens but no template.

Merges of base models lack one. Mistral's own format would be wrong for them.
"""

from server.tokenizer.tokenizer import Tokenizer

TURN_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def has_llama3_tokens(tokenizer: Tokenizer) -> bool:
    """Return whether all marks of a turn are control tokens."""
    return all(tokenizer.special_token_id(mark) is not None for mark in TURN_MARKS)
