"""Byte-level vocabularies: small ones that are trained here, with the parts of Llama 3's, and the real Tekken."""

import base64
import inspect
import json
from pathlib import Path
from typing import Any

from mistral_common.tokens.tokenizers.base import SpecialTokens
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tokenizers.pre_tokenizers import ByteLevel, Split
from transformers.convert_slow_tokenizer import TikTokenConverter

from tests.support.checkpoints.mistral_tokenizers import MISTRAL_FILES, write_json_files
from tests.support.paths import ROOT

BOS, END, HEADER, HEADER_END, TURN_END = CONTROL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
PLAIN_ADDED = "caf\u00e9 \u2192"  # no control token, and not in GPT-2's alphabet
LLAMA_3_PATTERN: str = inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default
TEKKEN_FILE = MISTRAL_FILES / "tekken_240911.json"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def trained(pattern: str | None = LLAMA_3_PATTERN, vocab_size: int = 1000, *, keeps_words: bool = True) -> Tokenizer:
    """Train a tokenizer on this repository's texts. `pattern`: of a word; None: GPT-2's, without a bos in front."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=keeps_words))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    if pattern is not None:
        to_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([Split(Regex(pattern), "isolated"), to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False
    )
    texts = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "docs/api.md")]
    tokenizer.train_from_iterator([line for text in texts for line in text.splitlines(keepends=True)], trainer)
    tokenizer.add_special_tokens([*CONTROL])
    tokenizer.add_tokens([AddedToken(PLAIN_ADDED, normalized=False)])
    if pattern is not None:
        template = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def save(tokenizer: Tokenizer, path: Path, **config: Any) -> Path:
    """Write tokenizer.json and tokenizer_config.json with these changes into the folder `path`; return the folder."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    usual = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": END}
    return write_json_files(path, tokenizer_config={**usual, "chat_template": TEMPLATE, **config})


def vocabulary_fields(tokenizer: Tokenizer, word_rule: str) -> dict[str, Any]:
    """Return the fields that llama.cpp's converter writes for a byte-level vocabulary."""
    content = json.loads(tokenizer.to_str())
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size(with_added_tokens=True))]
    types = [1] * len(tokens)
    for added in content["added_tokens"]:
        types[added["id"]] = 3 if added["special"] else 4
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    values = {
        "model": "gpt2",
        "pre": word_rule,
        "tokens": tokens,
        "token_type": types,
        "merges": merges,
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(END),
    }
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def tekken(path: Path) -> tuple[Path, Tekkenizer]:
    """Write Mistral Nemo's vocabulary as a tokenizer.json into the folder `path`, with all its merges.

    A merge of two tokens may come from any cut of the token that they make. In order of that token's rank, and then
    of the parts' ranks, these are the merges of the original. Returns the folder and the original.
    """
    original = Tekkenizer.from_file(TEKKEN_FILE)
    entries = json.loads(TEKKEN_FILE.read_text())["vocab"][: original.n_words - original.num_special_tokens]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in entries}
    merges = []
    for token, rank in ranks.items():
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        merges += [(rank, ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks]
    vocabulary = {_visible(token): rank + original.num_special_tokens for token, rank in ranks.items()}
    pairs = [(_visible(a), _visible(b)) for *_, a, b in sorted(merges)]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=True))
    pattern = json.loads(TEKKEN_FILE.read_text())["config"]["pattern"]
    to_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([Split(Regex(pattern), "isolated"), to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    content = json.loads(tokenizer.to_str())
    special = [original.id_to_piece(i) for i in range(original.num_special_tokens)]
    content["added_tokens"] = [_added_token(i, text) for i, text in enumerate(special)]
    content["model"]["vocab"] |= {text: i for i, text in enumerate(special)}
    path.mkdir(parents=True, exist_ok=True)
    return write_json_files(
        path, tokenizer=content, tokenizer_config={"bos_token": "<s>", "eos_token": "</s>"}
    ), original


def cut_tekken(path: Path, version: str = "v3", num_pieces: int = 3000) -> Path:
    """Write Nemo's tekken.json with its first pieces alone into the folder `path`; return the file.

    From version 7 on it lists its control tokens, those of version 15.
    """
    content = json.loads(TEKKEN_FILE.read_text())
    content["vocab"] = content["vocab"][: num_pieces + 5]  # more than count
    content["config"] |= {"version": version, "default_vocab_size": 1000 + num_pieces}
    if version != "v3":
        del content["image"]  # of other versions it has another name, and means nothing here
        usual = [token["token_str"] for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]
        texts = [*usual, *(token.value for token in SpecialTokens if token.value not in usual)]
        content["special_tokens"] = [{"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(texts)]
    path.mkdir(parents=True, exist_ok=True)
    (path / "tekken.json").write_text(json.dumps(content))
    return path / "tekken.json"


def _added_token(token_id: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": text, "special": True, **flags}


def _visible(token: bytes) -> str:
    """Write bytes in GPT-2's alphabet, as the package does."""
    return (
        ALPHABET_OF[token]
        if token in ALPHABET_OF
        else "".join(ALPHABET_OF[token[i : i + 1]] for i in range(len(token)))
    )


def _alphabet() -> dict[bytes, str]:
    """Return the character of each byte: the printable ones of Latin-1 are their own, the others follow from 256 on."""
    own = [byte for byte in range(256) if chr(byte).isprintable() and not chr(byte).isspace()]
    others = [byte for byte in range(256) if byte not in own]
    return {bytes([byte]): chr(byte) for byte in own} | {bytes([b]): chr(256 + i) for i, b in enumerate(others)}


ALPHABET_OF = _alphabet()
assert set(ALPHABET_OF.values()) == set(ByteLevel.alphabet())
