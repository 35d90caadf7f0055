"""Comparison of a tokenizer that was rebuilt from a GGUF file with the original."""

import random
from collections.abc import Iterable

from server.tokenizer.tokenizer import Tokenizer


def random_texts(rng: random.Random, tokenizer: Tokenizer, count: int) -> list[str]:
    """Draw texts of 30 tokens each, control tokens' spellings included."""
    return ["".join(tokenizer.token_text(rng.randrange(tokenizer.vocab_size)) for _ in range(30)) for _ in range(count)]


def assert_equal_tokenizers(rebuilt: Tokenizer, original: Tokenizer, texts: Iterable[str]) -> None:
    """Compare ids of the texts, plain and as rendered templates, and the bytes and meanings of all tokens."""
    for text in texts:
        assert rebuilt.encode(text) == original.encode(text)
        assert rebuilt.encode_with_specials(text) == original.encode_with_specials(text)
    ids = range(original.vocab_size)
    assert [rebuilt.token_bytes(i) for i in ids] == [original.token_bytes(i) for i in ids]
    assert rebuilt.special_spellings == original.special_spellings
    assert (rebuilt.bos_id, rebuilt.eos_ids) == (original.bos_id, original.eos_ids)
