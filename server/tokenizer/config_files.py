"""Read and check the checkpoint's JSON files about text: tokenizer_config.json and its neighbours."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

Json = dict[str, object]
MAX_JSON_BYTES = 64 << 20
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class TokenizerError(Exception):
    """Unusable tokenizer of a checkpoint. The message is one line that names the file and the fault."""


@dataclass(frozen=True)
class AddedToken:
    """Token that is added to the pieces of the tokenizer file, or renames one of them."""

    id: int
    text: str
    is_special: bool  # a control token: never recognized in plain text, left out of decoded text


@dataclass(frozen=True)
class TokenizerSettings:
    """Settings from the JSON files; None or empty where the files do not set them."""

    added_tokens: tuple[AddedToken, ...]
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    special_tokens: frozenset[str]  # spellings; each is a control token, whichever file its id comes from
    eos_ids: tuple[int, ...]  # from generation_config.json and config.json
    adds_bos: bool
    is_legacy: bool  # each text between control tokens gets SentencePiece's leading space, else only the first
    chat_template: str | None


def read_settings(path: Path) -> TokenizerSettings:
    """Read the files that exist in directory `path`. Raises TokenizerError for a file that is not a JSON object."""
    config = read_json(path / "tokenizer_config.json") or {}
    special_map = read_json(path / "special_tokens_map.json") or {}
    named = {name: _token_text(config.get(name, special_map.get(name))) for name in SPECIAL_NAMES}
    special = {text for text in named.values() if text} | _additional_special(config) | _additional_special(special_map)
    return TokenizerSettings(
        added_tokens=tuple(_added_tokens(path, config, special)),
        bos_token=named["bos_token"],
        eos_token=named["eos_token"],
        unk_token=named["unk_token"],
        special_tokens=frozenset(special),
        eos_ids=_eos_ids(path),
        adds_bos=config.get("add_bos_token") is not False,
        is_legacy=config.get("legacy") is not False,
        chat_template=_chat_template(path, config),
    )


def read_json(path: Path) -> Json | None:
    """Read the JSON object in a file; None if the file does not exist. Raises TokenizerError."""
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_JSON_BYTES:
        raise TokenizerError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB")
    try:
        content = path.read_bytes()
        check_first_bytes(path, content)
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise TokenizerError(f"{path}: cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: not a JSON object")
    return value


def check_first_bytes(path: Path, content: bytes) -> None:
    """Raise TokenizerError if a git-lfs pointer or an HTML page was downloaded in place of the file."""
    if content.startswith(b"version https://git-lfs"):
        raise TokenizerError(f"{path}: a git-lfs pointer, not the file itself; run git lfs pull")
    if content.lstrip()[:1] == b"<":
        raise TokenizerError(f"{path}: an HTML or XML page; the download went wrong")


def _token_text(value: object) -> str | None:
    """Parse a token, written as its text or as {"content": text, ...}; None if it is empty or neither."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _additional_special(config: Json) -> set[str]:
    values = config.get("additional_special_tokens")
    texts = map(_token_text, values) if isinstance(values, list) else ()
    return {text for text in texts if text}


def _added_tokens(path: Path, config: Json, special: set[str]) -> Iterable[AddedToken]:
    """Read added_tokens.json (older), then tokenizer_config.json (newer, marks special tokens and takes precedence)."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise TokenizerError(f"{path / 'tokenizer_config.json'}: added_tokens_decoder must be an object")
    newer = [_decoder_entry(path, key, value, special) for key, value in decoder.items()]
    known_ids = {token.id for token in newer}
    for text, token_id in (read_json(path / "added_tokens.json") or {}).items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise TokenizerError(f"{path / 'added_tokens.json'}: each value must be a token id")
        if token_id not in known_ids and text:
            yield AddedToken(token_id, text, text in special)
    yield from newer


def _decoder_entry(path: Path, key: str, value: object, special: set[str]) -> AddedToken:
    text = _token_text(value)
    if not key.isdecimal() or text is None:
        raise TokenizerError(f"{path / 'tokenizer_config.json'}: added_tokens_decoder must map ids to tokens")
    return AddedToken(int(key), text, text in special or (isinstance(value, dict) and bool(value.get("special"))))


def _eos_ids(path: Path) -> tuple[int, ...]:
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = (read_json(path / name) or {}).get("eos_token_id")
        ids += [item for item in (value if isinstance(value, list) else [value]) if type(item) is int and item >= 0]
    return tuple(dict.fromkeys(ids))


def _chat_template(path: Path, config: Json) -> str | None:
    """Read chat_template.jinja, else the template in tokenizer_config.json: a text or a list of named templates."""
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (ValueError, OSError) as error:
            raise TokenizerError(f"{file}: cannot be read as text ({type(error).__name__})") from None
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
