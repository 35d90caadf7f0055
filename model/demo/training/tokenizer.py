"""Train the demo's SentencePiece model: byte-pair pieces, byte fallback, no normalization, Llama's conventions."""

import itertools
import tempfile
from pathlib import Path

import sentencepiece

from model.demo.training.chat_examples import ChatExamples, render
from model.demo.training.corpus import Domain

VOCAB_SIZE = 3072
SAMPLE_BYTES_PER_DOMAIN = 2_500_000


def train_tokenizer(domains: list[Domain], path: Path) -> None:
    """Train on an equal share of each domain and on chat examples, and write `path` (…/tokenizer.model)."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "sample.txt"
        text.write_text(_sample(domains), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=str(path.with_suffix("")),
            vocab_size=VOCAB_SIZE,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=0.99995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            user_defined_symbols=["\n"],
            max_sentence_length=100_000,
            minloglevel=2,
            num_threads=2,
        )
    path.with_suffix(".vocab").unlink()


def _sample(domains: list[Domain]) -> str:
    parts: list[str] = []
    for domain in domains:
        size = 0
        for text in domain.train[::3]:
            parts.append(text)
            size += len(text)
            if size > SAMPLE_BYTES_PER_DOMAIN:
                break
    chat = ChatExamples(domains, seed=1)
    parts.extend(itertools.chain.from_iterable(render(chat.conversation()) for _ in range(3000)))
    return "\n".join(parts)
