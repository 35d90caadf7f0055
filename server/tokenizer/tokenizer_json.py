"""Read the parts of a tokenizer.json, and build the tokenizers package's object from one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from server.errors import invalid_value
from server.tokenizer.config_files import (
    MAX_ADDED_CHARS,
    MAX_ADDED_IDS,
    MAX_PIECE_CHARS,
    MAX_PIECES,
    AddedToken,
    Json,
    TokenizerError,
    check_text,
    check_token_id,
    flags_of,
)

if TYPE_CHECKING:
    import tokenizers

# What happens to a text before it is split into words: nothing; or a space is put in front of it, and spaces become
# U+2581; or something else.
Normalizer = Literal["none", "spaces", "other"]


def added_tokens(path: Path, description: Json) -> tuple[AddedToken, ...]:
    """Return the file's added tokens. Raises TokenizerError."""
    listed = description.get("added_tokens")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return tuple(_added_token(path, entry) for entry in entries)


def pieces_by_id(path: Path, vocabulary: Mapping[str, int]) -> list[str]:
    """Return the pieces in a list; ids without a piece get "". Raises TokenizerError."""
    num_ids = max(vocabulary.values(), default=-1) + 1
    if num_ids > len(vocabulary) + MAX_ADDED_IDS:
        raise TokenizerError(f"{path}: token id {num_ids - 1} is far beyond its {len(vocabulary)} pieces")
    pieces = [""] * len(ids_of(path, num_ids))
    for piece, token_id in vocabulary.items():
        pieces[token_id] = check_text(path, piece, MAX_PIECE_CHARS)
    return pieces


def ids_of(path: Path, num_pieces: int) -> range:
    """Return the ids of so many pieces. Raises TokenizerError for too many."""
    if num_pieces > MAX_PIECES:
        raise TokenizerError(f"{path}: {num_pieces} pieces, more than {MAX_PIECES}")
    return range(num_pieces)


def control_tokens_around(description: Json) -> tuple[str | None, str | None]:
    """Return the control tokens in front of and behind one text, by the post-processor; None where there is none."""
    processor = description.get("post_processor")
    steps = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    template = next((step["single"] for step in steps if isinstance(step, dict) and step.get("single")), None)
    if not isinstance(template, list):
        return None, None
    return _special_token(template[0]), _special_token(template[-1])


def build(description: Json, path: Path) -> "tokenizers.Tokenizer":
    """Build the package's object. Raises TokenizerError, also if the package is not installed."""
    try:
        import tokenizers
    except ImportError:
        message = f"{path}: reading this file needs another package: pip install 'smoe[tokenizers]'"
        raise TokenizerError(message) from None
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(description))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 (a bare Exception for an invalid file, and Rust's panics)
        raise TokenizerError(f"{path}: not a usable tokenizer ({type(error).__name__})") from None


def encoded(tokenizer: "tokenizers.Tokenizer", text: str) -> list[int]:
    """Encode plain text. Raises ApiError if the file's rules give up on it: ten million steps at one place."""
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 (Rust's panics)
        raise invalid_value("The model's tokenizer cannot split this text into words.", None) from None
    return ids


def _added_token(path: Path, entry: Json) -> AddedToken:
    content = entry.get("content")
    if not isinstance(content, str):
        raise TokenizerError(f"{path}: an added token has no text")
    text = check_text(path, content, MAX_ADDED_CHARS)
    return AddedToken(check_token_id(path, entry.get("id")), text, bool(entry.get("special")), **flags_of(entry))


def _special_token(part: object) -> str | None:
    special = part.get("SpecialToken") if isinstance(part, dict) else None
    text = special.get("id") if isinstance(special, dict) else None
    return text if isinstance(text, str) else None
