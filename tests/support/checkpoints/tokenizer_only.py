"""A directory with a tokenizer and an empty config, for servers whose fake engine reads no weights."""

from pathlib import Path

import sentencepiece


def write_tokenizer(folder: Path) -> None:
    """Train a tokenizer with a few words and all bytes, and write a config without fields."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["it was a truth universally acknowledged"] * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=290,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "config.json").write_text("{}")
