"""Build the encoder of a GGUF file's vocabulary, which encodes exactly as the original did.

GGUF keeps the pieces, scores and types of a SentencePiece model, but not the model. It is written here again, in
protobuf's encoding. Source of the field numbers: sentencepiece_model.proto. gguf_byte_level.py does the same for
byte-level vocabularies.
"""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from engine.capacity.gguf_vocabulary import GgufVocabulary, read_gguf_vocabulary
from engine.errors import EngineConfigError
from server.tokenizer.byte_level import ByteLevelEncoder
from server.tokenizer.config_files import (
    MAX_PIECE_CHARS,
    AddedToken,
    NoTokenizerError,
    TokenizerError,
    TokenizerSettings,
)
from server.tokenizer.encoders import SentencePieceEncoder
from server.tokenizer.gguf_byte_level import tokenizer_json
from server.tokenizer.token_table import ENDS, MARKS

UNKNOWN, CONTROL, BYTE = 2, 3, 6
BPE = 2  # model_type in trainer_spec
VARINT, LENGTH, FIXED32 = 0, 2, 5  # wire types
USER_DEFINED = 4
ADDED_SCORE = -1000.0  # that llama.cpp's converter gives to added tokens
MARKED_TURN = "[INST]"  # a control token in vocabularies of version 3, plain text in version 1


def read_gguf_tokenizer(path: Path) -> tuple[SentencePieceEncoder | ByteLevelEncoder, TokenizerSettings]:
    """Read the vocabulary of the model whose only or first file is `path`: its encoder, and settings.

    Raises TokenizerError; NoTokenizerError if it has none.
    """
    try:
        vocabulary = read_gguf_vocabulary(path)
    except EngineConfigError as error:
        raise TokenizerError(str(error)) from None
    if vocabulary is None:
        raise NoTokenizerError(f"{path}: no tokenizer (tokenizer.ggml.model and tokenizer.ggml.tokens)")
    settings = _settings(vocabulary)
    if not vocabulary.is_byte_level:
        return SentencePieceEncoder(path, sentencepiece_model(vocabulary, path)), settings
    encoder = ByteLevelEncoder(path, tokenizer_json(vocabulary, _named_ids(vocabulary), path))
    return encoder, replace(settings, added_tokens=encoder.added_tokens, bos_token=_bos_token(vocabulary))


def sentencepiece_model(vocabulary: GgufVocabulary, path: Path) -> bytes:
    """Return the vocabulary as a serialized ModelProto. Raises TokenizerError, which names `path`."""
    scores = _scores(vocabulary, path)
    types = _types(vocabulary)
    pieces = zip(vocabulary.tokens, scores, types, strict=True)
    content = b"".join(_message(1, _piece(text, score, kind, path)) for text, score, kind in pieces)
    return content + _message(2, _trainer_spec(vocabulary, types)) + _message(3, _normalizer_spec(vocabulary))


def _settings(vocabulary: GgufVocabulary) -> TokenizerSettings:
    return TokenizerSettings(
        added_tokens=() if vocabulary.is_byte_level else tuple(_added(vocabulary)),
        lists_added_tokens=True,
        bos_token=None,
        eos_token=None,
        unk_token=None,
        special_tokens=frozenset(),
        eos_ids=_end_ids(vocabulary),
        adds_bos=vocabulary.adds_bos,
        adds_eos=vocabulary.adds_eos,
        # Version 1 puts a space in front of each text between control tokens. Templates of version 3 write it.
        is_legacy=MARKED_TURN not in vocabulary.tokens,
        chat_template=vocabulary.chat_template,
    )


def _added(vocabulary: GgufVocabulary) -> Iterator[AddedToken]:
    """Yield tokens that were added to the pieces: these cut a text wherever they stand in it, as in transformers and
    llama.cpp. SentencePiece alone would not. Converters give them a score that no piece of a model has."""
    named, scores = _named_ids(vocabulary), vocabulary.scores or [0.0] * len(vocabulary.tokens)
    for token_id, (text, kind, score) in enumerate(zip(vocabulary.tokens, vocabulary.types, scores, strict=True)):
        if kind == USER_DEFINED and score <= ADDED_SCORE and text and token_id not in named:
            yield AddedToken(token_id, text, is_special=False)


def _end_ids(vocabulary: GgufVocabulary) -> tuple[int, ...]:
    """Return the ids that end an answer: those that the file names, and the ends of turns that all models share."""
    ids = (*vocabulary.eos_ids, *(vocabulary.tokens.index(end) for end in ENDS if end in vocabulary.tokens))
    return tuple(dict.fromkeys(ids))


def _named_ids(vocabulary: GgufVocabulary) -> frozenset[int]:
    """Return the ids of control tokens, whatever their types: the start and the ends of a text, and marks of turns."""
    found = (vocabulary.tokens.index(mark) for mark in MARKS if mark in vocabulary.tokens)
    marks = (token_id for token_id in found if vocabulary.types[token_id] == USER_DEFINED)
    ids = (vocabulary.bos_id, *_end_ids(vocabulary), *marks)
    return frozenset(token_id for token_id in ids if token_id is not None)


def _bos_token(vocabulary: GgufVocabulary) -> str | None:
    return None if vocabulary.bos_id is None else vocabulary.tokens[vocabulary.bos_id]


def _types(vocabulary: GgufVocabulary) -> list[int]:
    """Return the types, with the tokens that the file names as control tokens and one unknown token."""
    types = list(vocabulary.types)
    for token_id in _named_ids(vocabulary):
        if types[token_id] != UNKNOWN:
            types[token_id] = CONTROL
    if UNKNOWN not in types:
        types[vocabulary.unk_id or 0] = UNKNOWN
    return types


def _scores(vocabulary: GgufVocabulary, path: Path) -> Sequence[float]:
    """Return the scores: the higher, the earlier two pieces are merged. Where all are equal, the merges decide."""
    scores = vocabulary.scores
    if scores is not None and len(set(scores)) > 1:
        if not all(map(math.isfinite, scores)):
            raise TokenizerError(f"{path}: damaged: a score in tokenizer.ggml.scores is not a number")
        return scores
    if not vocabulary.merges:
        raise TokenizerError(f"{path}: tokenizer.ggml.scores are all equal, and tokenizer.ggml.merges is missing")
    return scores_of_merges(vocabulary.tokens, vocabulary.merges)


def scores_of_merges(tokens: Iterable[str], merges: Sequence[str]) -> list[float]:
    """Return scores that give the order of the merges: that of the first merge that makes a piece, counted down."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _piece(text: str, score: float, kind: int, path: Path) -> bytes:
    if len(text) > MAX_PIECE_CHARS:
        raise TokenizerError(f"{path}: a token has {len(text)} characters, more than {MAX_PIECE_CHARS}")
    try:
        number = struct.pack("<f", score)
    except OverflowError:
        raise TokenizerError(f"{path}: damaged: a score in tokenizer.ggml.scores is too large") from None
    return _message(1, text.encode("utf-8")) + _key(2, FIXED32) + number + _integer(3, kind)


def _trainer_spec(vocabulary: GgufVocabulary, types: Sequence[int]) -> bytes:
    ids = (types.index(UNKNOWN), vocabulary.bos_id, next(iter(vocabulary.eos_ids), None), None)  # the last: padding
    return (
        _integer(3, BPE)
        + _integer(4, len(types))
        + _integer(35, int(BYTE in types))  # byte_fallback
        + b"".join(
            _integer(field, -1 if token is None else token) for field, token in zip(range(40, 44), ids, strict=True)
        )
    )


def _normalizer_spec(vocabulary: GgufVocabulary) -> bytes:
    """Change no character; keep runs of spaces, and write spaces as U+2581."""
    return _message(1, b"identity") + _integer(3, int(vocabulary.has_dummy_prefix)) + _integer(4, 0) + _integer(5, 1)


def _message(field: int, content: bytes) -> bytes:
    return _key(field, LENGTH) + _varint(len(content)) + content


def _integer(field: int, value: int) -> bytes:
    return _key(field, VARINT) + _varint(value & (2**64 - 1))


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint(value: int) -> bytes:
    """Encode 7 bits in each byte, lowest first. 300 = 0b10_0101100 gives AC 02."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
