"""Read and check the checkpoint's JSON files about text: tokenizer_config.json and its neighbours."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Json = dict[str, object]
MAX_FILE_BYTES = 64 << 20
MAX_TOKEN_ID = 2**31 - 1
MAX_PIECES = 2**20
MAX_PIECE_CHARS = 1024
MAX_ADDED_CHARS = 256  # of an added or control token
MAX_ADDED_IDS = 2**20  # an added token's id is below the number of pieces plus this
DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    OSError,
    re.error,
)
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class TokenizerError(Exception):
    """Unusable tokenizer of a checkpoint. The message is one line that names the file and the fault."""


class NoTokenizerError(TokenizerError):
    """A checkpoint without a tokenizer."""


@contextmanager
def name_damage(path: Path) -> Iterator[None]:
    """Turn any error that a damaged file causes inside this block into a TokenizerError that names the file."""
    try:
        yield
    except DAMAGE as error:
        raise TokenizerError(f"{path}: damaged ({type(error).__name__})") from None


@dataclass(frozen=True)
class AddedToken:
    """Token that is added to the pieces of the tokenizer file, or renames one of them."""

    id: int
    text: str
    is_special: bool  # a control token: never recognized in plain text, left out of decoded text
    strips_left: bool = False  # white space in front of it belongs to it
    strips_right: bool = False
    is_word: bool = False  # it is not recognized beside a letter, a digit or an underscore
    is_normalized: bool = False  # it is looked for in the text that the file's normalizer makes


def flags_of(entry: Json) -> dict[str, bool]:
    """Return the fields of an AddedToken that a file's entry sets."""
    names = {"strips_left": "lstrip", "strips_right": "rstrip", "is_word": "single_word", "is_normalized": "normalized"}
    return {field: bool(entry.get(name)) for field, name in names.items()}


@dataclass(frozen=True)
class TokenizerSettings:
    """Settings from the JSON files; None or empty where the files do not set them."""

    added_tokens: tuple[AddedToken, ...]
    lists_added_tokens: bool  # a file lists all of them; else they are in tokenizer.json alone, if there are any
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    special_tokens: frozenset[str]  # spellings; each is a control token, whichever file its id comes from
    eos_ids: tuple[int, ...]  # from generation_config.json and config.json
    adds_bos: bool | None  # None: the tokenizer file decides, here and for eos
    adds_eos: bool | None  # behind a text to embed
    is_legacy: bool  # each text between control tokens gets SentencePiece's leading space, else only the first
    chat_template: str | None


def read_settings(path: Path) -> TokenizerSettings:
    """Read the files that exist in directory `path`. Raises TokenizerError for a file that is not a JSON object."""
    config_path, map_path = path / "tokenizer_config.json", path / "special_tokens_map.json"
    config, special_map = read_json(config_path) or {}, read_json(map_path) or {}
    named = {name: _named_token(config_path, config, name) for name in SPECIAL_NAMES if name in config}
    named |= {name: _named_token(map_path, special_map, name) for name in SPECIAL_NAMES if name not in config}
    special = {text for text in named.values() if text}
    special |= _additional_special(config_path, config) | _additional_special(map_path, special_map)
    return TokenizerSettings(
        added_tokens=tuple(_added_tokens(path, config, special)),
        lists_added_tokens="added_tokens_decoder" in config,
        bos_token=named["bos_token"],
        eos_token=named["eos_token"],
        unk_token=named["unk_token"],
        special_tokens=frozenset(special),
        eos_ids=_eos_ids(path),
        adds_bos=_flag_or_none(config, "add_bos_token"),
        adds_eos=_flag_or_none(config, "add_eos_token"),
        is_legacy=config.get("legacy") is not False,
        chat_template=_chat_template(path, config),
    )


def read_json(path: Path) -> Json | None:
    """Read the JSON object in a file; None if the file does not exist. Raises TokenizerError."""
    content = read_file(path)
    if content is None:
        return None
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError, MemoryError) as error:
        words = {RecursionError: "nested too deeply", MemoryError: "not enough memory to read it"}
        reason = words.get(type(error), f"not valid JSON: {error}")
        raise TokenizerError(f"{path}: {reason}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: not a JSON object")
    return value


def read_file(path: Path) -> bytes | None:
    """Read a file of at most MAX_FILE_BYTES; None if it does not exist. Raises TokenizerError."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > MAX_FILE_BYTES:
        raise TokenizerError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB")
    _check_first_bytes(path, content)
    return content


def check_token_id(path: Path, value: object) -> int:
    """Return a token id that a file contains. Raises TokenizerError."""
    if type(value) is int and 0 <= value <= MAX_TOKEN_ID:
        return value
    shown = value if type(value) is int and abs(value) < 10**18 else f"({type(value).__name__})"
    raise TokenizerError(f"{path}: the token id {shown} is not an integer from 0 to {MAX_TOKEN_ID}")


def check_text(path: Path, text: str, max_chars: int) -> str:
    """Return the text of a token in a file. Raises TokenizerError if it is too long or no UTF-8 can be made of it."""
    if len(text) > max_chars:
        raise TokenizerError(f"{path}: a token has {len(text)} characters, more than {max_chars}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise TokenizerError(f"{path}: a token is not valid Unicode") from None
    return text


def _check_first_bytes(path: Path, content: bytes) -> None:
    """Raise TokenizerError if a git-lfs pointer or an HTML page was downloaded in place of the file."""
    if content.startswith(b"version https://git-lfs"):
        raise TokenizerError(f"{path}: a git-lfs pointer, not the file itself; run git lfs pull")
    if content.lstrip()[:1] == b"<":
        raise TokenizerError(f"{path}: an HTML or XML page; the download went wrong")


def _token_text(path: Path, value: object) -> str | None:
    """Parse a token, written as its text or as {"content": text, ...}; None if it is empty or neither."""
    if isinstance(value, dict):
        value = value.get("content")
    return check_text(path, value, MAX_ADDED_CHARS) if isinstance(value, str) and value else None


def _named_token(path: Path, config: Json, name: str) -> str | None:
    return _token_text(path, config.get(name))


def _flag_or_none(config: Json, name: str) -> bool | None:
    value = config.get(name)
    return value if isinstance(value, bool) else None


def _additional_special(path: Path, config: Json) -> set[str]:
    texts: set[str | None] = set()
    for name in ("additional_special_tokens", "extra_special_tokens"):  # transformers 4's name, and 5's
        values = config.get(name)
        listed = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
        texts |= {_token_text(path, value) for value in listed}
    return {text for text in texts if text}


def _added_tokens(path: Path, config: Json, special: set[str]) -> Iterable[AddedToken]:
    """Read added_tokens.json (older), then tokenizer_config.json (newer, marks special tokens and takes precedence)."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise TokenizerError(f"{path / 'tokenizer_config.json'}: added_tokens_decoder must be an object")
    newer = [_decoder_entry(path, key, value, special) for key, value in decoder.items()]
    known_ids = {token.id for token in newer}
    older_path = path / "added_tokens.json"
    for text, value in (read_json(older_path) or {}).items():
        token_id = check_token_id(older_path, value)
        if token_id not in known_ids and text:
            yield AddedToken(token_id, check_text(older_path, text, MAX_ADDED_CHARS), text in special)
    yield from newer


def _decoder_entry(path: Path, key: str, value: object, special: set[str]) -> AddedToken:
    file = path / "tokenizer_config.json"
    text = _token_text(file, value)
    if not re.fullmatch("[0-9]{1,18}", key) or text is None:
        raise TokenizerError(f"{file}: added_tokens_decoder must map ids to tokens")
    return AddedToken(
        check_token_id(file, int(key)),
        text,
        text in special or (isinstance(value, dict) and bool(value.get("special"))),
        **(flags_of(value) if isinstance(value, dict) else {}),
    )


def _eos_ids(path: Path) -> tuple[int, ...]:
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = (read_json(path / name) or {}).get("eos_token_id")
        found = [item for item in (value if isinstance(value, list) else [value]) if type(item) is int and item >= 0]
        ids += [check_token_id(path / name, item) for item in found]
    return tuple(dict.fromkeys(ids))


def _chat_template(path: Path, config: Json) -> str | None:
    """Read chat_template.jinja, else the template in tokenizer_config.json: a text or a list of named templates."""
    file = path / "chat_template.jinja"
    content = _read_text(file)
    if content is not None:
        return content
    value = config.get("chat_template")
    if isinstance(value, list):
        named = [item.get("template") for item in value if isinstance(item, dict) and item.get("name") == "default"]
        value = named[-1] if named else None
    return value if isinstance(value, str) else None


def _read_text(file: Path) -> str | None:
    """Read a text file with universal newlines, at most MAX_FILE_BYTES; None if it does not exist."""
    try:
        if not file.is_file():
            return None
        with file.open(encoding="utf-8") as stream:
            return stream.read(MAX_FILE_BYTES)
    except (ValueError, OSError, MemoryError) as error:
        raise TokenizerError(f"{file}: cannot be read as text ({type(error).__name__})") from None
