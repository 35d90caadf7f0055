"""Turn a tekken.json, the vocabulary in Mistral's own layout, into the content of a tokenizer.json.

A piece is bytes with a rank. Of all neighbours that together are a piece, those of the lowest rank are merged first.
Control tokens have the ids in front of the pieces. Source of the format and of the defaults: mistral-common.
"""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path

from server.tokenizer.byte_level import CHARACTERS
from server.tokenizer.byte_level_json import start_step, word_steps
from server.tokenizer.config_files import (
    MAX_ADDED_CHARS,
    MAX_PIECE_CHARS,
    MAX_PIECES,
    Json,
    TokenizerError,
    check_text,
)

BOS, EOS = "<s>", "</s>"
VERSIONS = {f"v{number}": number for number in (1, 2, 3, 7, 11, 13, 15)}
LISTS_ITS_TOKENS = 8  # files of this version and later list their control tokens
# Control tokens of files that list none, by id. The ids behind them have names made of their numbers.
USUAL_SPECIALS = (
    "<unk>",
    BOS,
    EOS,
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)
_VISIBLE = {byte: ord(character) for byte, character in CHARACTERS.items()}


def tokenizer_json_of_tekken(path: Path, content: Json) -> tuple[Json, int]:
    """Return the content of a tokenizer.json, and the version of the chat format. `content`: of the file `path`.

    Raises TokenizerError, which names the file.
    """
    config = content.get("config")
    if not isinstance(config, dict):
        raise TokenizerError(f"{path}: config is missing")
    version = _version(path, config)
    num_specials = _integer(path, config, "default_num_special_tokens", 3)
    vocab_size = _integer(path, config, "default_vocab_size", num_specials + 256)
    specials = _specials(path, content, version, num_specials)
    ranks = _ranks(path, content, vocab_size - num_specials)
    pattern = config.get("pattern")
    if not isinstance(pattern, str):
        raise TokenizerError(f"{path}: config.pattern is not a text")
    description: Json = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text, "special": True} for i, text in enumerate(specials)],
        "pre_tokenizer": word_steps(pattern),
        "post_processor": start_step(BOS),
        "model": {
            "type": "BPE",
            "vocab": {piece: num_specials + rank for piece, rank in ranks.items()},
            "merges": list(_merges(ranks)),
            "ignore_merges": True,  # a word that is a piece is not merged from its bytes
        },
    }
    return description, version


def _version(path: Path, config: Json) -> int:
    name = config.get("version")
    if not isinstance(name, str) or name not in VERSIONS:
        raise TokenizerError(f"{path}: config.version is {name!r:.40}; supported are {', '.join(VERSIONS)}")
    return VERSIONS[name]


def _integer(path: Path, config: Json, name: str, at_least: int) -> int:
    value = config.get(name)
    if type(value) is not int or not at_least <= value <= MAX_PIECES:
        raise TokenizerError(f"{path}: config.{name} is {value!r:.40}, not an integer from {at_least} to {MAX_PIECES}")
    return value


def _specials(path: Path, content: Json, version: int, num_specials: int) -> list[str]:
    """Return the texts of all control tokens by id."""
    listed = content.get("special_tokens")
    if listed is None and version < LISTS_ITS_TOKENS:
        texts = [*USUAL_SPECIALS]
    elif isinstance(listed, list):
        texts = [_special(path, entry, i) for i, entry in enumerate(listed)]
    else:
        raise TokenizerError(f"{path}: special_tokens is missing")
    if len(texts) > num_specials:
        raise TokenizerError(f"{path}: {len(texts)} special tokens, but default_num_special_tokens is {num_specials}")
    texts += [f"<SPECIAL_{i}>" for i in range(len(texts), num_specials)]
    if len(set(texts)) != num_specials or not {BOS, EOS} <= set(texts):
        raise TokenizerError(f"{path}: a special token occurs twice, or {BOS} or {EOS} is missing")
    return texts


def _special(path: Path, entry: object, token_id: int) -> str:
    text = entry.get("token_str") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(text, str) or not text or entry.get("rank") != token_id:
        raise TokenizerError(f"{path}: special token {token_id} has no text, or another rank")
    return check_text(path, text, MAX_ADDED_CHARS)


def _ranks(path: Path, content: Json, num_pieces: int) -> dict[str, int]:
    """Return the ranks of the pieces that count, the first ones, in GPT-2's alphabet."""
    listed = content.get("vocab")
    if not isinstance(listed, list) or len(listed) < num_pieces:
        raise TokenizerError(f"{path}: vocab has no {num_pieces} pieces, as many as config asks for")
    ranks = {_piece(path, entry, rank): rank for rank, entry in enumerate(listed[:num_pieces])}
    if len(ranks) != num_pieces:
        raise TokenizerError(f"{path}: a piece occurs twice in vocab")
    return ranks


def _piece(path: Path, entry: object, rank: int) -> str:
    encoded = entry.get("token_bytes") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(encoded, str) or entry.get("rank") != rank:
        raise TokenizerError(f"{path}: piece {rank} has no bytes, or another rank")
    try:
        piece = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise TokenizerError(f"{path}: piece {rank} is not valid base64") from None
    if not 0 < len(piece) <= MAX_PIECE_CHARS:
        raise TokenizerError(f"{path}: piece {rank} has {len(piece)} bytes, not 1 to {MAX_PIECE_CHARS}")
    return piece.decode("latin-1").translate(_VISIBLE)


def _merges(ranks: dict[str, int]) -> Iterator[str]:
    """Yield every way to make a piece of two, by the rank of the whole, then by those of the parts."""
    for piece in ranks:
        cuts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs = [(ranks[a], ranks[b], f"{a} {b}") for a, b in cuts if a in ranks and b in ranks]
        yield from (merge for _, _, merge in sorted(pairs))
