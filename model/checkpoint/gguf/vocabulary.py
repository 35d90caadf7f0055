"""Read the vocabulary and the chat template of a GGUF file."""

from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.gguf.fields import GgufFields
from model.checkpoint.gguf.split_files import read_model
from model.checkpoint.json_files import printable

PREFIX = "tokenizer.ggml."
SENTENCEPIECE, BYTE_LEVEL = "llama", "gpt2"  # as llama.cpp names the kinds of vocabularies
MAX_TOKENS = 1 << 20


@dataclass(frozen=True)
class GgufVocabulary:
    """Vocabulary of one model. Lists are by token id; None where the file has no such field."""

    is_byte_level: bool  # of byte pairs in GPT-2's alphabet; else made with SentencePiece
    tokens: list[str]  # of SentencePiece: spaces as U+2581, single bytes as <0xE2>
    scores: list[float] | None
    types: list[int]  # SentencePiece's: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
    merges: list[str] | None  # pairs of tokens, separated by a space, most frequent first
    word_rule: str | None  # name of the rule that splits a text into words, of byte-level vocabularies
    bos_id: int | None
    eos_ids: tuple[int, ...]
    unk_id: int | None
    adds_bos: bool | None  # None: as the kind of vocabulary does usually
    adds_eos: bool
    has_dummy_prefix: bool  # text is encoded as if it had a space in front
    chat_template: str | None


def read_gguf_vocabulary(path: Path) -> GgufVocabulary | None:
    """Read the vocabulary of the model whose only or first file is `path`; None if it has none.

    Raises CheckpointError.
    """
    file = read_model(path)
    fields, top = GgufFields(file, PREFIX), GgufFields(file)
    kind = fields.text("model")
    if kind is None and fields.texts("tokens") is None:
        return None
    if kind not in (SENTENCEPIECE, BYTE_LEVEL):
        raise fields.error(
            f"{PREFIX}model is {printable(kind)}; supported are 'llama' (SentencePiece) and 'gpt2' (byte-level)"
        )
    tokens = fields.texts("tokens")
    if not tokens or len(tokens) > MAX_TOKENS:
        raise fields.error(f"{PREFIX}tokens has {len(tokens or ())} tokens, not 1 to {MAX_TOKENS}")
    types = _types(fields, len(tokens))
    eos_ids = [_token_id(fields, name, len(tokens)) for name in ("eos_token_id", "eot_token_id")]
    return GgufVocabulary(
        is_byte_level=kind == BYTE_LEVEL,
        tokens=tokens,
        scores=_checked_length(fields, "scores", fields.numbers("scores"), len(tokens)),
        types=types,
        merges=fields.texts("merges"),
        word_rule=fields.text("pre"),
        bos_id=_token_id(fields, "bos_token_id", len(tokens)),
        eos_ids=tuple(dict.fromkeys(token_id for token_id in eos_ids if token_id is not None)),
        unk_id=_token_id(fields, "unknown_token_id", len(tokens)),
        adds_bos=fields.flag("add_bos_token"),
        adds_eos=fields.flag("add_eos_token") is True,
        has_dummy_prefix=fields.flag("add_space_prefix") is not False,
        chat_template=top.text("tokenizer.chat_template"),
    )


def _types(fields: GgufFields, num_tokens: int) -> list[int]:
    values = _checked_length(fields, "token_type", fields.numbers("token_type"), num_tokens)
    if values is None:
        raise fields.error(f"the field {PREFIX}token_type is missing")
    wrong = next((value for value in values if type(value) is not int or not 1 <= value <= 6), None)
    if wrong is not None:
        raise fields.error(f"{PREFIX}token_type contains {wrong}, not a type from 1 to 6")
    return [int(value) for value in values]


def _checked_length(fields: GgufFields, name: str, values: list[float] | None, num_tokens: int) -> list[float] | None:
    if values is not None and len(values) != num_tokens:
        raise fields.error(f"{PREFIX}{name} has {len(values)} elements for {num_tokens} tokens")
    return values


def _token_id(fields: GgufFields, name: str, num_tokens: int) -> int | None:
    return fields.integer(name, 0, num_tokens - 1) if name in fields else None
