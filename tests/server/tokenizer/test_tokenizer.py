"""server/tokenizer/tokenizer.py on the real Mixtral tokenizers, with mistral-common and transformers as oracles."""

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer
from transformers import LlamaTokenizer

from server.tokenizer.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from tests.support.checkpoints.mistral_tokenizers import V1, V3, checkpoint, v1_tokenizer, v3_tokenizer

# SentencePiece writes a space as U+2581, so this one character is not preserved.
TEXTS = st.text(max_size=40).filter(lambda text: "\u2581" not in text)
CHAT_ML = {"32000": {"content": "<|im_end|>", "special": True}, "32001": {"content": "<plain>", "special": False}}


@given(text=st.text(max_size=60))
@settings(deadline=None)
def test_plain_text_has_the_ids_that_mistral_common_gives(v1: Tokenizer, text: str) -> None:
    assert v1.encode(text) == SentencePieceTokenizer(V1).encode(text, bos=True, eos=False)


@given(text=TEXTS)
@settings(deadline=None)
def test_decoding_gives_the_text_back(v1: Tokenizer, text: str) -> None:
    assert v1.decode(v1.encode(text)) == text


@given(text=st.lists(st.sampled_from(["</s>", "<s>", "[INST]", "<unk>", "<0x0A>", " ", "a"])).map("".join))
@settings(deadline=None)
def test_plain_text_never_gives_a_control_token(v1: Tokenizer, text: str) -> None:
    ids = v1.encode(text, add_special_tokens=False)
    assert not any(v1.is_special(i) for i in ids)
    assert v1.decode(ids) == text


def test_the_golden_prompt_has_its_golden_ids(tmp_path: Path, v1: Tokenizer) -> None:
    golden = [1, 733, 16289, 28793, 22557, 733, 28748, 16289, 28793]
    assert v1.encode_with_specials("<s>[INST] Hello [/INST]") == golden
    v3 = v3_tokenizer(tmp_path, tokenizer_config={"legacy": False})
    assert v3.encode_with_specials("<s>[INST] Hello[/INST]") == [1, 3, 23325, 4]


@pytest.mark.parametrize("legacy", [True, False])
def test_control_tokens_split_a_text_as_in_transformers(tmp_path: Path, legacy: bool) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "bos_token": "<s>", "eos_token": "</s>"}
    path = checkpoint(tmp_path / "checkpoint", tokenizer_config=config)
    oracle, ours = LlamaTokenizer.from_pretrained(path), load_tokenizer(path)
    for text in (
        "<s>[INST] Hello [/INST]",
        "[INST] x</s>[INST] y",
        "</s>a</s>b",
        "a<s>",
        "<s>Gr\u00fc\u00dfe, \U0001f600</s>",
    ):
        assert ours.encode_with_specials(text) == oracle.encode(text, add_special_tokens=False), text


def test_added_tokens_are_honoured_and_only_the_special_ones_are_control_tokens(tmp_path: Path) -> None:
    ours = v1_tokenizer(tmp_path, tokenizer_config={"added_tokens_decoder": CHAT_ML, "eos_token": "<|im_end|>"})
    assert ours.vocab_size == 32002
    assert ours.eos_ids == (32000,)
    assert ours.encode_with_specials("hi<|im_end|><plain>")[-2:] == [32000, 32001]
    plain = ours.encode("hi<|im_end|><plain>")
    assert 32000 not in plain
    assert plain[-1] == 32001
    assert ours.decode([32001, 32000]) == "<plain>"
    assert ours.decode([32001, 32000], skip_special_tokens=False) == "<plain><|im_end|>"


def test_no_bos_is_added_where_the_checkpoint_or_the_caller_switches_it_off(tmp_path: Path, v1: Tokenizer) -> None:
    assert v1.encode("a")[0] == 1
    assert 1 not in v1.encode("a", add_special_tokens=False)
    assert 1 not in v1_tokenizer(tmp_path, tokenizer_config={"add_bos_token": False}).encode("a")


def test_a_token_by_itself_is_shown_as_text_or_as_its_bytes(v1: Tokenizer) -> None:
    assert v1.token_text(22557) == " Hello"
    assert v1.token_bytes(22557) == b" Hello"
    assert (v1.token_text(3 + 0xE2), v1.token_bytes(3 + 0xE2)) == ("<0xE2>", b"\xe2")
    assert v1.token_text(3 + 0x41) == "A"
    assert v1.token_text(2) == "</s>"


def test_texts_and_bytes_of_many_tokens_are_those_of_each_and_are_made_once(v1: Tokenizer) -> None:
    ids = [2, 22557, 3 + 0xE2, 22557, 32_050]
    assert v1.shown_texts(ids) == [v1.token_text(token_id) for token_id in ids]
    assert v1.byte_values(ids) == [list(v1.token_bytes(token_id)) for token_id in ids]
    for first, second in zip(v1.byte_values([22557]), v1.byte_values([22557]), strict=True):
        assert first is second
    assert v1.shown_texts([22557])[0] is v1.shown_texts([22557])[0]


def test_ids_of_padding_rows_in_the_embedding_have_no_text(v1: Tokenizer) -> None:
    assert v1.decode([22557, 32_050]) == "Hello"
    with pytest.raises(ValueError, match="negative"):
        v1.token_bytes(-1)


def test_the_lower_bound_on_tokens_holds(v1: Tokenizer) -> None:
    for text in ("", "a", "hello world " * 50, " " * 200, "\u00e9" * 30):
        assert v1.min_num_tokens(text) <= len(v1.encode(text, add_special_tokens=False))


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_more_tokens_than_the_model_has_are_refused_with_both_numbers(tmp_path: Path, v1: Tokenizer) -> None:
    v1.check_fits(32_000)
    v1.check_fits(32_064)
    with pytest.raises(TokenizerError, match=r"32000 .* 31999"):
        v1.check_fits(31_999)
    added = v1_tokenizer(tmp_path, added_tokens={"<extra>": 32_005})
    with pytest.raises(TokenizerError, match=r"32005.* 32000"):
        added.check_fits(32_000)


def test_a_control_token_that_the_model_file_itself_matches_stays_plain_text(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("hello world, this is a small text about nothing at all\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(words), model_prefix=str(tmp_path / "small"), vocab_size=300, model_type="bpe", byte_fallback=True,
        user_defined_symbols=["<|end|>"], minloglevel=2, num_threads=1,
    )  # fmt: skip
    ours = load_tokenizer(
        checkpoint(tmp_path / "c", tmp_path / "small.model", tokenizer_config={"eos_token": "<|end|>"})
    )
    ids = ours.encode("a <|end|> b <|end|>", add_special_tokens=False)
    assert not any(ours.is_special(i) for i in ids)
    assert ours.decode(ids) == "a <|end|> b <|end|>"
    assert ours.encode_with_specials("a<|end|>")[-1] == ours.eos_ids[0]


def test_every_control_token_of_version_3_is_known(tmp_path: Path) -> None:
    v3 = v3_tokenizer(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(V3))
    for token_id in (1, 2, 3, 4, 5, 9):
        assert v3.encode_with_specials(processor.id_to_piece(token_id)) == [token_id]
    assert v3.version == 3
