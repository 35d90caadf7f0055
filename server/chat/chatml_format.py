"""ChatML as a jinja template, for fine-tuned models whose checkpoint has its control tokens but no template.

Early GGUF files lack the template. Mistral's own format would be wrong for these models.
"""

from server.tokenizer.tokenizer import Tokenizer

START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def has_chatml_tokens(tokenizer: Tokenizer) -> bool:
    """Return whether both marks of a turn are control tokens."""
    return tokenizer.special_token_id(START) is not None and tokenizer.special_token_id(END) is not None
