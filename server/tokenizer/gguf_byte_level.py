"""Turn a byte-level vocabulary of a GGUF file into the content of a tokenizer.json, which encodes as the original did.

GGUF names the rule that splits a text into words, `tokenizer.ggml.pre`, and does not store it. Source of the names:
llama-vocab.cpp of llama.cpp.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from engine.capacity.gguf_vocabulary import GgufVocabulary
from server.tokenizer.byte_level_json import start_step, word_steps
from server.tokenizer.config_files import Json, TokenizerError

UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
LLAMA_3_START = "<|begin_of_text|>"


@dataclass(frozen=True)
class WordRule:
    """Rule by which a family of models splits a text into words, whose bytes are merged."""

    pattern: str | None  # of a word; None: GPT-2's, which the package has
    keeps_words: bool = True  # a word that is a piece is not merged from its bytes
    adds_bos: bool = True  # unless the file says otherwise
    normalizer: str | None = None  # its type in a tokenizer.json


_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = WordRule(rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_OTHERS}")
SMAUG = replace(LLAMA_3, keeps_words=False, adds_bos=False)  # Llama 3's files before their first correction
QWEN_2 = WordRule(
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_OTHERS}",
    keeps_words=False,
    adds_bos=False,
    normalizer="NFC",
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = WordRule(
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_2 = WordRule(None, keeps_words=False, adds_bos=False)
RULES = {
    "llama-bpe": LLAMA_3,
    "llama3": LLAMA_3,
    "llama-v3": LLAMA_3,
    "smaug-bpe": SMAUG,
    "qwen2": QWEN_2,
    "tekken": TEKKEN,
    "gpt-2": GPT_2,
}


def tokenizer_json(vocabulary: GgufVocabulary, special_ids: frozenset[int], path: Path) -> Json:
    """Return the content of a tokenizer.json. `special_ids`: control tokens besides those that the file's types name.

    Raises TokenizerError, which names `path`.
    """
    rule = _word_rule(vocabulary, path)
    pieces: dict[str, int] = {}
    added: list[Json] = []
    for token_id, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind == UNUSED:
            continue
        is_first = pieces.setdefault(text, token_id) == token_id
        is_special = kind in (CONTROL, UNKNOWN) or token_id in special_ids
        if is_special or kind == USER_DEFINED:
            added.append({"id": token_id, "content": text, "special": is_special})
        elif not is_first:
            raise TokenizerError(f"{path}: damaged: a token occurs twice in tokenizer.ggml.tokens")
    if not vocabulary.merges:
        raise TokenizerError(f"{path}: tokenizer.ggml.merges is missing")
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None if rule.normalizer is None else {"type": rule.normalizer},
        "pre_tokenizer": word_steps(rule.pattern),
        "post_processor": _post_processor(vocabulary, rule),
        "model": {
            "type": "BPE",
            "vocab": pieces,
            "merges": vocabulary.merges,
            "ignore_merges": rule.keeps_words,
        },
    }


def _word_rule(vocabulary: GgufVocabulary, path: Path) -> WordRule:
    """Return the rule that the file names. Files of before April 2024 name none; some of them are Llama 3's."""
    name = vocabulary.word_rule
    if name in (None, "default") and LLAMA_3_START in vocabulary.tokens:
        return LLAMA_3
    if name not in RULES:
        found = "is missing" if name is None else f"is {name!r:.60}"
        raise TokenizerError(
            f"{path}: tokenizer.ggml.pre {found}; supported are {', '.join(RULES)}: serve the model's original "
            "directory, whose tokenizer.json stores its rule"
        )
    return RULES[name]


def _post_processor(vocabulary: GgufVocabulary, rule: WordRule) -> Json | None:
    if not rule.adds_bos or vocabulary.bos_id is None:
        return None
    return start_step(vocabulary.tokens[vocabulary.bos_id])
